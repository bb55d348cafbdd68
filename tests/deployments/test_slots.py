"""A real server is started anew while a run holds its slot of a deployment: the run goes on."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Pending

from flows import _slots
from flows._flow import flow
from tests.prefect_servers import free_port, prefect_server

pytestmark = [pytest.mark.slow, pytest.mark.prefect_server]

STORAGE = "prefect.server.concurrency.lease_storage"
RENEWED = '/renew "HTTP/1.1 204'
NOT_RENEWED = '/renew "HTTP/1.1 4'
GOES_ON = "the run goes on"
WITHIN_S = 60.0


@pytest.mark.parametrize(("storage", "forgets"), [("memory", True), ("filesystem", False)])
def test_a_server_that_is_started_anew_ends_no_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    storage: str,
    *,
    forgets: bool,
) -> None:
    """By default it has forgotten all slots, and Prefect's own engine would end the run then."""
    monkeypatch.setattr(_slots, "_TIMES", 600)  # a slot of 300 s is renewed each half second
    monkeypatch.setattr(_slots, "_ENDING_S", 2.0 if forgets else 60.0)
    caplog.set_level(logging.INFO, "httpx")
    own = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": f"{STORAGE}.{storage}"}
    start = partial(prefect_server, tmp_path, None, free_port(), **own)
    with ExitStack() as before, ExitStack() as after:
        server = before.enter_context(start())

        @flow(name="long", run_name="long")
        def long() -> None:
            said(caplog, RENEWED)
            before.close()
            caplog.clear()
            after.enter_context(start())
            said(caplog, NOT_RENEWED if forgets else RENEWED)
            if forgets:
                said(caplog, GOES_ON)
            assert not is_let_go(client, run), "the next one waits for the end of this one"

        with (
            temporary_settings(
                {PREFECT_API_URL: server.url, PREFECT_LOGGING_TO_API_ENABLED: False}
            ),
            get_client(sync_client=True) as client,
        ):
            run = taken(client, long)
            run_flow(long, run)
            assert client.read_flow_run(run.id).state_name == "Completed"
            assert is_let_go(client, run)
    assert (GOES_ON in caplog.text) == forgets


def taken(client: SyncPrefectClient, long: Flow[[], None]) -> FlowRun:
    """Return a run as a worker has it that has just taken it: it holds the only slot."""
    flow_id = client.create_flow(long)
    deployment_id = client.create_deployment(flow_id, "one at a time", concurrency_limit=1)
    run = client.create_flow_run_from_deployment(deployment_id)
    client.set_flow_run_state(run.id, Pending())
    return client.read_flow_run(run.id)


def is_let_go(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Tell whether the server gives the slot to another run of the deployment."""
    assert run.deployment_id
    following = client.create_flow_run_from_deployment(run.deployment_id)
    return client.set_flow_run_state(following.id, Pending()).status == SetStateStatus.ACCEPT


def said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until something is logged."""
    deadline = time.monotonic() + WITHIN_S
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.1)
