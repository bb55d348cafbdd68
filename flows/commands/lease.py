"""`clipcap lease`: an output in, who works on it out; or its lease ended."""

from __future__ import annotations

import json
from typing import Any

import click

from clipcap import holders, leases, storage
from clipcap.holders import Found
from flows.commands._start import json_option


@click.command()
@json_option
@click.option("--release", is_flag=True, help="End it: for a holder whose machine is gone.")
@click.argument("out")
def lease(out: str, *, as_json: bool, release: bool) -> None:
    """Say who works on OUT, since when, and the last sign of life.

    A holder that lives after all sees that its lease was ended, and stops where nothing is lost.
    """
    url = storage.canonical(out)
    found = leases.release(url) if release else holders.newest(url)
    if as_json:
        click.echo(json.dumps(_told(found), indent=1))
        return
    if release:
        click.echo(f"Ended: {found}." if found else "Nobody holds it.")
        return
    click.echo(_sentence(found) if found else "Nobody holds it, and nobody ever did.")


def _sentence(found: Found) -> str:
    if found.holder is None:
        return f"Held by {found}. `--release` ends it."
    seen = f"{found.holder.seen:%Y-%m-%d %H:%M:%S} UTC ({max(found.quiet_s, 0):.0f} s ago)"
    if found.holder.released:
        return f"Nobody holds it. The last one was {found}, until {seen}."
    if found.holder.is_gone:
        return f"Nobody holds it: the process of {found} is gone. The next run takes over."
    late = found.quiet_s >= leases.Times().quiet_s
    hint = "\nThat is long ago: the next run looks on, and takes over if nothing moves." * late
    return f"Held by {found}.\nLast sign of life: {seen}.{hint}"


def _told(found: Found | None) -> dict[str, Any] | None:
    if found is None:
        return None
    holder = found.holder
    known = holder.model_dump(mode="json", exclude={"token", "life"}) if holder else {}
    is_held = holder is None or not holder.is_gone
    return {"number": found.number, "held": is_held, **known}
