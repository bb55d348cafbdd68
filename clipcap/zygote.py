"""Requests on a socket in, worker processes out: imports a module once and forks it into workers.

    python -m clipcap.zygote SOCKET MODULE

A worker costs milliseconds instead of the seconds that importing torch takes, so that one which a
hostile file has killed is replaced at once. The parent sends one end of a socket pair and the
limits; the new worker runs `MODULE.work` on what comes through it. When the parent is gone, so are
all of them.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NoReturn

from clipcap import sharedmemory
from clipcap.errors import ImageError

OUT_OF_MEMORY: Final = 77
"""Exit code of a worker that reached its limit: what it still holds is in nobody's hands."""

_LENGTH: Final = 4  # bytes before a message that say how long it is
_LONGEST: Final = 2**26  # bytes of a message; more is none
_RECEIVED: Final = 2**16  # bytes at once: nearly every message is one of these
_GROWN: Final = 2**28  # bytes: a worker that holds so much more than at its start is replaced
_LOOK: Final = 2.0  # seconds between two looks at whether the parent is still there
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG: Final = 1

Work = Callable[[dict[str, Any], list[Any]], Any]


def send(to: socket.socket, message: Any, handles: tuple[int, ...] = ()) -> None:  # noqa: ANN401
    """Send one message, any JSON value, and open files with it."""
    body = json.dumps(message).encode()
    data = len(body).to_bytes(_LENGTH, "little") + body
    sent = socket.send_fds(to, [data], handles) if handles else 0
    to.sendall(data[sent:])


def receive(source: socket.socket, begun: bytes = b"") -> Any:  # noqa: ANN401 - any JSON value
    """Return the one message that comes next; `begun` are bytes of it that were read already.

    Raises:
        EOFError: the other side is gone.
        ValueError: what came is no message.
    """
    got = bytearray(begun)
    while len(got) < (size := _whole(got)):
        if size > _LONGEST:
            raise ValueError(f"A message of {size} bytes is none.")
        part = source.recv(_RECEIVED)
        if not part:
            raise EOFError
        got += part
    if len(got) > size:
        raise ValueError("More came than was said.")
    return json.loads(got[_LENGTH:])


def numbers(source: socket.socket, count: int) -> list[int]:
    """Return the answer that comes next: so many whole numbers.

    Raises:
        EOFError: the other side is gone.
        ValueError: what came is no such answer.
    """
    answer = receive(source)
    if not isinstance(answer, list) or [type(part) for part in answer] != [int] * count:
        raise ValueError(f"{answer!r} is no answer of {count} numbers.")
    return answer


def _whole(got: bytearray) -> int:
    """Return how long the message is that begins so, or one byte more than tells it."""
    return _LENGTH + (int.from_bytes(got[:_LENGTH], "little") if len(got) >= _LENGTH else 1)


def main() -> None:
    """Serve the parent until it is gone."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    parent = os.getppid()
    work: Work = importlib.import_module(sys.argv[2]).work
    gc.collect()
    gc.freeze()  # no collection of a worker's copies the pages of what is imported
    with suppress(EOFError, ConnectionError):
        while True:
            order, handles = _order(orders, parent)
            if "bury" in order:
                send(orders, _buried(order["bury"]))
            else:
                send(orders, [_forked(work, order, handles[0], orders)])
    os.killpg(0, signal.SIGKILL)  # a worker that hangs would outlive everybody


def _order(orders: socket.socket, parent: int) -> tuple[dict[str, Any], list[int]]:
    """Return the next order, and the open files that came with it.

    Raises:
        EOFError: the parent is gone. A child that it forked may still hold its end of the socket.
    """
    handles = array.array("i")
    orders.settimeout(_LOOK)
    while True:
        with suppress(TimeoutError):
            begun, extra, _, _ = orders.recvmsg(_RECEIVED, socket.CMSG_SPACE(handles.itemsize))
            break
        if os.getppid() != parent:
            raise EOFError
    if not begun:
        raise EOFError
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            handles.frombytes(data[: handles.itemsize])
    return receive(orders, begun), list(handles)


def _buried(pid: int) -> tuple[int, int]:
    """End a worker; return its wait status, which one that was dead already has, and its peak."""
    os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    return status, _peak(used)


def _peak(used: resource.struct_rusage) -> int:
    return used.ru_maxrss * (1024 if sys.platform == "linux" else 1)


def _forked(work: Work, limits: dict[str, Any], handle: int, orders: socket.socket) -> int:
    zygote = os.getpid()
    child = os.fork()
    if child:
        os.close(handle)
        return child
    status = 1
    try:
        orders.close()
        _limit(limits["memory_bytes"], limits["nice"])
        if os.getppid() == zygote:  # else it died before its workers were bound to it
            with suppress(EOFError, ConnectionError):
                _serve(work, socket.socket(fileno=handle), limits)
        status = 0
    finally:
        os._exit(status)


def _limit(memory_bytes: int, nice: int) -> None:
    """Bound what this process may still take, and keep broken files' decoders quiet."""
    os.nice(nice)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS knows no limit that holds for mapped memory
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        limit, hard = _memory()[1] + memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
            score.write("500")  # where memory ends, the kernel takes this process, not its parent
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # libtiff and libpng write there what the reject says anyway
    os.close(silence)


def _memory() -> tuple[int, int]:
    """Return the bytes that are this process's own now, and those it may have without asking."""
    if sys.platform != "linux":
        return _peak(resource.getrusage(resource.RUSAGE_SELF)), 0
    with open("/proc/self/statm", "rb") as sizes:  # noqa: PTH123 - of the kernel
        _, resident, shared, _, _, data, _ = map(int, sizes.read().split())
    return (resident - shared) * _PAGE, data * _PAGE


def _serve(work: Work, line: socket.socket, limits: dict[str, Any]) -> NoReturn:
    """Answer requests until the parent is gone or this process has grown.

    At byte `place` of the board stands how many items of the request were begun: when this process
    dies, the parent knows of which.
    """
    progress, place = sharedmemory.opened(limits["board"]), limits["place"]
    most = _memory()[0] + min(limits["memory_bytes"] // 2, _GROWN)
    stays = True
    while stays:
        request = receive(line)
        answers = []
        for n, item in enumerate(request["items"], start=1):
            progress[place] = n
            answers.append(_answer(work, request["shared"], item))
        stays = _memory()[0] < most
        send(line, {"answers": answers, "stays": stays})
    raise EOFError


def _answer(work: Work, shared: dict[str, Any], item: list[Any]) -> dict[str, Any]:
    bug = _Bug()
    with bug:
        try:
            return {"answer": work(shared, item)}
        except ImageError as error:
            if error.reason != "oom":
                return {"reason": error.reason, "message": str(error)}
        except MemoryError:
            pass
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # torch's words
                raise
        os._exit(OUT_OF_MEMORY)
    return {"bug": bug.text}


class _Bug:
    """Keeps the text of an error that no file may cause: it is ours, and the parent raises it."""

    text = ""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        self.text = "".join(traceback.format_exception(error, limit=-8))
        return True


if __name__ == "__main__":
    main()
