"""An output in, which of its shards lack what a night wants out, as a task."""

from __future__ import annotations

from clipcap.layout import Run
from clipcap.stages import pending as stage
from clipcap.stages.pending import Looked, Wanted
from tasks._task import task


@task(run_name="look at the shards")
def find_pending(run: Run, wanted: Wanted) -> Looked:
    """Look at every live shard: what is done, and what is to do."""
    return stage.look(run, wanted)
