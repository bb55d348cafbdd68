"""A path and bytes in, a whole file out, on the disk for sure; a folder in, its files out.

Readers see all of a file or nothing. Only `clipcap.storage` asks here, for URLs of this machine.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

import pyarrow as pa

from clipcap.errors import NotFoundError
from clipcap.objects import ObjectInfo, Part, Unfinished, batch_of
from clipcap.refusals import translated
from clipcap.urls import of_path, path_of

_BATCH: Final = 10_000
_GONE: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_TEMPORARY: Final = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")  # what `_temporary` names


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A path of this machine: a `clipcap.objects.Place`."""

    url: str
    path: Path

    def read(self, offset: int, length: int | None) -> bytes:
        """Return a range, or all from `offset`."""
        return self.part(offset, length).data

    def part(self, offset: int, length: int | None) -> Part:
        """Return the same with size and version of the file that was open."""
        with translated("get", self.url), open(self.path, "rb") as stream:
            if offset < 0:
                stream.seek(max(offset, -self.path.stat().st_size), os.SEEK_END)
            else:
                stream.seek(offset)
            most = max(os.fstat(stream.fileno()).st_size - stream.tell(), 0)
            data = stream.read(-1 if length is None else min(length, most))
            status = os.fstat(stream.fileno())
        return Part(data, status.st_size, _version(status))

    def stream(self, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        """Yield a range in chunks, all of the file as it was when it was opened."""
        with translated("get", self.url), open(self.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = max(size + offset, 0) if offset < 0 else offset
            end = size if length is None else min(start + length, size)
            stream.seek(start)
            while start < end and (data := stream.read(min(chunk, end - start))):
                yield data
                start += len(data)

    def write(self, *parts: bytes) -> None:
        """Write the file in the place of the one that may be there."""
        with translated("put", self.url):
            replace(self.path, *parts)

    def create(self, data: bytes) -> None:
        """Write the file where there is none."""
        with translated("put", self.url):
            create(self.path, data)

    def delete(self) -> None:
        """Remove the file."""
        with translated("delete", self.url):
            self.path.unlink()

    def info(self) -> ObjectInfo | None:
        """Return size and time of the file; a folder is none."""
        with translated("get", self.url):
            return _seen(self.path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the files below a folder, or the one file."""
        with translated("list", str(self.path)):
            found = walk(self.path)
            while files := list(islice(found, _BATCH)):
                yield batch_of(files)

    def require(self) -> None:
        """Raise `NotFoundError` where there is neither folder nor file."""
        if not self.path.exists():
            raise NotFoundError(f"The folder {self.path} does not exist.")


def _seen(path: str | Path) -> ObjectInfo | None:
    """Return what is told of a file; None of what is none, and of one that is gone by now."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    if not stat.S_ISREG(status.st_mode):
        return None
    url = of_path(os.path.abspath(path))
    return ObjectInfo(url, status.st_size, _version(status), _time(status.st_mtime))


def _time(seconds: float) -> datetime | None:
    """Return when a file was written; None where no calendar has it, which a clock can do."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError):
        return None


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def replace(path: Path, *parts: bytes) -> None:
    """Write a file in the place of the one that may be there."""
    _temporary(path, *parts).replace(path)
    _sync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """Write a file where there is none.

    Raises:
        FileExistsError: there is one.
    """
    temporary = _temporary(path, data)
    try:
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()


def walk(folder: Path) -> Iterator[ObjectInfo]:
    """Yield every file below a folder, or the one file; hidden names are left out.

    Files and folders that go meanwhile are none, nor are pipes, sockets and dangling links.

    Raises:
        OSError: a folder is not there; it or its files may not be looked at.
    """
    if found := _seen(folder):
        yield found
        return

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or error.filename == str(folder):
            raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and (found := _seen(os.path.join(root, name))):
                yield found


def remove_temporaries(folder: Path, *, older_s: float) -> int:
    """Remove the hidden files of writers that were killed; return how many there were."""
    old = temporaries(folder, older_s=older_s)
    for one in old:
        path_of(one.url).unlink(missing_ok=True)
    return len(old)


def temporaries(folder: Path, *, older_s: float) -> list[Unfinished]:
    """Return the hidden files of writers that were killed."""
    found = []
    for path in folder.rglob(".*.tmp"):
        if path.is_file() and _TEMPORARY.fullmatch(path.name):
            status = path.stat()
            if time.time() - status.st_mtime > older_s:
                begun_at = datetime.fromtimestamp(status.st_mtime, UTC)
                found.append(Unfinished(of_path(str(path)), status.st_size, begun_at))
    return found


def _temporary(path: Path, *parts: bytes) -> Path:
    """Write what is given beside `path` under a hidden name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", path.parent) from error
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("wb") as stream:
            stream.writelines(parts)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
