"""Steps of a run's work in, how long ago the last one was out: what a watchdog asks.

A step is whatever cannot hang for ever where all is well: a request to a store begins, a batch is
embedded, a beam search or a training takes a step, a partition is done. One clock for the process,
since a process works for one run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Clock:
    """When the last step was, and how many wait for work that is done elsewhere."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last = time.monotonic()
        self.waiting = 0


_CLOCK = _Clock()
_THREAD = threading.local()


def beat() -> None:
    """Say that a step was taken; costs less than a microsecond."""
    if not getattr(_THREAD, "is_beside", False):
        _CLOCK.last = time.monotonic()


def beside() -> None:
    """Say that this thread does none of the run's work: its requests are no steps."""
    _THREAD.is_beside = True


def silent_s() -> float:
    """Return the seconds since the last step; 0 while somebody says that he waits for others."""
    return 0.0 if _CLOCK.waiting else time.monotonic() - _CLOCK.last


@contextmanager
def waiting() -> Iterator[None]:
    """Wait inside for what others do, such as a run on another machine: silence means nothing."""
    with _CLOCK.lock:
        _CLOCK.waiting += 1
    try:
        yield
    finally:
        beat()
        with _CLOCK.lock:
            _CLOCK.waiting -= 1
