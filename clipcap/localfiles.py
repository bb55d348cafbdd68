"""A path and bytes in, a whole file out, on the disk for sure; a folder in, its files out.

Readers see all of a file or nothing. Only `clipcap.storage` asks here, for URLs of this machine;
what is raised are plain `OSError`s.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Write a file in the place of the one that may be there."""
    _temporary(path, data).replace(path)
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


def walk(folder: Path) -> Iterator[str]:
    """Yield the path of every file below a folder, or of the one file; hidden names are left out.

    Raises:
        OSError: a folder may not be listed, or is not there.
    """
    if folder.is_file():
        yield str(folder)
        return
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (os.path.join(root, name) for name in files if not name.startswith("."))
        for path in paths:
            if os.path.isfile(path):  # not a pipe, a socket or a dangling link
                yield path


def remove_temporaries(folder: Path, *, older_s: float) -> int:
    """Remove the hidden files of writers that were killed; return how many there were."""
    now = time.time()
    found = [path for path in folder.rglob(".*.tmp") if path.is_file()]
    old = [path for path in found if now - path.stat().st_mtime > older_s]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _refuse(error: OSError) -> None:
    raise error


def _temporary(path: Path, data: bytes) -> Path:
    """Write `data` beside `path` under a hidden name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is in the way", path.parent) from error
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
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
