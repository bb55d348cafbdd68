"""`clipcap models`: the models on this machine, and those that can be had."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.table import Table

from clipcap import models as library
from flows.commands._start import json_option


@click.command()
@json_option
@click.option("--all", "everything", is_flag=True, help="Print every published name.")
def models(*, as_json: bool, everything: bool) -> None:
    """List the models on this machine, and some that can be had."""
    from flows.console import tables_console

    rows = library.listing("all" if everything else "here")
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
        "in open_clip's form is a name too."
    )
