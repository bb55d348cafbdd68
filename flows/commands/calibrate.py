"""`clipcap calibrate-captions`: captions, and perhaps labels of them in; thresholds out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from clipcap import storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.review import REASONS
from clipcap.settings import Settings
from clipcap.stages.calibrate import MEASURES, CalibrateSettings
from clipcap.stages.caption import CaptionSettings
from clipcap.thresholds import ThresholdSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option, typed
from flows.settings import settled

if TYPE_CHECKING:
    from clipcap.stages.calibrate import Calibrated
    from clipcap.thresholds import Interval, Measured


class CalibratingSettings(Settings):
    """What `clipcap calibrate-captions` may be told."""

    calibrate: CalibrateSettings = CalibrateSettings()
    """What is measured, and on what."""
    caption: CaptionSettings = CaptionSettings()
    """Whose captions, as `clipcap caption` was told."""
    embed: EmbedSettings = EmbedSettings()
    """The encoder that scored them."""
    speed: Speed = Speed()
    """Where the encoder runs."""


def _threshold(flag: str, name: str) -> Choice:
    return Choice(flag, (f"calibrate.thresholds.{name}",), (ThresholdSettings, name), float)


@click.command()
@options.choices(
    CalibratingSettings,
    Choice("--captioner", ("caption.captioner",), (CaptionSettings, "captioner")),
    options.MODEL,
    Choice("--labels", ("calibrate.labels",), (CalibrateSettings, "labels")),
    _threshold("--precision", "precision"),
    _threshold("--wrong-passed", "wrong_passed"),
    _threshold("--lowest", "lowest"),
    Choice(
        "--measure",
        ("calibrate.measures",),
        (CalibrateSettings, "measures"),
        click.Choice(MEASURES),
        more=" Give the option once for each.",
    ),
    Choice(
        "--quantile",
        ("calibrate.quantiles",),
        (CalibrateSettings, "quantiles"),
        click.Choice(MEASURES),
        more=" Give the option once for each.",
    ),
    Choice("--sample", ("calibrate.sample",), (CalibrateSettings, "sample"), int),
    Choice("--min-words", ("calibrate.min_words",), (CalibrateSettings, "min_words"), int),
    Choice(
        "--suppress",
        ("calibrate.suppress",),
        (CalibrateSettings, "suppress"),
        click.Choice(REASONS),
        more=" Give the option once for each.",
        on=False,
    ),
    Choice("--device", ("speed.device",), (Speed, "device")),
)
@json_option
@click.option("--dry-run", is_flag=True, help="Tell what is measured, and keep nothing.")
@click.argument("out")
def calibrate_captions(
    out: str, settings: CalibratingSettings, *, as_json: bool, dry_run: bool
) -> None:
    """Measure below which scores captions of OUT want a second look; keep it by the captioner.

    Without labels: the CLIPScore that captions of other images seldom reach, and the lowest share
    of the log-probabilities. With --labels, a table of image and label (good or bad): below which
    scores the captions are bad with the precision asked for. `clipcap caption` then judges the
    captions of OUT anew, without a model.
    """
    from clipcap import review
    from clipcap.stages.calibrate import calibrate as stage

    caption = settled(settings.caption, out)
    done = stage(
        storage.canonical(out),
        settings=settings.calibrate,
        captioner=caption,
        encoder=settings.embed,
        speed=settings.speed,
    )
    kept = None if dry_run else review.write_card(caption.captioner, done.card)
    if as_json:
        told = {**asdict(done), "card": done.card.model_dump(mode="json"), "kept_in": kept}
        click.echo(json.dumps(told, indent=1))
        return
    _show(done)
    if kept is None:
        _tell_settings(done, dry_run=dry_run)
        return
    words = ("caption", out, "--captioner", settings.caption.captioner)
    click.echo(
        f"\nkept in {storage.local_path(kept) or kept}\n"
        f"use it  {typed(*words, model=settings.embed.model)}"
    )


def _show(done: Calibrated) -> None:
    from flows.console import tables_console

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("doubted")
    for name in ("below", "interval", "are", "precision", "recall"):
        table.add_column(name, justify="right")
    table.add_column("by")
    for one in done.card.thresholds:
        interval = f"{one.threshold.low:.3g} to {one.threshold.high:.3g}"
        cells = [f"{one.threshold.value:.4g}", interval, f"{one.flagged:.1%}"]
        rates = [_rate(one.precision), _rate(one.recall)]
        table.add_row(one.measure, *cells, *rates, _by(one))
    for name, why in done.not_measured.items():
        table.add_row(name, "not measured", "", "", "", "", escape(why))
    tables_console().print(table)
    reasons = ", ".join(f"{name} {count:,}" for name, count in done.reasons.items())
    click.echo(
        f"\n{done.card.captioner_id}: {done.captions:,} captions looked at. By these rules "
        f"{done.doubted:,} want a second look ({reasons or 'none'}), {done.suppressed:,} are not "
        "shown."
    )
    if done.bad is not None:
        click.echo(
            f"Of those {done.doubted:,} people called {done.doubted_bad:,} bad, of all "
            f"{done.bad:,}. {done.unused_labels:,} labels were not used."
        )


def _rate(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def _by(one: Measured) -> str:
    if one.method == "labels":
        return f"{one.captions:,} labels, {one.wrong:,} of them bad"
    if one.method == "quantile":
        return f"the lowest {one.asked:.1%} of {one.captions:,}"
    return f"{one.asked:.1%} of {one.wrong:,} wrong pairs pass, AUC {one.auc:.3f}"


def _tell_settings(done: Calibrated, *, dry_run: bool) -> None:
    """Say how to use thresholds that are kept nowhere."""
    why = "Nothing was kept" if dry_run else "The bundled captioner is part of the program"
    lines = [f"min_{one.measure} = {one.threshold.value:.6g}" for one in done.card.thresholds]
    lines.append(f"min_words = {done.card.min_words}")
    if done.card.suppress:
        lines.append(f"suppress = {json.dumps(done.card.suppress)}")
    click.echo(f"\n{why}; in a settings file these say the same:\n\n[caption.review]")
    click.echo("\n".join(lines))
