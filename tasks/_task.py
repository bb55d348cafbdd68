"""A function in, a Prefect task out: tried again by the class of its error, nothing cached.

Outputs are what resumes a run: a stage finds its own commits. Prefect's results would be pickled,
and a cache hit on them can run code. Never catch an error inside a task: catching is what prevents
the retry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from prefect import Task
from prefect import task as prefect_task
from prefect.cache_policies import NO_CACHE

from clipcap.errors import ClipcapError
from clipcap.layout import Shard
from clipcap.plans import shards_per_task

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

RETRY_DELAYS_S: Final = (5.0, 30.0, 120.0)
"""Waits before the second, third and fourth try: a store's bad minute passes, a night does not."""

_NEED_GPU: Final[set[str]] = set()  # the keys of tasks


@dataclass(frozen=True, slots=True)
class Partition:
    """The shards that one task run takes."""

    shards: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.shards)

    def __str__(self) -> str:
        more = len(self.shards) - 1
        return f"{self.shards[0]}{f' and {more} more' if more else ''}"


def cut(shards: Sequence[Shard], size: int) -> list[Partition]:
    """Cut shards into partitions of `size`, in order; each shard is in exactly one.

    They are larger where there would be more than 500 of them.
    """
    size = shards_per_task(len(shards), size)
    return [Partition(tuple(shards[at : at + size])) for at in range(0, len(shards), size)]


def is_retryable(error: object) -> bool:
    """Tell whether trying again can help: the error's class knows."""
    if isinstance(error, ClipcapError):
        return error.retryable
    return isinstance(error, ConnectionError | TimeoutError)


def _should_retry(_task: object, _task_run: object, state: Any) -> bool:  # noqa: ANN401 - Prefect's
    return is_retryable(state.data)


def task(*, run_name: str, needs_gpu: bool = False) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a Prefect task with this project's rules; `run_name` may name the task's parameters.

    It has no tags: each run of a task with tags first asks the server for their limits, and one on
    SQLite, which is writing down the task before, is asked again only two seconds later.
    """

    def made(function: Callable[P, R]) -> Task[P, R]:
        found: Task[P, R] = prefect_task(
            task_run_name=run_name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(RETRY_DELAYS_S),
            retry_delay_seconds=list(RETRY_DELAYS_S),
            retry_jitter_factor=0.3,
            retry_condition_fn=_should_retry,
        )(function)
        if needs_gpu:
            _NEED_GPU.add(found.task_key)
        return found

    return made


def needs_gpu(task: Task[..., Any]) -> bool:
    """Tell whether a task runs a model, and claims a GPU where there are some to be claimed."""
    return task.task_key in _NEED_GPU
