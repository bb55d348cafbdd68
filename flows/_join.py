"""A task and its partitions in, what each gave out; at the end one error names all that failed.

Inside a Prefect flow run every partition is a task run; anywhere else the same functions are called
here, with the same retries and no server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from prefect import Task
from prefect.context import FlowRunContext

from clipcap.errors import ClipcapError, PartitionsFailedError
from clipcap.outcomes import Outcome
from flows._ray import CLUSTER
from tasks._task import RETRY_DELAYS_S, Partition, is_retryable

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("clipcap.flows")

PartitionTask = Task[Concatenate[Partition, P], list[Outcome]]
Attempt = list[Outcome] | Exception


def in_flow_run() -> bool:
    """Tell whether Prefect runs and records what is called now."""
    return FlowRunContext.get() is not None


def call(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one task and return what it gives."""
    if in_flow_run():
        return task(*args, **kwargs)
    return patiently(partial(task.fn, *args, **kwargs))


def each(
    task: PartitionTask[P], partitions: Sequence[Partition], *args: P.args, **kwargs: P.kwargs
) -> Generator[Attempt]:
    """Run a task on every partition and yield, in order, what each gave or why it failed."""
    if not in_flow_run():
        for partition in partitions:
            yield _attempt(partial(task.fn, partition, *args, **kwargs))
        return
    cluster = CLUSTER.get()
    submit = partial(cluster.submit, task) if cluster else task.submit
    futures = [submit(partition, *args, **kwargs) for partition in partitions]
    for future in futures:
        attempt: Any = cluster.result(future) if cluster else future.result(raise_on_failure=False)
        if isinstance(attempt, BaseException) and not isinstance(attempt, Exception):
            raise attempt  # a signal: the run is being ended from outside
        yield attempt


def at_once(
    task: PartitionTask[P],
    partitions: Sequence[Partition],
    threads: int,
    *args: P.args,
    **kwargs: P.kwargs,
) -> Generator[Attempt]:
    """Run a task on several partitions at a time, for tasks that only wait; yield as `each` does.

    Nobody waits for those that are under way when the run is ended from outside.
    """

    def attempt(partition: Partition) -> Attempt:
        if not in_flow_run():
            return _attempt(partial(task.fn, partition, *args, **kwargs))
        state: Any = task(partition, *args, return_state=True, **kwargs)
        found: Attempt = state.result(raise_on_failure=False)
        return found

    pool = ThreadPoolExecutor(threads, thread_name_prefix="dispatch")
    try:
        futures = [pool.submit(copy_context().run, attempt, one) for one in partitions]
        for future in futures:
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def joined(partitions: Sequence[Partition], attempts: Iterable[Attempt]) -> Iterator[list[Outcome]]:
    """Yield the outcomes of every partition that went well.

    Raises:
        PartitionsFailedError: at the end, naming each partition that did not.
    """
    failed: list[tuple[Partition, Exception]] = []
    for partition, attempt in zip(partitions, attempts, strict=True):
        if isinstance(attempt, Exception):
            if len(partitions) > 1:  # of a single one, the error says it at once
                log.warning("partition %s failed: %s", partition, attempt)
            failed.append((partition, attempt))
        else:
            yield attempt
    if failed:
        lines = "\n  ".join(f"{partition}: {_sentence(error)}" for partition, error in failed)
        raise PartitionsFailedError(
            f"{len(failed)} of {len(partitions)} partitions failed:\n  {lines}\n"
            "What the others wrote is kept. Run again; what is done is not done twice."
        ) from failed[0][1]


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, ClipcapError) else f"{type(error).__name__}: {error}"


def patiently(work: Callable[[], R]) -> R:
    """Call `work`, again after a wait where its error says that this can help."""
    for delay_s in RETRY_DELAYS_S:
        try:
            return work()
        except (ClipcapError, ConnectionError, TimeoutError) as error:
            if not is_retryable(error):
                raise
            log.warning("%s Trying again in %.0f s.", error, delay_s)
            time.sleep(delay_s)
    return work()


def _attempt(work: Callable[[], list[Outcome]]) -> Attempt:
    kept = _Kept()
    with kept:
        return patiently(work)
    return kept.error


class _Kept:
    """Keeps an error for later: whatever ends one partition must not end its neighbours."""

    error: Exception

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = error
        log.debug("a partition failed", exc_info=error)
        return True
