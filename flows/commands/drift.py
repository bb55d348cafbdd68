"""`clipcap drift`: an output in, how its newest night compares with those before it out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.table import Table

from clipcap import records, storage
from clipcap.errors import NotFoundError
from flows.commands._start import json_option

if TYPE_CHECKING:
    from clipcap.stability import Drift


@click.command()
@json_option
@click.argument("out")
def drift(out: str, *, as_json: bool) -> None:
    """Say how the newest night over OUT differs from those before it.

    It stands in the night's row of `runs`, also where the night was stopped and not published.
    """
    found = records.newest_drift(storage.canonical(out))
    if found is None:
        raise NotFoundError(
            f"{out} must be the output of a whole night, but none of its last runs was compared "
            "with others. Is the address right? `clipcap run SOURCE OUT` makes one."
        )
    if as_json:
        click.echo(json.dumps(asdict(found) | {"level": found.drift.level}, indent=1))
        return
    told = found.drift
    click.echo(
        f"Run {found.run_id} of {found.dt} ({found.state}): {told.images:,} new images beside "
        f"{told.before:,} of {told.nights:,} earlier dates."
    )
    _show(told)


def _show(told: Drift) -> None:
    from clipcap.stages.drift import sentence
    from flows.console import tables_console

    if told.measures:
        table = Table("measure", "of", "value", "by chance", "limit", "", box=None, pad_edge=False)
        for one in told.measures:
            limit = "" if one.limit is None else f"{one.limit:g}"
            numbers = (f"{one.value:.3f}", f"{one.chance:.3f}", limit)
            table.add_row(one.name, one.of, *numbers, one.level)
        tables_console().print(table)
    else:
        click.echo("Too few images to compare.")
    for measure in told.over:
        click.echo(f"{measure.level}: {sentence(measure)}.")
    if told.accepted:
        click.echo(f"Accepted: {told.accepted}.")
    if told.canaries:
        click.echo(f"{len(told.canaries) - len(told.moved)} of {len(told.canaries)} canaries hold.")
    for canary in told.moved:
        click.echo(f"{canary.level}: {canary.image}: {canary.why}.")
