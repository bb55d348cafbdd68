"""`clipcap bench`: images or none in; how fast each stage is here, and what to change, out."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from clipcap import storage
from clipcap.benchmark import Chosen, Figure
from flows.commands import _options as options
from flows.commands._start import json_option
from flows.settings import NightlySettings

_IMAGES = 256
_MEGAPIXELS = 0.67


@click.command()
@options.choices(
    NightlySettings,
    options.CAPTIONER,
    options.LABEL_SET,
    options.MODEL,
    options.DEVICE,
    options.BATCH,
)
@json_option
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=_IMAGES,
    show_default=True,
    help="How many are measured.",
)
@click.option(
    "--megapixels",
    type=click.FloatRange(min=0.001, max=200),
    default=_MEGAPIXELS,
    show_default=True,
    help="Mean size of the images that are made up where no SOURCE is given.",
)
@click.argument("source", required=False)
def bench(
    source: str | None, settings: NightlySettings, images: int, megapixels: float, *, as_json: bool
) -> None:
    """Measure how fast every stage is here, what waits for what, what to change.

    Takes images of SOURCE, or made-up photographs; nothing is kept.
    """
    from clipcap import benchmark

    chosen = Chosen(
        shard=settings.shard.model_copy(update={"limit": images}),
        embed=settings.embed,
        speed=settings.speed,
        caption=settings.caption,
        caption_speed=settings.caption_speed,
        label=settings.label,
    )
    with _images(source, images, megapixels) as (found, place):
        figures = list(benchmark.measured(found, place, chosen))
    texts = benchmark.advice(figures, chosen)
    if as_json:
        rows = [asdict(figure) | {"images_per_second": figure.rate} for figure in figures]
        click.echo(json.dumps({"stages": rows, "advice": texts}, indent=1))
        return
    _show(figures)
    for text in texts:
        click.echo(text)


@contextmanager
def _images(source: str | None, count: int, megapixels: float) -> Iterator[tuple[str, str]]:
    """Give where the images are, and an empty folder."""
    from clipcap import benchmark

    with _terminable(), tempfile.TemporaryDirectory(prefix="clipcap-bench-") as folder:
        place = Path(folder)
        if source is None:
            benchmark.draw(place / "images", count, megapixels=megapixels)
            source = str(place / "images")
        yield source, storage.canonical(str(place / "out"))


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM end this as Ctrl-C does, with nothing left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(figures: list[Figure]) -> None:
    from flows.console import tables_console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage")
    for name in ("images", "images/s", "in the model", "waits: reading", "waits: decoding"):
        table.add_column(name, justify="right")
    for figure in figures:
        shares = [figure.model_s, figure.read_s, figure.decode_s]
        cells = [f"{one / figure.seconds:.0%}" if one else "" for one in shares]
        table.add_row(figure.stage, str(figure.images), f"{figure.rate:,.0f}", *cells)
    tables_console().print(table)
