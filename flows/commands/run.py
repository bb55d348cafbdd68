"""`clipcap run`: a source and an output in, a night done out."""

from __future__ import annotations

from datetime import datetime

import click

from flows.commands import _options as options
from flows.commands._start import Start, json_option, server_option, tell
from flows.commands.plan import foreseen
from flows.commands.plan import tell as tell_forecast
from flows.settings import NightlySettings


@click.command()
@options.choices(
    NightlySettings,
    options.KIND,
    options.GLOB,
    options.ONLY,
    options.MODEL,
    options.CAPTIONER,
    options.SUPPRESS,
    options.LABEL_SET,
    options.DEVICE,
    options.BATCH,
    options.RATE,
    options.LIMIT,
    options.ACCEPT_DRIFT,
    options.SIDECARS,
    options.TABLE_FORMAT,
)
@json_option
@server_option
@click.option("--dry-run", is_flag=True, help="Do what `clipcap plan` does.")
@click.option(
    "--date",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The date that new shards are filed under. [default: today, UTC]",
)
@click.argument("source")
@click.argument("out")
def run(
    source: str,
    out: str,
    settings: NightlySettings,
    date: datetime | None,
    **how: bool,
) -> None:
    """Caption and label what is new in SOURCE, and publish it in OUT.

    SOURCE is a folder, a bucket or prefix (s3://bucket/prefix), a table of URLs (.parquet, .csv),
    WebDataset tars, zip archives, an S3 inventory or a Hugging Face dataset; OUT is a folder or
    prefix.
    """
    if how["dry_run"]:
        tell_forecast(foreseen(source, out, settings, date), as_json=how["as_json"])
        return
    from flows.nightly import nightly

    start = Start(server=how["server"], as_json=how["as_json"])
    finished = start(nightly, source, out, settings, date.date() if date else None)
    tell(finished, as_json=how["as_json"])
