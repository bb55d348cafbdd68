"""`clipcap labels fit`: a label set and an output in, a label set whose scores hold out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from clipcap import storage
from clipcap.embedding import EmbedSettings
from clipcap.labels.fits import Fit, FitSettings
from clipcap.settings import Settings
from flows.commands import _options as options
from flows.commands._labels_kept import Place, keep
from flows.commands._options import Choice
from flows.commands._start import json_option, require_apart

if TYPE_CHECKING:
    from clipcap.labels.accepting import Accepting
    from clipcap.labels.fitted import Fitted
    from clipcap.thresholds import Interval


class FittingSettings(Settings):
    """What `clipcap labels fit` may be told."""

    fit: FitSettings = FitSettings()
    """What the label set is fitted to, and how much that must show."""
    embed: EmbedSettings = EmbedSettings()
    """Whose embeddings."""


@click.command("fit")
@options.choices(
    FittingSettings,
    Choice("--truth", ("fit.truth",), (FitSettings, "truth")),
    Choice("--precision", ("fit.precision",), (FitSettings, "precision"), float),
    Choice("--none-rate", ("fit.none_rate",), (FitSettings, "none_rate"), float),
    Choice("--sample", ("fit.sample",), (FitSettings, "sample"), int),
    options.MODEL,
)
@json_option
@click.option("--to", required=True, metavar="FILE", help="The fitted label set, a .parquet file.")
@click.argument("out")
@click.argument("label_set", metavar="SET")
def fit_command(
    out: str, label_set: str, to: str, settings: FittingSettings, *, as_json: bool
) -> None:
    """Fit the label set SET to the embedded images of OUT, so that its scores can be trusted.

    Without --truth: unequal labels are made comparable, and the share --none-rate of the images
    gets no label. With --truth, a file of images and labels (an empty label: none of these): a
    score says how often it is right. FILE is a label set: `clipcap label OUT --label-set FILE`.
    """
    from clipcap.labels import fitted
    from clipcap.stages import fit_labels

    fitted.name(to)  # refused before any work
    require_apart(settings.fit.truth, to)
    found = fit_labels.fit(
        storage.canonical(out), label_set, settings=settings.fit, encoder=settings.embed
    )
    keep(found, Place(to, out), _tell, as_json=as_json)


def _tell(found: Fitted[Fit]) -> None:
    fit, accepting = found.told, found.told.accepting
    name, count = found.bank.label_set.name, found.bank.count
    click.echo(f"{name}: {count:,} labels, fitted to {fit.images:,} images of the collection")
    if fit.method == "truth":
        click.echo(
            f"truth     {fit.labelled:,} images, {fit.none:,} of them none of these; "
            f"{fit.labels_seen:,} of {count:,} labels are shown. "
            f"Not used: {found.missing_images:,} images, {found.unknown_labels:,} labels"
        )
        click.echo(
            f"right     {_percent(fit.right_before)} as it came, {_percent(fit.right_after)} now"
        )
        click.echo(
            f"error     {_spread(fit.error_before)} as it came, {_spread(fit.error_after)} now"
        )
    if fit.error_dropped is not None:
        click.echo(
            f"scores    stay as they came: fitted, they would miss by {fit.error_dropped.value:.3f}"
        )
    if fit.temperature is not None:
        click.echo(f"cosines   divided by {fit.temperature:.4g}{_levels(found)}")
    if accepting.rule == "own":
        click.echo("threshold as the label set has it")
    else:
        own = f", {accepting.own_thresholds:,} labels another" if accepting.own_thresholds else ""
        click.echo(f"threshold {_threshold(accepting)}{own}")
        click.echo(f"labelled  {_percent(accepting.coverage)} of the images")
    if accepting.precision and accepting.recall:
        click.echo(
            f"precision {_spread(accepting.precision)}, recall {_spread(accepting.recall)}, with "
            "the threshold of all"
        )
    if accepting.none_recall is not None:
        click.echo(
            f"none      found with precision {_percent(accepting.none_precision)} and recall "
            f"{_percent(accepting.none_recall)}"
        )
    if fit.method == "truth":
        click.echo(
            "Scores are judged on images that had no part in their fit, in turns; thresholds are "
            "chosen among these, and look a little better than they are."
        )


def _threshold(found: Accepting) -> str:
    return "none: all are accepted" if found.threshold is None else _spread(found.threshold)


def _levels(found: Fitted[Fit]) -> str:
    return ", less the level of each label in the collection" if found.told.is_normalised else ""


def _percent(share: float | None) -> str:
    return "nothing" if share is None else f"{share:.1%}"


def _spread(found: Interval | None) -> str:
    return (
        "unknown" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    )
