"""An order in, the harm that a file can do to a worker process out: what the tests' workers run.

Each item is the name of a function here and its arguments; or, as of a file, path, offset and
length of bytes that are one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from clipcap import sharedmemory
from clipcap.errors import ImageError, Reason

_KEPT: list[bytearray] = []
_SEEN: list[mmap.mmap] = []
_LOST: list[int] = []
_ORDERS = (b"crash", b"spin", b"allocate", b"bug", b"neighbour")


def work(shared: dict[str, Any], item: list[Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Do what the item says."""
    name, *given = item
    if name.startswith("/"):
        data = sharedmemory.part(name, *given)
        return globals()[data.decode()]() if data in _ORDERS else (zlib.crc32(data), len(_LOST))
    return globals()[name](*given) if name != "shared" else shared


def same(value: object) -> object:
    return value


def process() -> int:
    return os.getpid()


def zygote() -> int:
    return os.getppid()


def files_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def crash(number: int = signal.SIGSEGV) -> None:
    os.kill(os.getpid(), number)


def crash_once(mark: str) -> str:
    """Crash the first time, as a process does that another file has worn down."""
    if not Path(mark).exists():
        Path(mark).touch()
        crash()
    return "well"


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def spin() -> None:
    """Never give the interpreter's lock back."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def allocate() -> None:
    while True:
        _KEPT.append(bytearray(b"x" * 2**22))


def allocate_unseen() -> None:
    """Take memory as a C library does: what Python knows nothing of."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    while library.malloc(ctypes.c_size_t(2**22)):
        pass
    os.abort()


def grow(size: int) -> int:
    """Keep some memory; return the process that does."""
    _KEPT.append(bytearray(b"x" * size))
    return os.getpid()


def look(path: str) -> int:
    """See every page of shared memory, and keep it in sight."""
    memory = sharedmemory.opened(path)
    _SEEN.append(memory)
    return sum(memory[::4096])


def leave(code: int) -> None:
    sys.exit(code)


def leave_at_once(code: int) -> None:
    os._exit(code)


def bug() -> None:
    raise KeyError("a bug of ours")


def neighbour() -> None:
    """Change what is said of others from now on."""
    _LOST.append(1)


def refuse(reason: Reason) -> None:
    raise ImageError(reason, "no")


def talk(text: str) -> str:
    sys.stdout.write(text)
    sys.stdout.flush()
    os.write(1, text.encode())
    os.write(2, text.encode())
    return sys.stdin.read()


def scribble() -> None:
    """Write to every socket that is open, as a decoder that somebody has taken over can."""
    for number in range(3, 64):
        try:
            os.write(number, b"\xff" * 64)
        except OSError:
            continue


def limits() -> list[int]:
    """Return how nice this process is and what the kernel thinks of ending it."""
    return [os.nice(0), int(Path("/proc/self/oom_score_adj").read_text())]
