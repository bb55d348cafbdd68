"""A size in, memory that other processes can open by path out: no copy through a pipe.

On Linux it is anonymous (`memfd`), so a small `/dev/shm` of a container does not matter and nothing
is left behind by a kill; elsewhere it is a temporary file.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self


class SharedMemory:
    """Some bytes that this process fills or reads, and others open at `path` until it is closed."""

    def __init__(self, size: int) -> None:
        self._map: mmap.mmap | None = None
        with ExitStack() as undo:  # what was made before an error
            if sys.platform == "linux":
                self._handle = os.memfd_create("clipcap")
                self.path = f"/proc/{os.getpid()}/fd/{self._handle}"
            else:
                self._handle, self.path = tempfile.mkstemp(prefix="clipcap-")
                undo.callback(Path(self.path).unlink, missing_ok=True)
            undo.callback(os.close, self._handle)
            os.truncate(self._handle, max(size, 1))
            self._undo = undo.pop_all()

    @property
    def map(self) -> mmap.mmap:
        """The bytes as memory of this process.

        Raises:
            ValueError: the memory was given back.
        """
        if self._handle < 0:
            raise ValueError("This shared memory is closed.")
        if self._map is None:
            self._map = mmap.mmap(self._handle, 0)
        return self._map

    def write(self, data: bytes, at: int = 0) -> None:
        """Put bytes at an offset; cheaper than through `map` where they are written once."""
        left = memoryview(data)
        while left:
            done = os.pwrite(self._handle, left, at)
            left, at = left[done:], at + done

    def refilled(self, parts: Sequence[bytes]) -> list[tuple[str, int, int]]:
        """Hold these bytes and no others; return path, offset and length of each for `part`."""
        os.truncate(self._handle, max(sum(map(len, parts)), 1))
        places, at = [], 0
        for data in parts:
            self.write(data, at)
            places.append((self.path, at, len(data)))
            at += len(data)
        return places

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: object, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back; arrays that still look at it keep their own pages alive."""
        self._handle, self._map = -1, None  # the map goes with its last array
        self._undo.close()


def opened(path: str) -> mmap.mmap:
    """Return the memory at `path`, for reading and writing."""
    with open(path, "r+b") as stream:  # noqa: PTH123 - also of /proc
        return mmap.mmap(stream.fileno(), 0)


def part(path: str, offset: int, length: int) -> bytes:
    """Return some bytes of a file or of shared memory; fewer where it ends."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, length, offset)
    finally:
        os.close(handle)
