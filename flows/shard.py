"""Source in, shards and manifests out.

New shards are committed before old ones are retired: a run that ends between the two leaves an
image in two shards, which the next one's plan repairs; the other way round would lose it.
"""

from __future__ import annotations

from clipcap.stages.shard import ShardSettings
from flows._dispatch import have_written
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import MAX_REJECT_RATE, LogicalDate, NightlySettings
from tasks.preflight import check_places
from tasks.shard import check_rejects, drop_plan, make_plan, retire_images, write_shards


def take_in(ledger: Ledger, source: str, settings: NightlySettings) -> None:
    """Bring the shards of an output to what the source holds now.

    Raises:
        TooManyRejectsError: more than `max_reject_rate` of the new images cannot be used.
    """
    size = settings.shards_per_partition
    with ledger.stage("shard"):
        plan = ledger.plan = ledger.call(make_plan, source, ledger.run, settings.shard)
        planned = [part.shard for part in plan.planned]
        if settings.dispatch is not None:
            have_written(ledger, planned, settings, settings.dispatch)
        else:
            ledger.each(write_shards, planned, size, ledger.run, settings.shard)
        ledger.call(check_rejects, ledger.run, settings.max_reject_rate, plan.retired)
        ledger.each(retire_images, plan.retired, size, ledger.run)


@flow(name="shard", run_name="shard {source}")
def shard(
    source: str,
    out: str,
    settings: ShardSettings = ShardSettings(),
    max_reject_rate: float = MAX_REJECT_RATE,
    logical_date: LogicalDate | None = None,
) -> Finished:
    """Read what is new in a source into shards.

    Args:
        source: Folder, bucket, prefix, table or tars with the images.
        out: URL of the output.
        settings: Which images are taken in.
        max_reject_rate: Stop if a larger share of the new images is rejected.
        logical_date: The date the shards are filed under; the scheduled start, if not given.
    """
    given = {"source": source, "settings": settings, "max_reject_rate": max_reject_rate}
    with Ledger("shard", out, given, logical_date=logical_date) as ledger:
        ledger.call(check_places, source, out)
        ledger.confirm()
        take_in(ledger, source, NightlySettings(shard=settings, max_reject_rate=max_reject_rate))
        ledger.call(drop_plan, ledger.run)
        return ledger.finish()
