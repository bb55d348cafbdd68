"""`clipcap labels evaluate`: a label set and what people say of the images in, its figures out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click
from rich.markup import escape
from rich.table import Table

from clipcap import storage
from clipcap.embedding import EmbedSettings
from clipcap.settings import Settings
from clipcap.stages.evaluate_labels import EvaluateLabelsSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option, require_apart

if TYPE_CHECKING:
    from clipcap.labels.judged import Figure
    from clipcap.report.labelled import Labelled
    from clipcap.stages.evaluate_labels import Evaluation

_WORST: Final = 10


class EvaluatingLabelsSettings(Settings):
    """What `clipcap labels evaluate` may be told."""

    evaluate_labels: EvaluateLabelsSettings = EvaluateLabelsSettings()
    """What a label set is judged by."""
    embed: EmbedSettings = EmbedSettings()
    """Whose embeddings; those of a fitted label set are known."""


def _choice(name: str, kind: type = str) -> Choice:
    path = f"evaluate_labels.{name}"
    return Choice(f"--{name}", (path,), (EvaluateLabelsSettings, name), kind)


@click.command("evaluate")
@options.choices(
    EvaluatingLabelsSettings, _choice("truth"), _choice("threshold", float), options.MODEL
)
@json_option
@click.option("--scores", metavar="FILE", help="Write the labels of each image, as Parquet.")
@click.option(
    "--page", metavar="FILE", help="Write all figures, and errors with pictures, as HTML."
)
@click.argument("out")
@click.argument("label_set", metavar="SET")
def evaluate_command(
    out: str,
    label_set: str,
    settings: EvaluatingLabelsSettings,
    *,
    as_json: bool,
    **files: str | None,
) -> None:
    """Judge the label set SET by what people say of the images of OUT.

    Accuracy, recall, F1, average precision, AUC, calibration, what is wrong at which coverage, and
    how well "none of these" is found; from stored embeddings, no image is read but for the page.
    """
    from clipcap import tables
    from clipcap.labels import bank
    from clipcap.report import labelled
    from clipcap.stages.evaluate_labels import evaluate_labels as stage

    require_apart(settings.evaluate_labels.truth, *files.values())
    url = storage.canonical(out)
    found = stage(
        url, bank.load(label_set), settings=settings.evaluate_labels, encoder=settings.embed
    )
    if scores := files["scores"]:
        storage.write(storage.canonical(scores), tables.to_bytes(found.table, found.metadata()))
    if page := files["page"]:
        text = labelled.render(url, _shown(found))
        storage.write(storage.canonical(page), text.encode())
    if as_json:
        click.echo(json.dumps(found.told(), indent=1))
        return
    _show(found)


def _shown(found: Evaluation) -> Labelled:
    from clipcap.report.labelled import Labelled

    return Labelled(
        title=f"Labels of {found.label_set}",
        told=(_counted(found),),
        signature=found.signature,
        names=found.names,
        judged=found.judged,
        table=found.table,
        rows=found.rows,
    )


def _counted(found: Evaluation) -> str:
    counts = found.counts
    return (
        f"{counts['images']:,} images judged, {counts['none_of_these']:,} of them none of these; "
        f"left out: {counts['not_embedded']:,} not embedded, {counts['left_out']:,} with unknown "
        f"labels alone, {counts['missing_images']:,} not in the output."
    )


def _show(found: Evaluation) -> None:
    from flows.console import tables_console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("with 95 % confidence", justify="right")
    table.add_column("of", justify="right")
    for one in found.judged.figures:
        table.add_row(*_cells(one))
    tables_console().print(table)
    if len(found.judged.levels) > 1:
        tables_console().print("", _levels(found))
    if found.judged.confusions:
        tables_console().print("", _confusions(found))
    click.echo(f"\n{_counted(found)}\nsignature  {found.signature}")


def _cells(one: Figure) -> tuple[str, str, str, str]:
    if one.value is None:
        return one.metric, "not computed", one.reason, ""
    if one.share is None:
        return one.metric, f"{one.value:.4f}", "", ""
    interval = f"{one.share.low:.4f} to {one.share.high:.4f}"
    return one.metric, f"{one.value:.4f}", interval, f"{one.share.hits:,} / {one.share.among:,}"


def _levels(found: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("level", "labels", "images", "top1", "mean recall", "macro F1"):
        table.add_column(name, justify="right")
    for at, one in enumerate(found.judged.levels, start=1):
        top1 = "" if one.top1 is None else f"{one.top1.value:.4f}"
        numbers = [f"{one.mean_recall:.4f}", f"{one.macro_f1:.4f}"]
        table.add_row(str(at), f"{one.labels:,}", f"{one.images:,}", top1, *numbers)
    return table


def _confusions(found: Evaluation) -> Table:
    table = Table("is", "was taken for", box=None, pad_edge=False, header_style="bold")
    table.add_column("images", justify="right")
    for one in found.judged.confusions[:_WORST]:
        table.add_row(
            escape(found.names[one.true]), escape(found.names[one.given]), f"{one.count:,}"
        )
    return table
