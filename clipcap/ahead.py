"""A function and items in, its results out, in order: many calls at a time, few results waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def mapped(function: Callable[[T], R], items: Iterable[T], *, threads: int) -> Iterator[R]:
    """Yield `function(item)` for each item, as many ahead as there are threads.

    Other than with `Executor.map`, items are asked for only as far as that, so neither they nor the
    results need to fit into memory; and what is logged inside belongs to the caller's task.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=function.__name__) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(copy_context().run, function, item))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
