"""A night's outcomes in, what readers see out, as a task."""

from __future__ import annotations

from clipcap.outcomes import Night
from clipcap.stages import publish as stage
from clipcap.stages.publish import Published, PublishSettings
from tasks._task import task


@task(run_name="publish {night.run.run_id}")
def publish_night(night: Night, settings: PublishSettings) -> Published:
    """Check that every shard is whole, then tell readers of it."""
    return stage.publish(night, settings=settings)
