"""`clipcap run`: a source and an output in, a night done out."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from clipcap import storage
from clipcap.layout import Run
from clipcap.plans import Plan
from clipcap.stages import shard as stage
from flows.commands import _options as options
from flows.commands._start import Start, json_option, server_option, tell
from flows.settings import NightlySettings


@click.command()
@options.choices(
    NightlySettings,
    options.GLOB,
    options.MODEL,
    options.CAPTIONER,
    options.LABEL_SET,
    options.DEVICE,
    options.BATCH,
    options.RATE,
    options.LIMIT,
    options.SIDECARS,
)
@json_option
@server_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
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

    SOURCE is a folder, a bucket or prefix (s3://bucket/prefix), a table of URLs (.parquet, .csv) or
    WebDataset tars; OUT is a folder or prefix.
    """
    if how["dry_run"]:
        _tell_plan(_planned(source, out, settings, date), machine=how["as_json"])
        return
    from flows.nightly import nightly

    start = Start(server=how["server"], as_json=how["as_json"])
    finished = start(nightly, source, out, settings, date.date() if date else None)
    tell(finished, as_json=how["as_json"])


def _planned(source: str, out: str, settings: NightlySettings, date: datetime | None) -> Plan:
    from tasks.preflight import check_models

    devices = (settings.speed.device, settings.caption_speed.device)
    check_models.fn(settings.embed, settings.caption, settings.label.label_sets, devices)
    dt = (date or datetime.now(UTC)).date().isoformat()
    planned = Run(run_id="dry-run", out=storage.canonical(out), dt=dt)
    return stage.plan(source, run=planned, settings=settings.shard, write=False)


def _tell_plan(plan: Plan, *, machine: bool) -> None:
    if machine:
        click.echo(json.dumps(asdict(plan), indent=1))
        return
    click.echo(
        f"{plan.listed:,} images listed: {plan.new:,} new, {plan.changed:,} changed, "
        f"{plan.deleted:,} gone, {plan.unchanged:,} unchanged."
    )
    size = sum(part.size_bytes for part in plan.planned) / 1e6
    click.echo(
        f"Would write {len(plan.planned):,} shards ({size:,.1f} MB of images) and take images out "
        f"of {len(plan.retired):,}. Nothing was written."
    )
