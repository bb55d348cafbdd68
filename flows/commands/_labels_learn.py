"""`clipcap labels learn`: an output and some labelled images in, a label set learnt from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from clipcap import storage
from clipcap.embedding import EmbedSettings
from clipcap.settings import Settings
from clipcap.stages.learn_labels import Learning, LearnSettings
from flows.commands import _options as options
from flows.commands._labels_kept import Place, keep
from flows.commands._options import Choice
from flows.commands._start import json_option, require_apart

if TYPE_CHECKING:
    from clipcap.labels.fitted import Fitted


class LearningSettings(Settings):
    """What `clipcap labels learn` may be told."""

    learn: LearnSettings = LearnSettings()
    """What labels are learnt from, and how."""
    embed: EmbedSettings = EmbedSettings()
    """Whose embeddings."""


@click.command("learn")
@options.choices(
    LearningSettings,
    Choice("--truth", ("learn.truth",), (LearnSettings, "truth")),
    Choice("--method", ("learn.method",), (LearnSettings, "method")),
    Choice("--label-set", ("learn.label_set",), (LearnSettings, "label_set")),
    Choice("--multi-label", ("learn.multi_label",), (LearnSettings, "multi_label"), bool),
    Choice("--min-images", ("learn.min_images",), (LearnSettings, "min_images"), int),
    options.MODEL,
)
@json_option
@click.option("--to", required=True, metavar="FILE", help="The label set, a .parquet file.")
@click.argument("out")
def learn_command(out: str, to: str, settings: LearningSettings, *, as_json: bool) -> None:
    """Learn labels from a handful of labelled images of OUT: no words, no text encoder.

    --truth is a file of images and labels (an empty label: none of these). The label set is used
    like any other: `clipcap label OUT --label-set FILE`.
    """
    from clipcap.labels import fitted
    from clipcap.stages import learn_labels

    name = fitted.name(to)  # refused before any work
    require_apart(settings.learn.truth, to)
    found = learn_labels.learn(
        storage.canonical(out), name, settings=settings.learn, encoder=settings.embed
    )
    keep(found, Place(to, out), _tell, as_json=as_json)


def _tell(found: Fitted[Learning]) -> None:
    told, count = found.told, found.bank.count
    click.echo(
        f"{found.bank.label_set.name}: {count:,} labels by {told.method}, from {told.images:,} "
        f"images, {told.none:,} of them none of these; {told.fewest:,} of the rarest. "
        f"Not used: {found.missing_images:,} images, {found.unknown_labels:,} labels"
    )
    if told.left_out:
        click.echo(f"left out  {', '.join(told.left_out[:10])}: too few images")
    if told.accuracy is None:
        click.echo("right     not known: nothing can be left out where a label has one image")
    else:
        click.echo(f"right     {told.accuracy:.1%} of images that had no part in it, in turns")
