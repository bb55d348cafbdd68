"""Files of strangers in, what a worker process made of them out: under limits of time and memory.

A worker that crashes, hangs or grows is replaced; the one file that it was at becomes an
`ImageError`, its neighbours are done by another worker.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Final

from pydantic import Field

from clipcap.errors import ClipcapError
from clipcap.nursery import Answer, Limits, Nursery, Worker, WorkerDiedError
from clipcap.settings import Settings
from clipcap.sharedmemory import SharedMemory

CHUNK: Final = 8
"""Files in one request: enough that asking costs nothing, few enough that a crash loses little."""
_PARCEL: Final = 2**25  # bytes in one request for files, but for the last of them
_IDLE: Final = 60.0  # seconds after which a worker with nothing to do gives its memory back
_CLOSING: Final = 10.0  # seconds to wait for a thread whose worker was ended

_LOG = logging.getLogger(__name__)


class WorkerSettings(Settings):
    """Processes that decode beside the model. Changes no result but what is rejected."""

    processes: int | None = Field(default=None, gt=0)
    """How many; empty: one for each core that this process may use."""
    seconds: float = Field(default=60.0, gt=0)
    """Longest time for one image; one that takes longer is rejected as `timeout`."""
    memory_bytes: int = Field(default=2 * 2**30, ge=2**26)
    """Most memory a worker may take; an image that needs more is rejected as `oom` (Linux)."""

    @property
    def count(self) -> int:
        """How many processes this machine is to run."""
        return self.processes or cores()


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its container."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # not Linux, an older kernel, or "max": no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    return count


@dataclass(frozen=True, slots=True)
class _Request:
    shared: Mapping[str, Any]
    items: Sequence[Sequence[Any]]
    future: Future[list[Answer]]

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        """Give whoever asked the error that came instead of answers."""
        if error is not None:
            self.future.set_exception(error)
        return True


class Pool:
    """Workers that run `MODULE.work(shared, item)`; threads may share it, forked processes not."""

    def __init__(self, module: str, settings: WorkerSettings) -> None:
        self._module, self._process = module, os.getpid()
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = Lock()
        self._is_closed = False
        self._board = SharedMemory(settings.count)
        self._nursery = Nursery(module)
        limits = Limits(settings.seconds, settings.memory_bytes)
        self._workers = [
            Worker(self._nursery, self._board, place, limits) for place in range(settings.count)
        ]
        self._threads = [
            Thread(target=self._run, args=(worker,), name=f"worker-{place}", daemon=True)
            for place, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def replaced(self) -> Counter[str]:
        """How many processes were, by why: `crashed`, `hung`, `oom`, `grown`, `lost`."""
        return sum((worker.replaced for worker in self._workers), Counter())

    @property
    def peak_bytes(self) -> int:
        """The most memory that one of the processes held that were ended so far."""
        return max(worker.peak_bytes for worker in self._workers)

    def submit(
        self, shared: Mapping[str, Any], items: Sequence[Sequence[Any]]
    ) -> list[Future[list[Answer]]]:
        """Have some items worked on; one future for every `CHUNK` of them, in order.

        Both arguments must be JSON values.

        Raises:
            ClipcapError: the pool was closed, or is of the process that this one was forked from.
        """
        futures: list[Future[list[Answer]]] = []
        if self._process != os.getpid():
            raise ClipcapError(f"The workers for {self._module} are of another process.")
        with self._lock:
            if self._is_closed:
                raise ClipcapError(f"The workers for {self._module} are closed.")
            for at in range(0, len(items), CHUNK):
                futures.append(Future())
                self._requests.put(_Request(shared, items[at : at + CHUNK], futures[-1]))
        return futures

    def each(self, shared: Mapping[str, Any], files: Iterable[bytes]) -> Iterator[Answer]:
        """Have files worked on as items `[path, offset, length]`; yield what becomes of each.

        In order, and reading ahead as far as the workers can do at once. The cheapest way to ask:
        files lie in shared memory that is used again.
        """
        asked: deque[tuple[SharedMemory, Future[list[Answer]]]] = deque()
        free: list[SharedMemory] = []
        with ExitStack() as made:
            for parcel in _parcels(files):
                if len(asked) == 2 * len(self._workers):
                    yield from asked[0][1].result()
                    free.append(asked.popleft()[0])
                memory = free.pop() if free else made.enter_context(SharedMemory(0))
                [future] = self.submit(shared, memory.refilled(parcel))
                asked.append((memory, future))
            for _, future in asked:
                yield from future.result()

    def close(self) -> None:
        """End all workers; what was asked for and is not done yet fails."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._nursery.close()
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join(_CLOSING)
        self._board.close()

    def _run(self, worker: Worker) -> None:
        while True:
            try:
                request = self._requests.get(timeout=_IDLE)
            except queue.Empty:
                _end(worker)
                continue
            if request is None:
                break
            if request.future.set_running_or_notify_cancel():
                with request:
                    answers = _answers(worker, request.shared, request.items)
                    request.future.set_result(answers)
        _end(worker)


def _end(worker: Worker) -> None:
    """End a worker's process. An error goes to the log: its thread has more requests to answer."""
    with ExitStack() as caught:
        caught.push(_logged)
        worker.end()


def _logged(_kind: object, error: BaseException | None, _trace: TracebackType | None) -> bool:
    if error is not None:
        _LOG.error("A worker process could not be ended.", exc_info=error)
    return True


def _parcels(files: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield what one request may hold."""
    parcel: list[bytes] = []
    for data in files:
        parcel.append(data)
        if len(parcel) == CHUNK or sum(map(len, parcel)) > _PARCEL:
            yield parcel
            parcel = []
    if parcel:
        yield parcel


def _answers(
    worker: Worker, shared: Mapping[str, Any], items: Sequence[Sequence[Any]]
) -> list[Answer]:
    """Return one answer per item, whatever the items do to the worker."""
    answers: list[Answer] = [None] * len(items)
    left = [range(len(items))]
    while left:
        span = left.pop()
        if not span:
            continue
        try:
            answers[span.start : span.stop] = worker.ask(shared, items[span.start : span.stop])
        except WorkerDiedError as died:
            at = span[died.at]
            answers[at] = died.verdict
            left += [range(at + 1, span.stop), range(span.start, at)]
            if not died.is_sure:  # others may have worn it down: once more, alone
                left.append(range(at, at + 1))
    return answers


_POOLS: dict[tuple[int, str, WorkerSettings], Pool] = {}
_LOCK = Lock()
os.register_at_fork(
    before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)


def pool(module: str, settings: WorkerSettings) -> Pool:
    """Return this process's workers for a module; started when they are first asked for."""
    with _LOCK:
        key = (os.getpid(), module, settings)
        if key not in _POOLS:
            _POOLS[key] = Pool(module, settings)
        return _POOLS[key]


def close() -> None:
    """End the workers of this process."""
    with _LOCK:
        mine = [_POOLS.pop(key) for key in list(_POOLS) if key[0] == os.getpid()]
    for one in mine:
        one.close()


atexit.register(close)
