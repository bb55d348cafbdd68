"""`clipcap verify`: an output in, every file that is not as it must be out."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from clipcap import verify as library
from flows.commands._start import json_option


@click.command()
@json_option
@click.option("--full", is_flag=True, help="Read every byte of the tars too.")
@click.argument("out")
def verify(out: str, *, as_json: bool, full: bool) -> None:
    """Check every file of OUT against contract, digests and commits.

    Ends with 1 if readers would get wrong rows or none. A warning heals with the next whole run.
    """
    found = library.verify(out, mode="full" if full else "fast")
    if as_json:
        click.echo(json.dumps({"ok": found.ok, **asdict(found)}, indent=1))
    else:
        for problem in found.problems:
            click.echo(str(problem))
        click.echo(str(found))
    if not found.ok:
        raise click.exceptions.Exit(1)
