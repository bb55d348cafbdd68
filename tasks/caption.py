"""A partition of embedded shards in, their captions out, as a task."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings
from clipcap.layout import Run
from clipcap.outcomes import Outcome
from clipcap.stages import caption as stage
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from tasks._task import Partition, task


@task(run_name="caption {partition}", needs_gpu=True)
def caption_partition(
    partition: Partition,
    run: Run,
    settings: CaptionSettings,
    encoder: EmbedSettings,
    speed: CaptionSpeed,
) -> list[Outcome]:
    """Caption each shard of the partition from its stored embeddings."""
    return [
        stage.caption(shard, run=run, settings=settings, encoder=encoder, speed=speed)
        for shard in partition
    ]
