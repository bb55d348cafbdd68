"""A group of shards in, what a Prefect worker did with it out, as a task.

The task starts a run of the deployment of `flows/group.py` and waits for its end. A run that has
failed does not fail the one that started it, so its state is looked at; what it did stands in an
object beside the plans. A try after a lost connection finds the run that is still under way; one
after a lost worker starts another, which passes over what the first has committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Final, TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, WorkPoolStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import task_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled

from clipcap import alive, groups
from clipcap.errors import ClipcapError, ServerError, SettingsError, WorkerLostError
from clipcap.groups import Group, Phase
from clipcap.layout import Run
from clipcap.outcomes import Outcome
from tasks._task import Partition, task

R = TypeVar("R")

log = logging.getLogger("clipcap.tasks")

_AWAY_S: Final = 600.0  # of the server, while groups go on: its upgrade, its database's
_LATER: Final = (408, 425, 429)
_CLIENT_ERRORS: Final = range(400, 500)
_ONE_AT_A_TIME = Lock()  # Prefect counts the runs that a run starts, and not for several threads


@dataclass(frozen=True, slots=True)
class Order:
    """What is the same for every group of a phase: who does it, of which run, by which settings."""

    phase: Phase
    run: Run
    deployment: str
    settings: Mapping[str, Any]
    poll_s: float
    worker_wait_s: float


@dataclass(slots=True)
class Watch:
    """What the tasks of one night know of each other: when a group last went on, and the end."""

    ended: Event = field(default_factory=Event)
    moved_at: float = field(default_factory=time.monotonic)
    second_chances: int = 3
    """So often a group is given out again whose worker took it and did not begin."""

    def moved(self) -> None:
        """Say that a worker is at a group, or done with one."""
        self.moved_at = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait, but not for longer than the night goes on."""
        if self.ended.wait(seconds):
            raise ClipcapError("The night has ended before its groups.")


_WATCH: ContextVar[Watch] = ContextVar("_WATCH")


@contextmanager
def watched() -> Iterator[None]:
    """Let the tasks that are started inside know of each other, and end when the block does."""
    watch = Watch()
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        watch.ended.set()
        _WATCH.reset(token)


@task(run_name="check {deployments}")
def check_workers(deployments: tuple[str, ...]) -> None:
    """Look whether groups can be given to workers, before any work."""
    if get_current_settings().api.url is None:
        raise SettingsError(
            "A night that is shared among workers (`dispatch`) needs a Prefect server: set "
            "PREFECT_API_URL, and do not run it with --no-server; or leave `dispatch` out."
        )
    with get_client(sync_client=True) as client:
        for name in deployments:
            found = _deployment(client, name)
            if found.paused:
                raise SettingsError(
                    f"The deployment {name} must take groups of shards, but is paused. "
                    f"`prefect deployment schedule resume` or the page of the server goes on."
                )
            if found.work_pool_name:
                _tell_missing_workers(client, found.work_pool_name)


def _deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError) as error:
        raise SettingsError(
            f"There must be a deployment {name} for groups of shards (`dispatch`), but the server "
            "has none. `prefect deploy --prefect-file deployments/prefect.yaml --all` makes it."
        ) from error


def _tell_missing_workers(client: SyncPrefectClient, pool: str) -> None:
    if client.read_work_pool(pool).status == WorkPoolStatus.NOT_READY:
        log.warning(
            "no worker of the pool %s is online; groups wait until there is one: "
            "prefect worker start --pool %s", pool, pool,
        )  # fmt: skip


@task(run_name="{order.phase} {partition}")
def run_group(partition: Partition, order: Order) -> list[Outcome]:
    """Have a worker take a group of shards, and return what it did.

    Raises:
        WorkerLostError: it was killed; another try may find another worker.
        ServerError: the server does not answer, or no worker takes a group.
        ClipcapError: the group's own error, of its own class.
    """
    group = groups.of(partition.shards, order.phase, order.run)
    tries = max(int(task_run.run_count or 0), 1)
    child = _started(group, order, number=1)
    for number in range(2, tries + 1):
        if child.state is None or not child.state.is_final() or child.state.is_completed():
            break  # an earlier try lost sight of it, and not the worker the group
        child = _started(group, order, number=number)
    with get_client(sync_client=True) as client, alive.waiting():
        child = _ended(child, order, client)
    return list(_told(group, child))


def _started(group: Group, order: Order, *, number: int) -> FlowRun:
    """Start a run of the group's `number`th try, or find the one that was started before."""

    def start() -> FlowRun:
        with _ONE_AT_A_TIME:
            found: Any = run_deployment(
                order.deployment,
                parameters={"work": group.model_dump(mode="json"), "settings": order.settings},
                flow_run_name=str(group),
                idempotency_key=f"{group.run_id}/{group.name}/{number}",
                as_subflow=True,
                timeout=0,
            )
        run: FlowRun = found
        return run

    return _patiently(start, order.poll_s)


def _ended(child: FlowRun, order: Order, client: SyncPrefectClient) -> FlowRun:
    """Wait for the end of a run, however long it takes, as long as any group goes on."""
    watch = _WATCH.get()
    while child.state is None or not child.state.is_final():
        if child.state is not None and child.state.is_running():
            watch.moved()
        elif time.monotonic() - watch.moved_at > order.worker_wait_s:
            cancelled: State[Any] = Cancelled(message="No worker has begun with it.")
            _patiently(lambda: client.set_flow_run_state(child.id, cancelled), order.poll_s)  # noqa: B023
            raise _not_begun(child, order, watch)
        watch.wait(order.poll_s)
        child = _patiently(lambda: client.read_flow_run(child.id), order.poll_s)  # noqa: B023
    watch.moved()
    return child


def _not_begun(child: FlowRun, order: Order, watch: Watch) -> ServerError:
    for_s = f"for {order.worker_wait_s:.0f} s, and none is under way."
    if child.state is not None and child.state.is_pending():
        kind = ServerError
        if watch.second_chances:
            watch.second_chances -= 1
            watch.moved()
            kind = WorkerLostError
        return kind(
            f"A worker has taken the group {child.name!r} ({child.id}), but no group has begun "
            f"{for_s} Its machine may be gone, or have no room: the worker's log knows."
        )
    pool = child.work_pool_name
    return ServerError(
        f"No worker has taken a group {for_s} Start one for the pool {pool}: prefect worker start "
        f"--pool {pool}; one whose limit is taken by the night itself is none."
    )


def _patiently(ask: Callable[[], R], poll_s: float) -> R:
    """Ask the server again while it is away; groups go on without it.

    Raises:
        ServerError: it stays away.
        WorkerLostError: the run was removed.
    """
    deadline = time.monotonic() + _AWAY_S
    while True:
        try:
            return ask()
        except ObjectNotFound as error:
            raise WorkerLostError(f"The run of a group is not on the server: {error}") from error
        except httpx.HTTPError as error:
            code = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
            if code in _CLIENT_ERRORS and code not in _LATER:
                raise ServerError(f"The Prefect server refused a group: {error}") from error
            if time.monotonic() > deadline:
                raise ServerError(
                    f"The Prefect server has not answered for {_AWAY_S:.0f} s: {error}. Groups "
                    "that are under way go on; run again when it is back."
                ) from error
            log.warning("the Prefect server does not answer, asked again: %s", error)
        _WATCH.get().wait(poll_s)


def _told(group: Group, child: FlowRun) -> tuple[Outcome, ...]:
    """Return what a run did that has ended.

    Raises:
        ClipcapError: it did not do it.
    """
    told = groups.read(group, str(child.id))
    if told is not None:
        if told.failure is not None:
            raise told.failure.error
        return told.outcomes
    state = child.state
    how = "has ended" if state is None else f"is {state.name}: {state.message}"
    is_told = state is not None and (state.is_failed() or state.is_cancelled())
    raise (ClipcapError if is_told else WorkerLostError)(
        f"The run {child.name!r} ({child.id}) {how}, and has told nothing of its group. What it "
        "committed is kept."
    )
