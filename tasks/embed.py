"""A partition of shards in, their embeddings out, as a task."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings, Speed
from clipcap.layout import Run
from clipcap.outcomes import Outcome
from clipcap.stages import embed as stage
from tasks._task import Partition, task


@task(run_name="embed {partition}", needs_gpu=True)
def embed_partition(
    partition: Partition, run: Run, settings: EmbedSettings, speed: Speed
) -> list[Outcome]:
    """Embed the shards of the partition; one that is embedded already costs two small reads."""
    return stage.embed(partition.shards, run=run, settings=settings, speed=speed)
