"""`clipcap evaluate` and `compare`: captions and what people wrote in, what they are worth out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from clipcap import storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.metrics.paired import PairedSettings
from clipcap.settings import Settings
from clipcap.stages.evaluate import EvaluateSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option

if TYPE_CHECKING:
    import pyarrow as pa

    from clipcap.metrics.paired import Difference
    from clipcap.stages.evaluate import Evaluation


class EvaluatingSettings(Settings):
    """What `clipcap evaluate` and `clipcap compare` may be told."""

    evaluate: EvaluateSettings = EvaluateSettings()
    """What is judged, and by what."""
    paired: PairedSettings = PairedSettings()
    """How surely two captioners are told apart."""
    embed: EmbedSettings = EmbedSettings()
    """The encoder that scored the captions: its text side judges them by the references."""
    speed: Speed = Speed()
    """Where the encoder runs."""


_DEVICE = Choice("--device", ("speed.device",), (Speed, "device"))
_REFERENCES = Choice("--references", ("evaluate.references",), (EvaluateSettings, "references"))
_JAVA = Choice("--java", ("evaluate.java",), (EvaluateSettings, "java"), bool)


@click.command()
@options.choices(
    EvaluatingSettings,
    Choice("--captioner", ("evaluate.captioner",), (EvaluateSettings, "captioner")),
    _REFERENCES,
    options.MODEL,
    _JAVA,
    _DEVICE,
)
@json_option
@click.option("--scores", metavar="FILE", help="Write what each caption is worth, as Parquet.")
@click.option("--page", metavar="FILE", help="Write the best and the worst with pictures, as HTML.")
@click.argument("out")
def evaluate(
    out: str,
    settings: EvaluatingSettings,
    scores: str | None,
    page: str | None,
    *,
    as_json: bool,
) -> None:
    """Judge the captions of OUT by what people wrote for the same images.

    BLEU, ROUGE-L, CIDEr-D, CLIPScore and RefCLIPScore, and METEOR and SPICE where they are
    installed; each figure with what it must be told with.
    """
    from clipcap.metrics import scorefile

    url = storage.canonical(out)
    found = _evaluated(url, settings)
    if scores:
        scorefile.write(scores, found.table, found.metadata())
    if page:
        storage.write(storage.canonical(page), _page(url, found).encode())
    if as_json:
        click.echo(json.dumps(_told(found), indent=1))
        return
    _show(found)


def _page(out: str, found: Evaluation) -> str:
    from clipcap.report import judged

    told = [f"{found.captioner_id}: {_left_out(found.metadata())}."]
    return judged.render(out, found.table, title=f"Captions by {found.captioner_id}", told=told)


def _left_out(footer: Mapping[str, str]) -> str:
    """Return which captioned or described images were not judged, by the footer of a score file."""
    references, caption = (
        int(footer.get(f"without_{name}", 0)) for name in ("references", "caption")
    )
    return f"left out {references:,} without references and {caption:,} without a caption"


def _evaluated(out: str, settings: EvaluatingSettings) -> Evaluation:
    from clipcap.stages.evaluate import evaluate as stage

    return stage(out, settings=settings.evaluate, encoder=settings.embed, speed=settings.speed)


def _told(found: Evaluation) -> dict[str, object]:
    counts = ("images", "without_references", "without_caption", "empty")
    return {
        "captioner_id": found.captioner_id,
        "model_id": found.model_id,
        "signature": found.signature,
        **{name: getattr(found, name) for name in counts},
        "figures": [asdict(figure) for figure in found.figures],
    }


def _show(found: Evaluation) -> None:
    from flows.console import tables_console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("with")
    for figure in found.figures:
        value = "not computed" if figure.value is None else f"{figure.value:.4f}"
        own = figure.signature.removeprefix(f"{figure.metric}|{found.signature}").lstrip("|")
        table.add_row(figure.metric, value, escape(figure.reason or own))
    tables_console().print(table)
    click.echo(
        f"\nsignature  {found.signature}\n{found.captioner_id}: {found.images:,} images judged, "
        f"{found.empty:,} of them with an empty caption; {_left_out(found.metadata())}."
    )


@click.command()
@options.choices(
    EvaluatingSettings,
    Choice("--draws", ("paired.draws",), (PairedSettings, "draws"), int),
    Choice("--confidence", ("paired.confidence",), (PairedSettings, "confidence"), float),
    Choice("--seed", ("paired.seed",), (PairedSettings, "seed"), int),
    _REFERENCES,
    options.MODEL,
    _JAVA,
    _DEVICE,
)
@json_option
@click.option("--out", help="Output whose captioners A and B are; else A and B are score files.")
@click.option("--page", metavar="FILE", help="Write what got better and worse, as HTML.")
@click.argument("a")
@click.argument("b")
def compare(
    a: str,
    b: str,
    settings: EvaluatingSettings,
    *,
    as_json: bool,
    **where: str | None,
) -> None:
    """Say for each metric whether B is better, not worse or worse than A.

    A and B are score files of `clipcap evaluate --scores`, or with --out two captioners. The
    interval is of B - A, over images drawn again and again; worse: all of it is below 0.
    """
    from clipcap.metrics import paired

    out = storage.canonical(where["out"]) if where["out"] else None
    left, right = _tables(a, b, out, settings)
    found = paired.compare(left, right, settings.paired)
    if where["page"]:
        _write_page(where["page"], out, (left, right), title=f"From {a} to {b}")
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    show_differences(found, settings.paired)
    click.echo("\n".join(_sides(left, right)))


def _tables(
    a: str, b: str, out: str | None, settings: EvaluatingSettings
) -> tuple[pa.Table, pa.Table]:
    from clipcap.metrics import scorefile

    if out is None:
        return scorefile.read(a), scorefile.read(b)
    made = []
    for name, other in ((a, b), (b, a)):
        asked = settings.evaluate.model_copy(update={"captioner": name, "among": (other,)})
        found = _evaluated(out, settings.model_copy(update={"evaluate": asked}))
        made.append(found.table.replace_schema_metadata(found.metadata()))
    return made[0], made[1]


def _sides(left: pa.Table, right: pa.Table) -> list[str]:
    """Return a sentence each on whose captions A and B are, and which images were left out."""
    from clipcap import tables

    footers = [(letter, tables.metadata(side)) for letter, side in (("A", left), ("B", right))]
    return [
        f"{letter} is {footer.get('captioner_id', '?')}: {_left_out(footer)}."
        for letter, footer in footers
    ]


def _write_page(
    page: str, out: str | None, tables: tuple[pa.Table, pa.Table], *, title: str
) -> None:
    from clipcap.errors import SettingsError
    from clipcap.report import judged

    if out is None:
        raise SettingsError("A page needs the pictures: say with --out which output they are of.")
    told = [*_sides(*tables), "Captions by A are struck out, those by B above them."]
    text = judged.render(out, tables[1], title=title, told=told, before=tables[0])
    storage.write(storage.canonical(page), text.encode())


def show_differences(found: Sequence[Difference], settings: PairedSettings) -> None:
    """Print a table of two captioners' figures, their difference and its interval."""
    from flows.console import tables_console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    for name in ("A", "B", "B - A", f"{settings.confidence:.0%} interval"):
        table.add_column(name, justify="right")
    table.add_column("B is")
    colours = {"better": "green", "not worse": "", "worse": "red"}
    for one in found:
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        cells = [f"{one.a:.4f}", f"{one.b:.4f}", f"{one.difference:+.4f}", interval]
        table.add_row(one.metric, *cells, one.verdict, style=colours[one.verdict])
    tables_console().print(table)
    click.echo(f"\n{settings.draws:,} draws of {found[0].images if found else 0:,} images.")
