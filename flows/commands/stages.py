"""`clipcap shard`, `embed`, `caption`, `label`, `train`: one stage by itself."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import get_args

import click

from clipcap import storage, torchrun
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError
from clipcap.layout import Run
from clipcap.pairs import Embeddings
from clipcap.settings import Settings
from clipcap.stages.train import Trained, TrainSettings
from clipcap.training import TrainSettings as LoopSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import Start, json_option, server_option, tell, typed
from flows.settings import NightlySettings


class TrainingSettings(Settings):
    """What `clipcap train` may be told."""

    train: TrainSettings = TrainSettings()
    """Which captioner, and how."""
    embed: EmbedSettings = EmbedSettings()
    """Whose embeddings it learns to read."""


@click.command()
@options.choices(
    NightlySettings, options.KIND, options.GLOB, options.ONLY, options.RATE, options.LIMIT
)
@json_option
@server_option
@click.argument("source")
@click.argument("out")
def shard(source: str, out: str, settings: NightlySettings, **how: bool) -> None:
    """Read what is new in SOURCE into shards of OUT."""
    from flows.shard import shard as flow

    finished = Start(**how)(flow, source, out, settings.shard, settings.max_reject_rate)
    tell(finished, as_json=how["as_json"])


@click.command()
@options.choices(NightlySettings, options.MODEL, options.DEVICE, options.BATCH)
@json_option
@server_option
@click.argument("out")
def embed(out: str, settings: NightlySettings, **how: bool) -> None:
    """Embed every live image of OUT that is not embedded yet."""
    from flows.embed import embed as flow

    size = settings.shards_per_partition
    finished = Start(**how)(flow, out, settings.embed, settings.speed, size)
    tell(finished, as_json=how["as_json"])


@click.command()
@options.choices(
    NightlySettings,
    options.CAPTIONER,
    options.MODEL,
    options.SUPPRESS,
    options.DEVICE,
    options.BATCH,
)
@json_option
@server_option
@click.argument("out")
def caption(out: str, settings: NightlySettings, **how: bool) -> None:
    """Caption every embedded image of OUT that has no caption yet."""
    from flows.caption import caption as flow

    if settings.caption is None:
        raise SettingsError("There must be a captioner to caption with, but the settings say none.")
    size, speed = settings.shards_per_partition, settings.caption_speed
    finished = Start(**how)(flow, out, settings.caption, settings.embed, speed, size)
    tell(finished, as_json=how["as_json"])


@click.command()
@options.choices(NightlySettings, options.LABEL_SET, options.MODEL)
@json_option
@server_option
@click.argument("out")
def label(out: str, settings: NightlySettings, **how: bool) -> None:
    """Label every embedded image of OUT that has no labels yet."""
    from flows.label import label as flow

    size = settings.shards_per_partition
    finished = Start(**how)(flow, out, settings.label, settings.embed, size)
    tell(finished, as_json=how["as_json"])


def _left_out(trained: Trained) -> str:
    """Return the line on captions that were not used; nothing where all were."""
    counts = (trained.captions_unmatched, trained.captions_blank)
    if not any(counts):
        return ""
    return "left out  {:,} captions of no image of the output, {:,} blank ones\n".format(*counts)


@click.command()
@options.choices(
    TrainingSettings,
    Choice("--name", ("train.name",), (TrainSettings, "name")),
    Choice("--start", ("train.start",), (TrainSettings, "start")),
    Choice("--captions", ("train.captions",), (TrainSettings, "captions")),
    Choice(
        "--embeddings",
        ("train.embeddings",),
        (TrainSettings, "embeddings"),
        click.Choice(get_args(Embeddings)),
    ),
    Choice("--texts", ("train.texts",), (TrainSettings, "texts")),
    Choice("--epochs", ("train.loop.epochs",), (LoopSettings, "epochs"), int),
    Choice("--steps", ("train.loop.steps",), (LoopSettings, "steps"), int),
    Choice(
        "--learning-rate", ("train.loop.learning_rate",), (LoopSettings, "learning_rate"), float
    ),
    options.MODEL,
    Choice("--device", ("train.device",), (TrainSettings, "device")),
)
@json_option
@server_option
@click.argument("out")
def train(out: str, settings: TrainingSettings, **how: bool) -> None:
    """Train a captioner on the captions that people wrote for OUT's images, or on texts alone."""
    from flows.console import shown
    from flows.train import train as flow

    if torchrun.rank():
        _help(out, settings)
        return
    trained = Start(**how)(flow, out, settings.train, settings.embed)
    if how["as_json"]:
        click.echo(json.dumps(asdict(trained), indent=1))
        return
    loss = (
        "" if trained.validation_loss is None else f", held-out loss {trained.validation_loss:.3f}"
    )
    words = ("caption", out, "--captioner", shown(trained.folder))
    done = "was trained already" if trained.was_there else f"trained in {trained.seconds:.1f} s"
    click.echo(
        f"train     {trained.captioner_id} {done} on {_learned(trained)}{loss}\n"
        f"{_left_out(trained)}"
        f"use it    {typed(*words, model=settings.embed.model)}"
    )
    if trained.report_url:
        click.echo(f"report    {shown(trained.report_url)}")


def _help(out: str, settings: TrainingSettings) -> None:
    """Learn beside torchrun's first process, which alone tells, records and writes."""
    from clipcap.stages import train as stage

    logging.disable(logging.WARNING)
    run = Run(run_id="", out=storage.canonical(out), dt="")
    stage.train(run, settings=settings.train, encoder=settings.embed)


def _learned(trained: Trained) -> str:
    parts = []
    if trained.texts:
        parts.append(f"{trained.texts:,} texts")
    if trained.images:
        parts.append(f"{trained.captions:,} captions of {trained.images:,} images")
    return " and ".join(parts)
