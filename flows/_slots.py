"""A run's slot in, kept for as long as the run lasts: Prefect's limit on the runs of a deployment.

Prefect's own way ends a run at once when it cannot renew its slot: when the server was away at that
moment, or was started anew and has forgotten all slots, as it does by default. A night of hours
would not outlive either. What keeps two runs of an output apart is the output's lease, so here a
run goes on, and asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Event, Thread
from typing import Final
from uuid import UUID

import httpx
from prefect import flow_engine
from prefect.client.orchestration import get_client

log = logging.getLogger("clipcap.flows")

_TIMES: Final = 5  # that a slot is renewed before it would be given to another run
_FORGOTTEN: Final = (404, 410)
_ENDING_S: Final = 10.0  # a run gives its slot back when it is Completed, and ends a little later


@contextmanager
def kept(lease_id: UUID, seconds: float, **_how: bool) -> Iterator[None]:
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
    with get_client(sync_client=True) as client:
        while not ended.is_set():
            try:
                client.renew_concurrency_lease(lease_id=lease_id, lease_duration=seconds)
            except httpx.HTTPStatusError as error:
                if error.response.status_code in _FORGOTTEN:
                    if not ended.wait(_ENDING_S):
                        log.warning(
                            "the Prefect server knows nothing of this run's slot any more (it was "
                            "started anew?); the run goes on, the next one may begin beside it"
                        )
                    return
            except httpx.HTTPError as error:
                log.info("the Prefect server does not renew this run's slot: %s", error)
            ended.wait(seconds / _TIMES)


def install() -> None:
    """Let the flows of this process keep their slots in this way."""
    vars(flow_engine)["maintain_concurrency_lease"] = kept
