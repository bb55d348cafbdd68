"""`clipcap plan`: a source and an output in; what a night would do, and cost, out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import click

from clipcap import embedding, forecast, layout, storage
from clipcap.forecast import Forecast, Step, Wanted
from clipcap.labels import bank
from clipcap.layout import Run, Shard
from clipcap.stages import shard as stage
from clipcap.stages.caption import choose
from flows.commands import _options as options
from flows.commands._start import json_option
from flows.settings import NightlySettings, begun, settled
from tasks.preflight import check_models

_ANY = Shard(dt="0000-00-00", name="any")
_CAPTION_BYTES = 900
_LABEL_BYTES = 300
_BYTES_PER_NUMBER = 2.2  # of an embedding: float32 rounded to half, compressed
_MINUTE_S, _HOUR_S = 60, 3_600


@click.command()
@options.choices(
    NightlySettings,
    options.KIND,
    options.GLOB,
    options.ONLY,
    options.MODEL,
    options.CAPTIONER,
    options.LABEL_SET,
    options.LIMIT,
)
@json_option
@click.argument("source")
@click.argument("out")
def plan(source: str, out: str, settings: NightlySettings, *, as_json: bool) -> None:
    """Say what a night over SOURCE would do to OUT and cost; change nothing.

    Lists the source. Times are those of earlier nights in OUT.
    """
    tell(foreseen(source, out, settings, None), as_json=as_json)


def foreseen(source: str, out: str, settings: NightlySettings, date: datetime | None) -> Forecast:
    """Return the cost of a night, after the checks that the night itself would begin with."""
    if settings.caption is not None:
        caption = settled(settings.caption, out)
        settings = settings.model_copy(update={"caption": caption})
    devices = (settings.speed.device, settings.caption_speed.device)
    check_models.fn(settings.embed, settings.caption, settings.label.label_sets, devices)
    dt = (begun(date.date()) if date else datetime.now(UTC).date()).isoformat()
    run = Run(run_id="plan", out=storage.canonical(out), dt=dt)
    planned = stage.plan(source, run=run, settings=settings.shard, write=False)
    size = settings.shards_per_partition
    wanted = list(_wanted(run.out, settings))
    return forecast.forecast(planned, run=run, wanted=wanted, shards_per_task=size)


def _wanted(out: str, settings: NightlySettings) -> Iterator[Wanted]:
    """Yield the stages that follow on the shards."""
    ref = embedding.reference(settings.embed)
    url = layout.embeddings(out, _ANY, model_id=ref.model_id)
    size = int(ref.dim * _BYTES_PER_NUMBER)
    yield Wanted("embed", (ref.model_id,), (layout.folder_of(url),), size)
    if settings.caption is not None:
        name = choose(settings.caption, settings.embed).card.captioner_id
        url = layout.captions(out, _ANY, captioner_id=name)
        yield Wanted("caption", (name,), (layout.folder_of(url),), _CAPTION_BYTES)
    names = tuple(bank.load(name).label_set.name for name in settings.label.label_sets)
    urls = [layout.labels(out, _ANY, label_set=name) for name in names]
    folders = tuple(layout.folder_of(url) for url in urls)
    yield Wanted("label", names, folders, _LABEL_BYTES * settings.label.top_k)


def tell(found: Forecast, *, as_json: bool) -> None:
    """Print a forecast: for machines as one object, for people in lines."""
    if as_json:
        click.echo(json.dumps(asdict(found) | {"seconds": found.seconds}, indent=1))
        return
    retried = f" ({found.to_retry:,} of them rejected before)" if found.to_retry else ""
    click.echo(
        f"{found.listed:,} images listed: {found.new:,} new{retried}, {found.changed:,} changed, "
        f"{found.deleted:,} gone, {found.unchanged:,} unchanged."
    )
    stay = "; the images stay in their tars" if found.in_place else ""
    click.echo(
        f"Would write {_count(found.shards, 'shard')} and take images out of "
        f"{found.shards_left:,}; read {in_bytes(found.bytes_to_read)} of images, write about "
        f"{in_bytes(found.bytes_to_write)}{stay}."
    )
    for step in found.steps:
        click.echo(_line(step))
    click.echo(_times(found))
    click.echo("Nothing was written.")


def _line(step: Step) -> str:
    of = f" with {step.of}" if step.of else ""
    rate = step.images_per_second
    time = "" if step.seconds is None else f", about {_duration(step.seconds)}"
    at = f" at {rate:,.1f} images/s" if rate and step.images else ""
    work = f"{_count(step.images, 'image')} in {_count(step.tasks, 'task')}"
    return f"{step.stage:<10}{work}{of}{time}{at}"


def _times(found: Forecast) -> str:
    if found.seconds is not None and found.nights:
        nights = _count(found.nights, "earlier night")
        return f"About {_duration(found.seconds)} in all, by {nights}."
    unknown = ", ".join(step.stage for step in found.steps if step.seconds is None)
    if not unknown:
        return "Nothing is to do."
    if not found.nights:
        return "How long it takes is not known: no earlier night; `clipcap bench` measures it."
    return f"No earlier night tells how long it takes to {unknown}: `clipcap bench` measures it."


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"


def in_bytes(count: float) -> str:
    """Return a number of bytes as a person says it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1_000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1_000
    return f"{count:,.1f} TB"
