"""Stored embeddings and label sets in, labels out."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings
from clipcap.stages.label import LabelSettings
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import SHARDS_PER_PARTITION
from tasks.label import label_partition
from tasks.preflight import check_models, check_places
from tasks.shard import list_shards


@flow(name="label", run_name="label {out}")
def label(
    out: str,
    settings: LabelSettings = LabelSettings(),
    encoder: EmbedSettings = EmbedSettings(),
    shards_per_partition: int = SHARDS_PER_PARTITION,
) -> Finished:
    """Label every embedded image that has no labels from these label sets yet.

    Args:
        out: URL of the output.
        settings: Which labels are given.
        encoder: Whose embeddings they are compared with.
        shards_per_partition: Shards that one task run takes.
    """
    given = {"settings": settings, "encoder": encoder}
    with Ledger("label", out, given, logical_date=None) as ledger:
        ledger.call(check_models, encoder, None, settings.label_sets, ())
        ledger.call(check_places, out, out)
        ledger.confirm()
        with ledger.stage("label"):
            live = ledger.call(list_shards, ledger.run)
            size = shards_per_partition
            ledger.each(label_partition, live, size, ledger.run, settings, encoder)
        return ledger.finish()
