"""`clipcap models`: the models there are, and which captioner an output's nights use."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.table import Table

from clipcap import modelnames, storage
from clipcap.embedding import EmbedSettings
from clipcap.metrics.paired import PairedSettings
from clipcap.settings import Settings
from clipcap.stages.caption import CaptionSpeed
from clipcap.stages.promote import Measure, PromoteSettings
from flows.commands import _options as options
from flows.commands._options import Choice
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.promotions import Promotion
    from clipcap.stages.promote import Judged


class PromotingSettings(Settings):
    """What `clipcap models promote` may be told."""

    promote: PromoteSettings = PromoteSettings()
    """What a captioner must show."""
    embed: EmbedSettings = EmbedSettings()
    """Whose embeddings it reads."""
    speed: CaptionSpeed = CaptionSpeed()
    """How fast; changes no result."""


def _choice(flag: str, kind: Any = str) -> Choice:  # noqa: ANN401 - as click's own
    name = flag.removeprefix("--")
    return Choice(flag, (f"promote.{name}",), (PromoteSettings, name), kind)


@click.group(invoke_without_command=True)
@json_option
@click.option("--all", "everything", is_flag=True, help="Print every published name.")
@click.pass_context
def models(context: click.Context, *, as_json: bool, everything: bool) -> None:
    """List the models on this machine, and some that can be had."""
    if context.invoked_subcommand is not None:
        return
    from flows.console import tables_console

    rows = modelnames.listing("all" if everything else "here")
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table("model", "kind", "size", "here", "note", box=None, pad_edge=False)
    for row in rows:
        size = "" if row.size_bytes is None else f"{row.size_bytes / 1e6:,.1f} MB"
        here = "yes" if row.on_this_machine else "no"
        table.add_row(row.name, row.kind, size, here, row.note)
    tables_console().print(table)
    click.echo(
        "\nGive one to --model or --captioner. A model that is not here is fetched once; a folder "
        "in the form of open_clip or transformers is a name too."
    )


@models.command("promote")
@options.choices(
    PromotingSettings,
    _choice("--references"),
    _choice("--measure", click.Choice(get_args(Measure))),
    _choice("--margin", float),
    Choice("--draws", ("promote.paired.draws",), (PairedSettings, "draws"), int),
    Choice("--confidence", ("promote.paired.confidence",), (PairedSettings, "confidence"), float),
    _choice("--scores"),
    Choice("--force", ("promote.reason",), (PromoteSettings, "reason")),
    options.MODEL,
    Choice("--device", ("speed.device",), (CaptionSpeed, "device")),
    Choice("--batch-size", ("speed.batch_size",), (CaptionSpeed, "batch_size"), int),
)
@json_option
@click.argument("out")
@click.argument("name")
def promote(out: str, name: str, settings: PromotingSettings, *, as_json: bool) -> None:
    """Make NAME the captioner that nights over OUT use, if it is not worse than the one before.

    NAME is a captioner trained in OUT, `bundled`, a folder, or its URL. Both captioners are judged
    on the images that people wrote captions for; ends with 1 if NAME is not promoted. Nights use
    it with --captioner promoted.
    """
    from clipcap.stages.promote import promote as stage

    judged = stage(
        storage.canonical(out),
        name,
        settings=settings.promote,
        encoder=settings.embed,
        speed=settings.speed,
    )
    if as_json:
        click.echo(json.dumps(_told(judged), indent=1))
    else:
        _show(judged, settings.promote.paired)
    if not judged.promoted:
        raise click.exceptions.Exit(1)


def _told(judged: Judged) -> dict[str, object]:
    return {
        "promoted": judged.promoted,
        "why": judged.why,
        "promotion": judged.promotion.model_dump(mode="json"),
        "differences": [asdict(one) for one in judged.differences],
    }


def _show(judged: Judged, paired: PairedSettings) -> None:
    from flows.commands.evaluate import show_differences

    found = judged.promotion
    if judged.differences:
        show_differences(judged.differences, paired)
        click.echo(f"A is {found.before}, promoted until now; B is {found.captioner_id}.")
    if found.signature:
        click.echo(f"signature  {found.signature}")
    state = "is promoted" if judged.promoted else "is not promoted"
    click.echo(f"{found.captioner_id} {state}. {judged.why}")


@models.command("promoted")
@json_option
@click.argument("out")
def promoted(out: str, *, as_json: bool) -> None:
    """Say which captioner of OUT is promoted, and which were before it."""
    from clipcap import promotions
    from flows.console import tables_console

    found = promotions.history(storage.canonical(out))
    if as_json:
        click.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=1))
        return
    if not found:
        click.echo(f"Nothing is promoted yet: `clipcap models promote {out} NAME` does that.")
        return
    table = Table("", "captioner", "when (UTC)", "before", "by", box=None, pad_edge=False)
    for one in found:
        when = f"{one.at:%Y-%m-%d %H:%M}"
        table.add_row(str(one.number), one.captioner_id, when, one.before or "", _by(one))
    tables_console().print(table)
    now = found[-1]
    click.echo(f"\n{now.captioner_id} is promoted: {now.captioner}, {now.captioner_sha256[:12]}.")


def _by(one: Promotion) -> str:
    if one.reason:
        return f"not judged: {one.reason}"
    compared = next((found for found in one.compared if found.metric == one.measure), None)
    if compared is None:
        return f"the first; cider_d {one.figures.get('cider_d', 0):.4f}, {one.images:,} images"
    return (
        f"{one.measure} {compared.before:.4f} to {compared.now:.4f} ({compared.low:+.4f} to "
        f"{compared.high:+.4f}), {one.images:,} images"
    )
