"""`clipcap automations`: a file of automations in, how the server's stand to it out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from clipcap.errors import ServerError
from flows.commands._start import json_option, require_answer, server_url

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

    from flows.automations import Wanted

_notify = click.option(
    "--notify",
    metavar="TYPE/NAME",
    help="Block that sends the notifications, such as slack-webhook/ops; else as they are now.",
)


@click.group()
def automations() -> None:
    """Compare automations of the Prefect server with a file, or bring them up to date.

    Ours are those whose names begin with "clipcap: "; all others are left alone.
    """


@automations.command()
@json_option
@_notify
@click.argument("file")
def show(file: str, notify: str | None, *, as_json: bool) -> None:
    """Say how the server's automations stand to those of FILE."""
    from flows import automations as kept

    wanted = _read(file)
    with kept.server() as client:
        found = kept.differences(client, wanted, _block(client, notify))
    if as_json:
        click.echo(json.dumps([{"name": one.name, "state": one.state} for one in found], indent=1))
        return
    for one in found:
        paused = "" if all(there.enabled for there in one.found) else " (paused)"
        click.echo(f"{one.state:<16}{one.name}{paused}")


@automations.command()
@_notify
@click.argument("file")
def apply(file: str, notify: str | None) -> None:
    """Make or mend the server's automations after FILE; a second time changes nothing."""
    from flows import automations as kept

    wanted = _read(file)
    with kept.server() as client:
        for line in kept.apply(client, wanted, _block(client, notify)):
            click.echo(line)


def _block(client: SyncPrefectClient, notify: str | None) -> UUID | None:
    from flows.automations import block

    return None if notify is None else block(client, notify)


def _read(file: str) -> list[Wanted]:
    from flows import automations as kept

    wanted = kept.read(file)
    url = server_url()
    if url is None:
        raise ServerError(
            "A Prefect server must be set, but PREFECT_API_URL is not. "
            "`prefect server start` starts one and says its address."
        )
    require_answer(url)
    return wanted
