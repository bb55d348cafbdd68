"""Stored embeddings and label sets in, labels out."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.pending import Wanted
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import SHARDS_PER_PARTITION
from tasks.label import label_partition
from tasks.pending import find_pending
from tasks.preflight import check_models, check_output


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
        ledger.call(check_output, out)
        ledger.confirm()
        with ledger.stage("label"):
            wanted = Wanted(encoder=encoder, embed=False, label=settings)
            looked = ledger.call(find_pending, ledger.run, wanted)
            ledger.add(looked.known())
            todo, size = looked.pending["label"], shards_per_partition
            ledger.each(label_partition, todo, size, ledger.run, settings, encoder)
        return ledger.finish()
