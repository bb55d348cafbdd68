"""Stored embeddings in, captions out."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.pending import Wanted
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import SHARDS_PER_PARTITION, settled
from tasks.caption import caption_partition
from tasks.pending import find_pending
from tasks.preflight import check_models, check_output


@flow(name="caption", run_name="caption {out}")
def caption(
    out: str,
    settings: CaptionSettings = CaptionSettings(),
    encoder: EmbedSettings = EmbedSettings(),
    speed: CaptionSpeed = CaptionSpeed(),
    shards_per_partition: int = SHARDS_PER_PARTITION,
) -> Finished:
    """Caption every embedded image that has no caption by this captioner yet.

    Args:
        out: URL of the output.
        settings: Which captioner writes the captions.
        encoder: Whose embeddings it reads.
        speed: How fast; changes no result.
        shards_per_partition: Shards that one task run takes.
    """
    given = {"settings": settings, "encoder": encoder, "speed": speed}
    with Ledger("caption", out, given, logical_date=None) as ledger:
        settings = settled(settings, out)
        ledger.call(check_models, encoder, settings, (), (speed.device,))
        ledger.call(check_output, out)
        ledger.confirm()
        with ledger.stage("caption"):
            wanted = Wanted(encoder=encoder, embed=False, caption=settings)
            looked = ledger.call(find_pending, ledger.run, wanted)
            ledger.add(looked.known())
            todo, size = looked.pending["caption"], shards_per_partition
            ledger.each(caption_partition, todo, size, ledger.run, settings, encoder, speed)
        return ledger.finish()
