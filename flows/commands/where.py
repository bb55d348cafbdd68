"""`clipcap where`: label sets in, where in each image each label is seen out."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from clipcap import storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.settings import Settings
from clipcap.stages.where import WhereSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.stages.where import Places

_SHOWN = 20


class WhereCommandSettings(Settings):
    """What `clipcap where` may be told."""

    where: WhereSettings = WhereSettings()
    """What is looked for, and through which windows."""
    embed: EmbedSettings = EmbedSettings()
    """The encoder of the embeddings: it looks through the windows."""
    speed: Speed = Speed()
    """Where it runs."""


_MORE = " Give the option once for each."


@click.command()
@options.choices(
    WhereCommandSettings,
    Choice("--label-set", ("where.label_sets",), (WhereSettings, "label_sets"), more=_MORE),
    Choice("--label", ("where.labels",), (WhereSettings, "labels"), more=_MORE),
    Choice("--grid", ("where.grid",), (WhereSettings, "grid")),
    Choice("--overlap", ("where.overlap",), (WhereSettings, "overlap"), bool),
    Choice("--threshold", ("where.threshold",), (WhereSettings, "threshold"), float),
    options.MODEL,
    Choice("--device", ("speed.device",), (Speed, "device")),
    Choice("--batch-size", ("speed.batch_size",), (Speed, "batch_size"), int),
)
@json_option
@click.option("--to", required=True, metavar="FOLDER", help="Where the tables are written.")
@click.option("--page", metavar="FILE", help="Write images with heat maps, as HTML.")
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    help="Images of each label on the page. [default: 6]",
)
@click.argument("out")
def where(
    out: str,
    settings: WhereCommandSettings,
    to: str,
    *,
    as_json: bool,
    **page: str | int | None,
) -> None:
    """Look at parts of every image of OUT, and say where in it labels are seen.

    Each image is seen as a whole and through a grid of windows: a coarse answer, not a detector's.
    Writes Parquet tables for each shard to --to: the embeddings of the windows, and for each image
    and label score, place and heat map. Called again it computes what is new or was changed; with
    other label sets no image is read.
    """
    from clipcap.stages.where import where as stage

    began = time.perf_counter()
    done = stage(
        storage.canonical(out),
        to,
        settings=settings.where,
        encoder=settings.embed,
        speed=settings.speed,
    )
    if page["page"]:
        _write_page(str(page["page"]), out, done, settings.where, int(page["top"] or 1))
    if as_json:
        click.echo(json.dumps(_told(done), indent=1))
        return
    _show(done, time.perf_counter() - began)


def _write_page(page: str, out: str, done: Places, asked: WhereSettings, top: int) -> None:
    from clipcap.report import places
    from clipcap.windows import Grid

    grid = Grid.of(asked.grid, overlap=asked.overlap)
    wanted = places.Asked(done.folder, grid, done.seen, top, asked.labels)
    text = places.render(storage.canonical(out), wanted)
    storage.write(storage.canonical(page), text.encode())


def _told(done: Places) -> dict[str, object]:
    counts = ("windows", "images", "without", "computed", "written", "unchanged", "removed")
    return {
        "folder": done.folder,
        **{name: getattr(done, name) for name in counts},
        "seen": [
            {"label_set": label_set, "label": label, "images": places.total(), "places": places}
            for (label_set, label), places in done.seen.items()
        ],
    }


def _show(done: Places, seconds: float) -> None:
    from flows.console import shown, tables_console

    without = f", {done.without:,} cannot be looked at" if done.without else ""
    click.echo(
        f"where     {done.images:,} images through {done.windows} windows each{without}: "
        f"{done.computed:,} computed, {done.written:,} tables written, "
        f"{done.unchanged:,} unchanged, {done.removed:,} removed, {seconds:.1f} s"
    )
    if done.seen:
        table = Table("label", "label set", box=None, pad_edge=False, header_style="bold")
        table.add_column("images", justify="right")
        table.add_column("mostly")
        order = sorted(done.seen.items(), key=lambda one: (-one[1].total(), one[0]))
        for (label_set, label), places in order[:_SHOWN]:
            mostly = ", ".join(f"{place} {count:,}" for place, count in places.most_common(3))
            table.add_row(escape(label), escape(label_set), f"{places.total():,}", mostly)
        tables_console().print(table)
    click.echo(f"written   {shown(done.folder)}")
