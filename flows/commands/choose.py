"""`clipcap choose`: candidate texts in, the ones that fit each image best out."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from clipcap import promotions, storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.settings import Settings
from clipcap.stages.choose import ChooseSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.stages.choose import Choices

_SHOWN = 20


class ChoosingSettings(Settings):
    """What `clipcap choose` may be told."""

    choose: ChooseSettings = ChooseSettings()
    """What images choose from, and by what."""
    embed: EmbedSettings = EmbedSettings()
    """The encoder of the embeddings: its text side reads the candidates."""
    speed: Speed = Speed()
    """Where the models run."""


@click.command()
@options.choices(
    ChoosingSettings,
    Choice("--candidates", ("choose.candidates",), (ChooseSettings, "candidates")),
    Choice(
        "--by",
        ("choose.by",),
        (ChooseSettings, "by"),
        click.Choice(["clip_score", "logprob", "both"]),
    ),
    Choice("--captioner", ("choose.captioner",), (ChooseSettings, "captioner")),
    Choice("--typical", ("choose.typical",), (ChooseSettings, "typical"), int),
    Choice("--ends", ("choose.ends",), (ChooseSettings, "ends"), bool),
    Choice("--top-k", ("choose.top_k",), (ChooseSettings, "top_k"), int),
    options.MODEL,
    Choice("--device", ("speed.device",), (Speed, "device")),
)
@json_option
@click.option("--to", required=True, metavar="FOLDER", help="Where the tables are written.")
@click.argument("out")
def choose(out: str, settings: ChoosingSettings, to: str, *, as_json: bool) -> None:
    """Choose for every image of OUT among candidate texts the ones that fit best.

    Writes a Parquet table for each shard to --to: the best candidates of each image with their
    scores. Called again it computes what is new or was changed.
    """
    from clipcap.stages.choose import choose as stage

    began = time.perf_counter()
    asked = settings.choose
    if asked.by != "clip_score":
        captioner = promotions.resolved(storage.canonical(out), asked.captioner)
        asked = asked.model_copy(update={"captioner": captioner})
    done = stage(
        storage.canonical(out),
        to,
        settings=asked,
        encoder=settings.embed,
        speed=settings.speed,
    )
    if as_json:
        click.echo(json.dumps(_told(done), indent=1))
        return
    _show(done, settings.choose, time.perf_counter() - began)


def _told(done: Choices) -> dict[str, object]:
    counts = ("images", "without", "computed", "written", "unchanged", "removed")
    left_out = ("blank", "repeated", "unmatched")
    return {
        "folder": done.folder,
        **{name: getattr(done, name) for name in counts},
        "candidates": len(done.candidates.same) or None,
        **{name: getattr(done.candidates, name) for name in left_out},
        "chosen": dict(done.chosen.most_common()),
    }


def _show(done: Choices, settings: ChooseSettings, seconds: float) -> None:
    from flows.console import shown, tables_console

    same = len(done.candidates.same)
    among = f"{same:,} candidates" if same else "their own candidates"
    without = f", {done.without:,} have none" if done.without else ""
    click.echo(
        f"choose    {done.images:,} images among {among} by {settings.by}{without}: "
        f"{done.computed:,} computed, {done.written:,} tables written, "
        f"{done.unchanged:,} unchanged, {done.removed:,} removed, {seconds:.1f} s"
    )
    if done.chosen:
        table = Table("candidate", box=None, pad_edge=False, header_style="bold")
        table.add_column("images", justify="right")
        for text, count in done.chosen.most_common(_SHOWN):
            table.add_row(escape(text), f"{count:,}")
        tables_console().print(table)
    click.echo(f"written   {shown(done.folder)}")
