"""`clipcap migrate`: an output of an older contract in, the same output under today's out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict

import click

from clipcap import migrations
from clipcap.alone import alone
from clipcap.layout import CONTRACT
from flows.commands._start import json_option, new_run


@click.command()
@json_option
@click.option("--apply", is_flag=True, help="Do it; without it, only what would be done is told.")
@click.argument("out")
def migrate(out: str, *, as_json: bool, apply: bool) -> None:
    """Bring OUT, made by an older version, to today's contract.

    Nothing is computed again: each object is written once more, in one step, and a migration that
    was killed goes on where it was.
    """
    run = new_run(out)
    with alone(run, "clipcap migrate") if apply else nullcontext():
        found = migrations.migrate(run.out, apply=apply)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    older = sum(found.older.values())
    if not older:
        click.echo(f"All {found.objects} objects are of contract {CONTRACT} already.")
        return
    by = ", ".join(f"{count} of contract {number}" for number, count in sorted(found.older.items()))
    done = "are now" if apply else "would be"
    click.echo(f"{older} of {found.objects} objects ({by}) {done} of contract {CONTRACT}.")
    if not apply:
        click.echo(f"`clipcap migrate {out} --apply` does it.")
