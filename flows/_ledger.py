"""A flow's tasks in, what they did so far out: outcomes, seconds by stage, the row of the run."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from prefect import Task
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run

from clipcap import alive, leases, records, storage
from clipcap.errors import ClipcapError, StorageError
from clipcap.layout import Run, Shard
from clipcap.outcomes import Night, Outcome
from clipcap.plans import Plan
from clipcap.settings import Settings
from clipcap.stability import Drift
from clipcap.stages.publish import Published, record_failure
from flows import _join
from flows._artifacts import Artifacts
from flows._join import Attempt, PartitionTask
from flows._logs import sent_to_prefect
from flows._telemetry import telemetry
from flows._tell import LISTENER, Listener
from flows._watchdog import Watchdog
from flows.settings import begun
from tasks._task import Partition, cut

_EARLY = timedelta(hours=1)
"""A server lets a run go, and a worker's clock may be, a little before it is due."""
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a flow returns: everything it did, and what it told readers, if it did."""

    night: Night
    published: Published | None


class Ledger:
    """One run as it goes on. Used as a context: an error inside makes a row of a failed run.

    Until `confirm` nothing is written: a run refused before it begins leaves nothing behind.
    """

    def __init__(
        self, flow: str, out: str, parameters: Mapping[str, Any], *, logical_date: date | None
    ) -> None:
        due = flow_run.scheduled_start_time.astimezone(UTC)  # now, where nothing is scheduled
        now = datetime.now(
            UTC
        )  # far from that in a run that is told to begin sooner than it is due
        start = due if due - now < _EARLY else now
        self.plan: Plan | None = None
        self.drift: Drift | None = None
        self.run = Run(
            run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
            out=storage.canonical(out),
            dt=(begun(logical_date) if logical_date else start.date()).isoformat(),
        )
        self._opening = Night(
            run=self.run,
            flow=flow,
            trigger=_trigger(),
            started_at=time.time(),
            params_json=storage.without_credentials(
                json.dumps(parameters, sort_keys=True, default=_plain)
            ),
            flow_run_id=str(flow_run.id or ""),
            flow_run_name=flow_run.name or "",
            deployment=deployment.name or "",
        )
        self._outcomes: list[Outcome] = []
        self._seconds: dict[str, float] = {}
        self._stage = ""
        self._confirmed = False
        self._lease: leases.Lease | None = None
        self._listeners: list[Listener] = [heard] if (heard := LISTENER.get()) else []
        self._open, self._held = ExitStack(), ExitStack()
        if _join.in_flow_run():
            self._listeners.append(Artifacts())
        self._listeners += telemetry(self._opening)

    def confirm(self, *, alone: bool = True) -> None:
        """Say that the run can be done: from now on, its end is written down.

        Args:
            alone: no other such run may work on the output meanwhile.

        Raises:
            LeaseError: another one does.
            StorageError: the output cannot be written to.
        """
        if alone:
            self._lease = _join.patiently(self._take_lease)
        else:
            _join.patiently(partial(storage.require_writable, self.run.out))
        self._confirmed = True

    def _take_lease(self) -> leases.Lease:
        what = f"{self._opening.flow} {self._opening.flow_run_name}".strip()
        patient = self._opening.trigger != "command"  # nobody waits who could type what helps
        return self._held.enter_context(
            leases.held(self.run.out, what=what, run_id=self.run.run_id, patient=patient)
        )

    def _require_lease(self) -> None:
        """Stop here, where nothing is lost, if another run took over."""
        if self._lease is not None:
            self._lease.require()

    @contextmanager
    def stage(self, *names: str) -> Iterator[None]:
        """Count what is done inside as one stage; its time adds to what the stage took before.

        Of several stages that go on beside each other, in groups, each gets the share of the wall
        time that it has of the work.
        """
        self._require_lease()
        self._stage = names[0] if len(names) == 1 else "groups"
        alive.beat()
        for listener in self._listeners:
            listener.begin(self._stage)
        began, known = time.perf_counter(), len(self._outcomes)
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            done = self._outcomes[known:]
            work = {n: sum(one.duration_s for one in done if one.stage == n) for n in names}
            whole = sum(work.values())
            for name in names:
                share = work[name] / whole if whole else 1 / len(names)
                self._seconds[name] = self._seconds.get(name, 0.0) + spent * share
        for name in names:
            for listener in self._listeners:
                listener.end(name, self.night())

    def call(self, task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one task."""
        return _join.call(task, *args, **kwargs)

    def each(
        self,
        task: PartitionTask[P],
        shards: Sequence[Shard],
        size: int,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Run a task on shards, `size` of them in a partition.

        Raises:
            PartitionsFailedError: some failed; the outcomes of the others are kept.
        """
        partitions = cut(shards, size)
        self._take(partitions, _join.each(task, partitions, *args, **kwargs))

    def each_at_once(
        self,
        task: PartitionTask[P],
        shards: Sequence[Shard],
        size: int,
        threads: int,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Do what `each` does with several partitions at a time, for a task that only waits."""
        partitions = cut(shards, size)
        self._take(partitions, _join.at_once(task, partitions, threads, *args, **kwargs))

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Keep the outcomes of shards for which nothing was to do."""
        self._outcomes += outcomes

    def _take(self, partitions: Sequence[Partition], attempts: Generator[Attempt]) -> None:
        for listener in self._listeners:
            listener.expect(self._stage, sum(len(one.shards) for one in partitions))
        with closing(attempts):
            for outcomes in _join.joined(partitions, attempts):
                self._outcomes += outcomes
                alive.beat()
                for listener in self._listeners:
                    listener.advance(self._stage, outcomes)
                self._require_lease()

    def night(self) -> Night:
        """Return everything that was done until now."""
        used = [found for found in self._outcomes if found.stage in ("embed", "caption")]
        return replace(
            self._opening,
            plan=self.plan,
            drift=self.drift,
            outcomes=tuple(self._outcomes),
            seconds=tuple(self._seconds.items()),
            model_ids=tuple(dict.fromkeys(found.of for found in used if found.of)),
        )

    def finish(self, published: Published | None = None, *, report_url: str = "") -> Finished:
        """Tell everybody that the run is done; one that does not publish gets its row here."""
        night = self.night()
        if published is None:
            write = partial(records.write, night, state="Completed", seconds=self._seconds)
            _join.patiently(partial(write, report_uri=report_url or None))
        for listener in self._listeners:
            listener.finish(night, published)
        return Finished(night, published)

    def __enter__(self) -> Self:
        if _join.in_flow_run():
            self._open.enter_context(sent_to_prefect())
        self._open.enter_context(Watchdog(self._failed))
        return self

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._open.close()
        with self._held:
            if error is None:
                return
            self._failed(error)
            for listener in self._listeners:
                listener.fail(self.night(), error)

    def _failed(self, error: BaseException) -> None:
        """Write the row of a run that did not finish, where the run had begun."""
        if not self._confirmed:
            return
        told = error if isinstance(error, Exception) else ClipcapError(f"Ended by {error!r}.")
        with suppress(StorageError):  # the first error says more than this one would
            record_failure(self.night(), told)


def _trigger() -> str:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return "command"
    if context.flow_run.auto_scheduled:
        return "schedule"
    maker = context.flow_run.created_by
    if maker is not None and maker.type == "AUTOMATION":
        return "automation"
    return "deployment" if context.flow_run.deployment_id else "command"


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, Settings) else str(value)
