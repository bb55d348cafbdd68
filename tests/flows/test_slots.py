"""A run whose slot Prefect's server cannot renew, or has forgotten, goes on."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import Flow, flow_engine
from prefect.context import FlowRunContext

from flows import _slots
from flows._flow import _Flow
from flows.nightly import nightly

SECONDS = 0.05  # for which a slot is kept: it is renewed every 10 ms


class Server:
    """Answers requests to renew a slot as it is told to, the last answer for ever."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.asked = list(answers), 0

    @contextmanager
    def client(self, *, sync_client: bool) -> Iterator[Server]:
        assert sync_client
        yield self

    def renew_concurrency_lease(self, lease_id: UUID, lease_duration: float) -> None:
        assert (lease_id, lease_duration) == (SLOT, SECONDS)
        self.asked += 1
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status < 0:
            raise RuntimeError("The client has been closed.")
        request = httpx.Request("POST", "http://server")
        if not status:
            raise httpx.ConnectError("All connection attempts failed", request=request)
        httpx.Response(status, request=request).raise_for_status()

    def wait(self, times: int) -> None:
        """Wait until it was asked so often."""
        deadline = time.monotonic() + 30
        while self.asked < times:
            assert time.monotonic() < deadline
            time.sleep(0.005)


SLOT = uuid4()


def test_flows_keep_their_slots_in_our_way() -> None:
    """Of the pinned version: the engine must still ask for it by this name."""
    assert isinstance(nightly, Flow)
    assert vars(flow_engine)["maintain_concurrency_lease"].__module__ == _slots.__name__
    asks = inspect.getsource(flow_engine.FlowRunEngine.setup_run_context)
    assert "maintain_concurrency_lease(" in asks


def test_a_flow_of_another_project_keeps_prefects_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may rely on being ended."""
    asked: list[object] = []
    monkeypatch.setattr(
        flow_engine, "maintain_concurrency_lease", lambda *one, **_: asked.append(one)
    )
    _slots.install(_Flow)
    maintain = vars(flow_engine)["maintain_concurrency_lease"]
    for running, is_ours in ((None, False), (Flow(print), False), (nightly, True)):
        context = SimpleNamespace(flow=running) if running else None
        monkeypatch.setattr(FlowRunContext, "get", lambda context=context: context)
        asked.clear()
        kept = maintain(SLOT, SECONDS, raise_on_lease_renewal_failure=True)
        assert asked == ([] if is_ours else [(SLOT, SECONDS)])
        assert (kept is None) != is_ours


@pytest.mark.parametrize("answers", [(200, 0, 0, 200), (0, 503, 500, 200), (-1, 401, 200)])
def test_a_server_that_is_away_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[int, ...]
) -> None:
    server = Server(*answers)
    monkeypatch.setattr(_slots, "get_client", server.client)
    with _slots.kept(SLOT, SECONDS):
        server.wait(8)
    asked = server.asked
    time.sleep(0.1)
    assert server.asked <= asked + 1, "it is not renewed when the run has ended"


def said(caplog: pytest.LogCaptureFixture) -> str:
    """Wait for the first message."""
    deadline = time.monotonic() + 30
    while not caplog.messages:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return caplog.messages[0]


@pytest.mark.parametrize("status", [404, 410])
def test_a_server_that_has_forgotten_the_slot_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server = Server(200, status)
    monkeypatch.setattr(_slots, "get_client", server.client)
    monkeypatch.setattr(_slots, "_ENDING_S", 0.01)
    with caplog.at_level(logging.WARNING), _slots.kept(SLOT, SECONDS):
        told = said(caplog)
    assert server.asked == 2
    assert "knows nothing of this run's slot" in told
    assert "the run goes on" in told


@pytest.mark.parametrize("status", [0, 401, 500, -1])
def test_a_slot_that_is_not_renewed_for_its_time_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server = Server(200, status)
    monkeypatch.setattr(_slots, "get_client", server.client)
    with caplog.at_level(logging.WARNING), _slots.kept(SLOT, SECONDS):
        told = said(caplog)
        server.wait(server.asked + 8)
    assert "was not renewed" in told
    assert len(caplog.messages) == 1


def test_a_run_that_has_given_its_slot_back_itself_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is Completed, the server has taken the slot back, and the block is about to end."""
    server = Server(200, 410)
    monkeypatch.setattr(_slots, "get_client", server.client)
    with caplog.at_level(logging.WARNING), _slots.kept(SLOT, SECONDS):
        server.wait(2)
    assert caplog.messages == []
