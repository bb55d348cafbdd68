"""Source in, captioned and labelled output out: all stages, in order, over partitions of shards."""

from __future__ import annotations

from clipcap.layout import Shard
from clipcap.stages.canaries import Judges, require_kept
from clipcap.stages.drift import require_alike
from clipcap.stages.pending import Wanted
from flows._dispatch import have_described
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows._ray import spread
from flows.settings import LogicalDate, NightlySettings, settled
from flows.shard import take_in
from tasks.caption import caption_partition
from tasks.dispatch import check_workers
from tasks.drift import check_canaries, compare_night, look_at_canaries
from tasks.embed import embed_partition
from tasks.label import label_partition
from tasks.pending import find_pending
from tasks.preflight import check_delta, check_models, check_places
from tasks.publish import publish_night


@flow(name="nightly", run_name="nightly {source}")
def nightly(
    source: str,
    out: str,
    settings: NightlySettings = NightlySettings(),
    logical_date: LogicalDate | None = None,
    only: str = "",
) -> Finished:
    """Caption and label what is new in a source, and publish it.

    Args:
        source: Folder, bucket, prefix, table or tars with the images.
        out: URL of the output.
        settings: What is taken in, which models run, what is left.
        logical_date: The date the new shards are filed under; the scheduled start, if not given.
        only: Folder below the source, outside of which nothing is looked at; in place of that of
            the settings.
    """
    if only:
        taken = settings.shard.model_copy(update={"only": only})
        settings = settings.model_copy(update={"shard": taken})
    given = {"source": source, "out": out, "settings": settings, "logical_date": logical_date}
    with Ledger("nightly", out, given, logical_date=logical_date) as ledger:
        settings = _settled(settings, out)
        _require_ready(ledger, source, out, settings)
        ledger.confirm()
        _look_at_canaries(ledger, settings)
        with spread(settings.ray):
            take_in(ledger, source, settings)
            _describe(ledger, settings)
        with ledger.stage("publish"):
            _compare(ledger, settings)
            published = ledger.call(publish_night, ledger.night(), settings.publish)
        return ledger.finish(published)


def _settled(settings: NightlySettings, out: str) -> NightlySettings:
    """Return the settings with the captioner that is promoted as the night begins."""
    if settings.caption is None:
        return settings
    return settings.model_copy(update={"caption": settled(settings.caption, out)})


def _require_ready(ledger: Ledger, source: str, out: str, settings: NightlySettings) -> None:
    """Refuse, before any work, what cannot be done."""
    is_here = _is_here(settings)
    devices = (settings.speed.device, settings.caption_speed.device) if is_here else ()
    label_sets = settings.label.label_sets
    ledger.call(check_models, settings.embed, settings.caption, label_sets, devices)
    if settings.drift is not None and settings.drift.canaries:
        ledger.call(check_canaries, settings.drift.canaries, label_sets)
    if settings.dispatch is not None:
        names = {settings.dispatch.deployment, settings.dispatch.shard_deployment}
        ledger.call(check_workers, tuple(sorted(names)))
    ledger.call(check_places, source, out)
    if settings.publish.table_format == "delta":
        ledger.call(check_delta, out)


def _look_at_canaries(ledger: Ledger, settings: NightlySettings) -> None:
    """Stop before anything is taken in if the images that must keep their labels do not."""
    if settings.drift is None or not settings.drift.canaries:
        return
    judges = _judges(settings)
    with ledger.stage("canaries"):
        ledger.drift = ledger.call(look_at_canaries, ledger.run, settings.drift, judges)
        require_kept(ledger.drift)


def _is_here(settings: NightlySettings) -> bool:
    """Tell whether models run in this process; else the devices are those of other machines."""
    return settings.dispatch is None and settings.ray is None


def _judges(settings: NightlySettings) -> Judges:
    """Return who looks at the canaries: this process, which may lack the workers' devices."""
    if _is_here(settings):
        return Judges(settings.embed, settings.speed, settings.label)
    found = {"device": "auto"}
    speed = settings.speed.model_copy(update=found)
    return Judges(settings.embed, speed, settings.label.model_copy(update=found))


def _compare(ledger: Ledger, settings: NightlySettings) -> None:
    """Stop before anything is published if the night differs too much from those before it."""
    if settings.drift is not None:
        ledger.drift = ledger.call(compare_night, ledger.night(), settings.drift)
        require_alike(ledger.drift)


def _describe(ledger: Ledger, settings: NightlySettings) -> None:
    """Embed, caption and label what is not; here, or on workers."""
    wanted = Wanted(encoder=settings.embed, caption=settings.caption, label=settings.label)
    if settings.dispatch is not None:
        with ledger.stage(*wanted.stages):
            looked = ledger.call(find_pending, ledger.run, wanted)
            pending = _first(ledger, looked.any_pending())
            ledger.add(looked.known(without=pending))
            have_described(ledger, pending, settings, settings.dispatch)
        return
    run, size, encoder = ledger.run, settings.shards_per_partition, settings.embed
    with ledger.stage("embed"):
        looked = ledger.call(find_pending, run, wanted)
        ledger.add(looked.known())
        todo = _first(ledger, looked.pending["embed"])
        ledger.each(embed_partition, todo, size, run, encoder, settings.speed)
    if settings.caption is not None:
        speed = settings.caption_speed
        todo = _first(ledger, looked.pending["caption"])
        with ledger.stage("caption"):
            ledger.each(caption_partition, todo, size, run, settings.caption, encoder, speed)
    with ledger.stage("label"):
        ledger.each(label_partition, looked.pending["label"], size, run, settings.label, encoder)


def _first(ledger: Ledger, shards: list[Shard]) -> list[Shard]:
    """Return shards, those that this night has written first: see `clipcap.moved`."""
    return ledger.plan.first(shards) if ledger.plan else shards
