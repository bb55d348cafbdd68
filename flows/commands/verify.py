"""`clipcap verify`: an output in, every file that is not as it must be out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict

import click

from clipcap import verify as library
from clipcap.alone import alone
from flows.commands._start import json_option, new_run


@click.command()
@json_option
@click.option(
    "--full", is_flag=True, help="Read every byte of the tars too, and the lists of all runs."
)
@click.option(
    "--repair",
    is_flag=True,
    help="Mend what is damaged, losing nothing that is good; the next run makes what is missing. "
    "Without it, only what would be done is told.",
)
@click.argument("out")
def verify(out: str, *, as_json: bool, full: bool, repair: bool) -> None:
    """Check every file of OUT against contract, digests and commits.

    Ends with 1 if readers would get wrong rows or none and nothing was repaired. A warning heals
    with the next whole run.
    """
    with alone(new_run(out), "clipcap verify --repair") if repair else nullcontext():
        found = library.verify(out, mode="full" if full else "fast")
        mended = library.repair(found, apply=repair)
    if as_json:
        told = {"ok": found.ok, **asdict(found), "repaired": repair}
        click.echo(json.dumps({**told, "mended": [asdict(one) for one in mended]}, indent=1))
    else:
        _tell(out, found, mended, repair=repair)
    if not (found.ok or repair):
        raise click.exceptions.Exit(1)


def _tell(
    out: str, found: library.Verification, mended: Sequence[library.Mending], *, repair: bool
) -> None:
    for problem in found.problems:
        click.echo(str(problem))
    for mending in mended:
        click.echo(f"{'done' if repair else 'would'}: {mending}")
    click.echo(str(found))
    if mended and not repair:
        click.echo(f"`clipcap verify {out} --repair` does what stands behind `would`.")
    elif mended or not found.ok:
        click.echo(f"Now the next run makes what is missing: `clipcap run SOURCE {out}`.")
