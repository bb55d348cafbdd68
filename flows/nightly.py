"""Source in, captioned and labelled output out: all stages, in order, over partitions of shards."""

from __future__ import annotations

from datetime import date

from clipcap.stages.canaries import Judges, require_kept
from clipcap.stages.drift import require_alike
from flows._flow import flow
from flows._ledger import Finished, Ledger
from flows.settings import NightlySettings, settled
from flows.shard import take_in
from tasks.caption import caption_partition
from tasks.drift import check_canaries, compare_night, look_at_canaries
from tasks.embed import embed_partition
from tasks.label import label_partition
from tasks.preflight import check_models, check_places
from tasks.publish import publish_night
from tasks.shard import list_shards


@flow(name="nightly", run_name="nightly {source}")
def nightly(
    source: str,
    out: str,
    settings: NightlySettings = NightlySettings(),
    logical_date: date | None = None,
) -> Finished:
    """Caption and label what is new in a source, and publish it.

    Args:
        source: Folder, bucket, prefix, table or tars with the images.
        out: URL of the output.
        settings: What is taken in, which models run, what is left.
        logical_date: The date the new shards are filed under; the scheduled start, if not given.
    """
    given = {"source": source, "out": out, "settings": settings, "logical_date": logical_date}
    with Ledger("nightly", out, given, logical_date=logical_date) as ledger:
        settings = _settled(settings, out)
        _require_ready(ledger, source, out, settings)
        ledger.confirm()
        _look_at_canaries(ledger, settings)
        take_in(ledger, source, settings.shard, max_reject_rate=settings.max_reject_rate)
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
    devices = (settings.speed.device, settings.caption_speed.device)
    label_sets = settings.label.label_sets
    ledger.call(check_models, settings.embed, settings.caption, label_sets, devices)
    if settings.drift is not None and settings.drift.canaries:
        ledger.call(check_canaries, settings.drift.canaries, label_sets)
    ledger.call(check_places, source, out)


def _look_at_canaries(ledger: Ledger, settings: NightlySettings) -> None:
    """Stop before anything is taken in if the images that must keep their labels do not."""
    if settings.drift is None or not settings.drift.canaries:
        return
    judges = Judges(settings.embed, settings.speed, settings.label)
    with ledger.stage("canaries"):
        ledger.drift = ledger.call(look_at_canaries, ledger.run, settings.drift, judges)
        require_kept(ledger.drift)


def _compare(ledger: Ledger, settings: NightlySettings) -> None:
    """Stop before anything is published if the night differs too much from those before it."""
    if settings.drift is not None:
        ledger.drift = ledger.call(compare_night, ledger.night(), settings.drift)
        require_alike(ledger.drift)


def _describe(ledger: Ledger, settings: NightlySettings) -> None:
    """Embed, caption and label the live images; what is done already costs two small reads."""
    run, size, encoder = ledger.run, settings.shards_per_partition, settings.embed
    with ledger.stage("embed"):
        live = ledger.call(list_shards, run)
        ledger.each(embed_partition, live, size, run, encoder, settings.speed)
    if settings.caption is not None:
        speed = settings.caption_speed
        with ledger.stage("caption"):
            ledger.each(caption_partition, live, size, run, settings.caption, encoder, speed)
    with ledger.stage("label"):
        ledger.each(label_partition, live, size, run, settings.label, encoder)
