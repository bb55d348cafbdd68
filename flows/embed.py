"""Shards in, embeddings out."""

from __future__ import annotations

from clipcap.embedding import EmbedSettings, Speed
from clipcap.stages.pending import Wanted
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import SHARDS_PER_PARTITION, LogicalDate
from tasks.embed import embed_partition
from tasks.pending import find_pending
from tasks.preflight import check_models, check_output


@flow(name="embed", run_name="embed {out}")
def embed(
    out: str,
    settings: EmbedSettings = EmbedSettings(),
    speed: Speed = Speed(),
    shards_per_partition: int = SHARDS_PER_PARTITION,
    logical_date: LogicalDate | None = None,
) -> Finished:
    """Embed every live image that is not embedded yet.

    Args:
        out: URL of the output.
        settings: Which encoder makes the embeddings.
        speed: How fast; changes no result.
        shards_per_partition: Shards that one task run takes.
        logical_date: The date of the run's row; the scheduled start, if not given.
    """
    given = {"settings": settings, "speed": speed}
    with Ledger("embed", out, given, logical_date=logical_date) as ledger:
        ledger.call(check_models, settings, None, (), (speed.device,))
        ledger.call(check_output, out)
        ledger.confirm()
        with ledger.stage("embed"):
            looked = ledger.call(find_pending, ledger.run, Wanted(encoder=settings))
            ledger.add(looked.known())
            todo, size = looked.pending["embed"], shards_per_partition
            ledger.each(embed_partition, todo, size, ledger.run, settings, speed)
        return ledger.finish()
