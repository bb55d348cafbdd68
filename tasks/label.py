"""A partition of embedded shards in, their labels from every label set out, as a task."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings
from clipcap.labels import bank
from clipcap.layout import Run
from clipcap.outcomes import Outcome
from clipcap.stages import label as stage
from clipcap.stages.label import LabelSettings
from tasks._task import Partition, task


@task(run_name="label {partition}")
def label_partition(
    partition: Partition, run: Run, settings: LabelSettings, encoder: EmbedSettings
) -> list[Outcome]:
    """Label each shard of the partition with each label set, from its stored embeddings."""
    given = [bank.load(name) for name in settings.label_sets]
    return [
        outcome
        for shard in partition
        for outcome in stage.label(shard, given, run=run, settings=settings, encoder=encoder)
    ]
