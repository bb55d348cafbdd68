"""A module in, processes that run its `work` under limits out; each that ends is replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from clipcap import zygote
from clipcap.errors import REASONS, ClipcapError, ImageError
from clipcap.sharedmemory import SharedMemory

_NICE: Final = 10  # the model goes first: decoding fills the time in which it waits
_LOOK: Final = 1.0  # seconds between two looks at the progress of a worker, at most
_FRESH: Final = 120.0  # seconds that a worker may need to start, with all that it imports
_ENDING: Final = 1.0  # seconds that a process may need to end once its socket is closed
_TRIES: Final = 3  # of a request whose worker was ended before it began, from outside
_RESTARTS: Final = 8  # in an hour, of a process that only somebody else can have ended
_HOUR: Final = 3600.0
_LIBRARIES: Final = ("OMP", "MKL", "OPENBLAS")  # one thread each: processes share the cores

Answer = Any
"""What `MODULE.work` returned, or the ImageError it raised or caused."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker may take: seconds for one item, bytes of memory."""

    seconds: float
    memory_bytes: int


class WorkerDiedError(Exception):
    """A worker ended, or was ended, at one item of a request.

    Attributes:
        at: Its place among the items.
        verdict: What is to be said of it.
        is_sure: Nothing else can have been to blame.
    """

    def __init__(self, at: int, verdict: ImageError, *, is_sure: bool) -> None:
        super().__init__(str(verdict))
        self.at, self.verdict, self.is_sure = at, verdict, is_sure


class Worker:
    """One process at a time at one place of the board; started when it is first asked.

    Attributes:
        replaced: How many were, by why: `crashed`, `hung`, `oom`, `grown`, `lost`.
        peak_bytes: The most memory that one of those which were ended held.
    """

    def __init__(self, nursery: Nursery, board: SharedMemory, place: int, limits: Limits) -> None:
        self._nursery, self._limits, self._place, self._board = nursery, limits, place, board.map
        self._order: dict[str, Any] = {"memory_bytes": limits.memory_bytes, "nice": _NICE}
        self._order |= {"board": board.path, "place": place}
        self._child: _Child | None = None
        self.replaced: Counter[str] = Counter()
        self.peak_bytes = 0

    def ask(self, shared: Mapping[str, Any], items: Sequence[Any]) -> list[Answer]:
        """Return what the process answers to each item.

        Raises:
            WorkerDiedError: it ended at one of them, or was ended for taking too long.
            RuntimeError: the module has a bug.
            ClipcapError: no worker can be started.
        """
        verdict: ImageError | None = None
        for _ in range(_TRIES):
            is_fresh = self._child is None
            child = self._child = self._child or self._nursery.fork(self._order)
            self._board[self._place] = 0
            try:
                zygote.send(child.line, {"shared": shared, "items": items})
                reply = _checked(self._reply(child.line), len(items))
            except _Hung as hung:
                self._end("hung")
                message = f"Decoding took longer than {self._limits.seconds:g} s: it was ended."
                verdict = ImageError("timeout", message)
                is_sure = len(items) == 1 or self._begun() == hung.at
            except (EOFError, OSError, ValueError) as error:
                kind, verdict = _ending(self.end(), is_babble=isinstance(error, ValueError))
                self.replaced[kind] += 1
                is_first = is_fresh and (len(items) == 1 or self._begun() == 1)
                is_sure = is_first and kind != "lost"
            else:
                if not reply["stays"]:
                    self._end("grown")
                return [_judged(answer) for answer in reply["answers"]]
            if begun := min(self._begun(), len(items)):
                raise WorkerDiedError(begun - 1, verdict, is_sure=is_sure)
        raise ClipcapError(f"{_TRIES} worker processes ended before an image: {verdict}")

    def end(self) -> int | None:
        """End the process, if there is one; return its wait status, None where nobody knows it."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.line.close()
        status, peak_bytes = self._nursery.bury(child)
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        return status

    def _end(self, why: str) -> None:
        self.replaced[why] += 1
        self.end()

    def _begun(self) -> int:
        return self._board[self._place]

    def _reply(self, line: socket.socket) -> Any:  # noqa: ANN401 - JSON
        """Wait for the reply as long as the worker gets from item to item in time.

        Raises:
            _Hung: it did not.
        """
        at, since = 0, time.monotonic()
        line.settimeout(min(self._limits.seconds / 4, _LOOK))
        while True:
            try:
                line.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                limit = self._limits.seconds if at else max(self._limits.seconds, _FRESH)
                if (begun := self._begun()) != at:
                    at, since = begun, time.monotonic()
                elif time.monotonic() - since >= limit:
                    raise _Hung(at) from None
        line.settimeout(_FRESH)  # it is being sent
        return zygote.receive(line)


class _Hung(Exception):
    def __init__(self, at: int) -> None:
        self.at = at


def _checked(reply: Any, count: int) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """Return a reply that is one: a decoder may have written over its process's memory.

    Raises:
        ValueError: it is none.
    """
    match reply:
        case {"answers": list(answers), "stays": bool()} if len(answers) == count:
            return dict(reply)
    raise ValueError("What the worker sent is no reply.")


def _judged(answer: dict[str, Any]) -> Answer:
    match answer:
        case {"answer": found}:
            return found
        case {"reason": reason, "message": str(message)} if reason in REASONS:
            return ImageError(reason, message)
    raise RuntimeError(f"A worker process failed:\n{answer.get('bug')}")


def _ending(status: int | None, *, is_babble: bool) -> tuple[str, ImageError]:
    """Return how a process ended, in a word and as a verdict on the item that it was at."""
    if is_babble:
        return "crashed", ImageError("decode_failed", "What the decoder sent is no reply.")
    if status is None:
        return "lost", ImageError("oom", "The decoder's process was ended from outside.")
    code = os.waitstatus_to_exitcode(status)
    if code == zygote.OUT_OF_MEMORY:
        return "oom", ImageError("oom", "Decoding needed more memory than a worker may take.")
    if code == -signal.SIGKILL:  # as the kernel does where the machine's memory ends
        return "oom", ImageError("oom", "The decoder's process was killed from outside.")
    how = f"crashed: {signal.strsignal(-code)}" if code < 0 else f"ended: exit code {code}"
    return "crashed", ImageError("decode_failed", f"The decoder's process {how}.")


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    line: socket.socket
    of: subprocess.Popen[bytes]


class Nursery:
    """The process that workers are forked from, started at once; a new one when it is gone.

    Threads may share it. Workers are of its process group, which ends with it.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = Lock()  # one order at a time
        self._state = Lock()  # held for moments only: closing waits for no order
        self._is_closed = False
        self._starts: list[float] = []
        self._start()

    def _start(self) -> None:
        now = time.monotonic()
        self._starts = [*(at for at in self._starts if now - at < _HOUR), now]
        self._has_served = False
        self._line, theirs = socket.socketpair()
        self._line.settimeout(_FRESH)
        command = [sys.executable, "-P", "-m", "clipcap.zygote", str(theirs.fileno()), self._module]
        one_thread = dict.fromkeys((f"{name}_NUM_THREADS" for name in _LIBRARIES), "1")
        places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=os.environ | one_thread | {"PYTHONPATH": places},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the parent's business
            )

    def fork(self, order: dict[str, Any]) -> _Child:
        """Start a worker.

        Raises:
            ClipcapError: none can be started.
        """
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as undo, self._lock:
            undo.enter_context(ours)
            while True:
                try:
                    [pid] = self._ask(order, 1, (theirs.fileno(),))
                except (EOFError, OSError, ValueError) as error:
                    self._restart(error)
                else:
                    undo.pop_all()
                    return _Child(pid, ours, self._process)

    def bury(self, child: _Child) -> tuple[int | None, int]:
        """End a worker; return its wait status, None where nobody knows it, and its peak, bytes."""
        with self._lock, suppress(EOFError, OSError, ValueError):
            if child.of is self._process:
                status, peak_bytes = self._ask({"bury": child.pid}, 2)
                return status, peak_bytes
        return None, 0

    def _ask(self, order: dict[str, Any], count: int, handles: tuple[int, ...] = ()) -> list[int]:
        """Return the numbers that answer an order; if none do, end who was to answer."""
        with ExitStack() as undo:
            undo.callback(self._condemn)  # a late answer would pass for the next order's
            zygote.send(self._line, order, handles)
            numbers = zygote.numbers(self._line, count)
            undo.pop_all()
        self._has_served = True
        return numbers

    def _condemn(self) -> None:
        with self._state:
            if not self._has_served:  # there are no workers yet: it may say itself how it ended
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_ENDING)
            self._kill()
            self._line.close()

    def _restart(self, error: Exception) -> None:
        with self._state:
            if self._is_closed:
                raise ClipcapError(f"The workers for {self._module} are closed.") from error
            if not self._has_served or len(self._starts) > _RESTARTS:
                how = f"ended {len(self._starts)} times, at last with {self._process.returncode}: "
                if isinstance(error, TimeoutError):
                    how = f"did not answer within {_FRESH:g} s: "
                raise ClipcapError(
                    f"The process that starts workers for {self._module} {how}stderr has its "
                    "words. Without any, it was killed, as a machine does that has no more memory."
                ) from error
            self._start()

    def close(self) -> None:
        """End all workers, and this process with them."""
        with self._state:
            self._is_closed = True
            self._kill()
        with self._lock:
            self._line.close()

    def _kill(self) -> None:
        """End the process and its group, as long as nobody else can have its number."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FRESH)
