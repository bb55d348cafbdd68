"""One thin Prefect task per stage: a decorator, a name and one library call."""
