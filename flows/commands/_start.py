"""A flow and its parameters in, what it returns out: recorded by a Prefect server if one is set."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import click

from clipcap import credentials, models, outcomes, storage
from clipcap.errors import ServerError, SettingsError
from clipcap.layout import Run

if TYPE_CHECKING:
    from prefect import Flow

    from flows._ledger import Finished
    from flows.console import Lines

P = ParamSpec("P")
R = TypeVar("R")

_ANSWER_S: Final = 3.0
_WANTS_KEY: Final = (401, 403)


def server_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--no-server`, passed as `server`."""
    text = "Run here, unrecorded, even where PREFECT_API_URL names a Prefect server."
    return click.option(
        "--no-server", "server", is_flag=True, default=True, flag_value=False, help=text
    )(function)


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add `--json`, passed as `as_json`."""
    text = "Print one JSON object, and nothing else, on standard output."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def require_apart(truth: str, *written: str | None) -> None:
    """Do nothing where what is written is another file than what people wrote.

    Raises:
        SettingsError: it would take the place of the truth.
    """
    for place in written:
        if truth and place and storage.canonical(place) == storage.canonical(truth):
            raise SettingsError(
                f"A file that is written must be another one than the truth, but both are {place}. "
                "Name another; nothing was changed."
            )


class Start:
    """How a flow is started: recorded by a server or not, told to a person or not."""

    def __init__(self, *, server: bool, as_json: bool = False) -> None:
        self._server = server
        self._as_json = as_json

    def __call__(self, flow: Flow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the flow and return what it gives.

        Raises:
            ServerError: a server is set and does not answer.
        """
        from flows._tell import LISTENER

        run: Callable[P, R] = flow.fn
        if self._server and (url := server_url()):
            require_answer(url)
            _quieten_prefect()
            run = flow
        listener = None if self._as_json else _listener()
        token = LISTENER.set(listener)
        try:
            return run(*args, **kwargs)
        finally:
            LISTENER.reset(token)
            if listener is not None:
                listener.close()


def new_run(out: str) -> Run:
    """Return what a command signs that changes an output without a flow; its date is today's."""
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return Run(run_id, storage.canonical(out), now.date().isoformat())


def _listener() -> Lines:
    from flows.console import Bars, Lines

    return Bars() if sys.stderr.isatty() and sys.stdout.isatty() else Lines()


def server_url() -> str | None:
    """Return the Prefect server that the environment or the active profile names."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def require_answer(url: str) -> None:
    """Refuse a server that is not there, in seconds and not after minutes of retries.

    Raises:
        ServerError: says what did not answer, and how to do without it.
    """
    if credentials.has_login(url):
        raise ServerError(
            "The address of the Prefect server must not carry a login. Set PREFECT_API_AUTH_STRING "
            "beside it."
        )
    request = urllib.request.Request(f"{url}/health")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S):
            return
    except urllib.error.HTTPError as error:
        if error.code in _WANTS_KEY:
            return  # a server with a login; whether it lets us in, Prefect says better
        raise ServerError(_no_answer(url, f"{error.code} {error.reason}")) from error
    except (OSError, ValueError) as error:
        raise ServerError(_no_answer(url, getattr(error, "reason", error))) from error


def _no_answer(url: str, reason: object) -> str:
    origin = "PREFECT_API_URL" if "PREFECT_API_URL" in os.environ else "the Prefect profile"
    return (
        f"The Prefect server {url} (from {origin}) does not answer as one: {reason}. Start it with "
        "`prefect server start`, or run without it: add --no-server."
    )


def _quieten_prefect() -> None:
    """Leave the terminal to the lines of the command; the server gets Prefect's own as before."""
    from prefect.logging.handlers import PrefectConsoleHandler

    names = ("", "prefect", "prefect.flow_runs", "prefect.task_runs")
    for handler in [handler for name in names for handler in logging.getLogger(name).handlers]:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.CRITICAL)  # the command tells an error itself


def tell(finished: Finished, *, as_json: bool) -> None:
    """Print what a run did: for machines whole, for people what its lines did not say yet."""
    from flows.console import shown

    if as_json:
        click.echo(_as_json(finished))
    elif finished.published is not None:
        click.echo(f"{'report':<10}{shown(finished.published.report_url)}")


def _as_json(finished: Finished) -> str:
    from flows._artifacts import stage_rows

    night, published = finished.night, finished.published
    plan = night.plan
    counts = ("listed", "new", "changed", "deleted", "unchanged")
    told: dict[str, Any] = {
        "run_id": night.run.run_id,
        "flow": night.flow,
        "out": night.run.out,
        "dt": night.run.dt,
        "images": {name: getattr(plan, name) for name in counts} if plan else None,
        "rejected": outcomes.reasons(night.outcomes),
        "stages": stage_rows(night),
        "drift": night.drift and asdict(night.drift),
        "live": published.live if published else None,
        "report_url": published.report_url if published else None,
        "manifest_url": published.manifest_url if published else None,
    }
    return json.dumps(told, indent=1)


def typed(*words: str, model: str = models.BUNDLED) -> str:
    """Return a command of `clipcap` as a shell takes it, with its model where it is not bundled."""
    named = () if model == models.BUNDLED else ("--model", model)
    return shlex.join(("clipcap", *words, *named))
