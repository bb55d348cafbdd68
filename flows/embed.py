"""Shards in, embeddings out."""

from __future__ import annotations

from datetime import date

from clipcap.embedding import EmbedSettings, Speed
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import SHARDS_PER_PARTITION
from tasks.embed import embed_partition
from tasks.preflight import check_models, check_places
from tasks.shard import list_shards


@flow(name="embed", run_name="embed {out}")
def embed(
    out: str,
    settings: EmbedSettings = EmbedSettings(),
    speed: Speed = Speed(),
    shards_per_partition: int = SHARDS_PER_PARTITION,
    logical_date: date | None = None,
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
        ledger.call(check_places, out, out)
        ledger.confirm()
        with ledger.stage("embed"):
            live = ledger.call(list_shards, ledger.run)
            ledger.each(embed_partition, live, shards_per_partition, ledger.run, settings, speed)
        return ledger.finish()
