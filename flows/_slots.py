"""A run's slot in, kept for as long as the run lasts: Prefect's limit on the runs of a deployment.

Prefect's own way ends a run at once when it cannot renew its slot: when the server was away at that
moment, or was started anew and knows nothing of slots, as it does by default. A night of hours
would not outlive either. What keeps two runs of an output apart is the output's lease, so here a
run goes on. A server that is started anew lets the next run wait for its end nevertheless; one that
gave a slot away, because nobody renewed it, does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from threading import Event, Thread
from typing import Any, Final
from uuid import UUID

import httpx
from prefect import Flow, flow_engine
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

log = logging.getLogger("clipcap.flows")

_TIMES: Final = 5  # that a slot is renewed before it would be given to another run
_FORGOTTEN: Final = (404, 410)
_ENDING_S: Final = 10.0  # a run gives its slot back when it is Completed, and ends a little later


@contextmanager
def kept(lease_id: UUID, seconds: float) -> Iterator[None]:
    """Renew a slot again and again; a block goes on without it.

    Args:
        lease_id: the slot, as the server calls it.
        seconds: how long it is kept without being renewed.
    """
    ended = Event()
    renewing = Thread(
        target=copy_context().run,
        args=(_renew, lease_id, seconds, ended),
        name="slot",
        daemon=True,
    )
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join(timeout=2)


def _renew(lease_id: UUID, seconds: float, ended: Event) -> None:
    renewed_at, is_told = time.monotonic(), False
    while not ended.is_set():
        try:
            with get_client(sync_client=True) as client:
                client.renew_concurrency_lease(lease_id=lease_id, lease_duration=seconds)
            renewed_at, is_told = time.monotonic(), False
        except (httpx.HTTPError, PrefectException, OSError, RuntimeError, ValueError) as error:
            if _is_forgotten(error):
                if not ended.wait(_ENDING_S):
                    log.warning(
                        "the Prefect server knows nothing of this run's slot any more (it was "
                        "started anew, or away for long); the run goes on"
                    )
                return
            if time.monotonic() - renewed_at > seconds and not is_told:
                is_told = True
                log.warning(
                    "this run's slot was not renewed for %.0f s (%s); the run goes on, "
                    "the next one may begin beside it",
                    time.monotonic() - renewed_at,
                    error,
                )
        ended.wait(seconds / _TIMES)


def _is_forgotten(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _FORGOTTEN


def install(ours: type[Flow[..., Any]]) -> None:
    """Let the flows of a class keep their slots in this way; others keep Prefect's."""
    theirs = vars(flow_engine)["maintain_concurrency_lease"]

    def maintain(lease_id: UUID, seconds: float, **how: bool) -> AbstractContextManager[None]:
        running = FlowRunContext.get()
        if running is not None and isinstance(running.flow, ours):
            return kept(lease_id, seconds)
        found: AbstractContextManager[None] = theirs(lease_id, seconds, **how)
        return found

    vars(flow_engine)["maintain_concurrency_lease"] = maintain
