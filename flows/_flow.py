"""A function in, a Prefect flow out: one task at a time, nothing retried as a whole.

One thread, since a shard bounds the memory of a run and a model fills its device. Tasks are tried
again, flows are not: a flow's retry under a deployment's concurrency limit can end Crashed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import prefect
from prefect import Flow
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

import clipcap

P = ParamSpec("P")
R = TypeVar("R")


def flow(*, name: str, run_name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a Prefect flow with this project's rules; `run_name` may name the flow's parameters."""
    runner = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1))
    return prefect.flow(
        name=name,
        flow_run_name=run_name,
        version=clipcap.__version__,
        task_runner=runner,
        persist_result=False,
        retries=0,
    )
