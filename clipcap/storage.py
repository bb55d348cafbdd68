"""URL in, bytes or a listing out, and back: the one door to every filesystem and object store.

A URL is a local path, `file:///...` (percent-encoded), `s3://bucket/key`, `memory://...` or any
other that fsspec opens. Every call either returns, or raises a `StorageError` that says which of
list, get, put or delete was refused; `retryable` tells whether the store only said "later".
Credentials come from the environment, a profile or the instance role, and never from a URL.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from clipcap import localfiles
from clipcap.errors import NotFoundError, SettingsError, StorageError
from clipcap.filesystems import S3, Store, open_store
from clipcap.refusals import translated

T = TypeVar("T")

DEADLINE_S: Final = 120.0  # no single request may take longer; a frozen store blocks s3fs for ever
_LISTING_S: Final = 3_600.0  # a listing is thousands of requests, each with a limit of its own
_SLOWEST_BYTES_PER_S: Final = 2**20  # a large object may take longer, at this pace
LEFT_OVER_S: Final = 24 * 3_600.0  # nobody takes longer from the first to the last object of a step
IN_FLIGHT: Final = 16  # requests at a time: hides 60 ms of latency, bounds memory to 16 objects


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: `etag` is the store's own, or size and time where the store has none."""

    url: str
    size_bytes: int
    etag: str
    modified_at: datetime | None


_SIGNED: Final = re.compile(r"[?&](X-(Amz|Goog)-(Signature|Credential)|Signature|sig)=", re.I)
_SIGNATURE: Final = re.compile(rf"({_SIGNED.pattern})[^&\s\"]*", re.I)
_KEYS: Final = re.compile(r"://[^/\s\"@]*@")
_WEB: Final = ("http", "https")  # a slash at the end is another page there
_NO_CREDENTIALS: Final = (
    "A URL must not carry credentials or a signature; set them in the environment instead "
    "(for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)."
)


def canonical(url: str) -> str:
    """Return the one URL of a place: absolute, without credentials, without a slash at the end.

    Raises:
        SettingsError: the URL carries a user name, a password or a signature.
    """
    protocol, found, rest = url.partition("://")
    if found and protocol != "file" and _SIGNED.search(rest):
        raise SettingsError(_NO_CREDENTIALS)
    return _absolute(url)


def without_credentials(text: str) -> str:
    """Return a text with `***` for every key, password and signature in the URLs it holds."""
    return _SIGNATURE.sub(r"\1***", _KEYS.sub("://***@", text))


def _absolute(url: str) -> str:
    """Return the canonical URL of what a store listed too: its keys may look like a signature."""
    protocol, found, rest = url.partition("://")
    if not found:
        return "file://" + _quoted(os.path.abspath(os.path.expanduser(url)))
    if protocol == "file":
        return _absolute(os.fsdecode(unquote_to_bytes(rest)))
    if "@" in rest.partition("/")[0] or (protocol in _WEB and _SIGNED.search(rest)):
        raise SettingsError(_NO_CREDENTIALS)
    if protocol == "memory":
        rest = rest.lstrip("/")
    return f"{protocol}://{rest}" if protocol in _WEB else f"{protocol}://{rest.rstrip('/')}"


def _quoted(path: str) -> str:
    return quote_from_bytes(os.fsencode(path), safe="/=:@!$&'()*+,;")


def local_path(url: str) -> Path | None:
    """Return the path of a local URL, and None for a URL on a store."""
    url = _absolute(url)
    if not url.startswith("file://"):
        return None
    return Path(os.fsdecode(unquote_to_bytes(url.removeprefix("file://"))))


def name_below(url: str, folder: str) -> str:
    """Return an object's path below a folder as a person would write it (both URLs canonical)."""
    name = url.removeprefix(folder).lstrip("/")
    return os.fsdecode(unquote_to_bytes(name)) if url.startswith("file://") else name


def read(url: str) -> bytes:
    """Return the whole object."""
    return read_range(url, 0, None)


def read_range(url: str, offset: int, length: int | None) -> bytes:
    """Return `length` bytes from `offset`, or all up to the end; below 0 it counts from the end."""
    if length == 0:
        return b""  # a range of no bytes cannot be asked for: stores answer with the whole object
    path = local_path(url)
    if path is None:
        end = None if length is None else offset + length
        start = offset if offset or end is not None else None
        one_get = {"max_concurrency": 1} if url.startswith("s3") else {}  # else a HEAD before each
        data = bytes(_store(url).call("get", "cat_file", start=start, end=end, **one_get))
        if length is not None and len(data) > length:
            raise StorageError(f"Cannot get a range of {url}: the server sends the whole of it.")
        return data
    with translated("get", url), open(path, "rb") as stream:
        if offset < 0:
            stream.seek(max(offset, -path.stat().st_size), os.SEEK_END)
        else:
            stream.seek(offset)
        return stream.read(-1 if length is None else length)


def write(url: str, data: bytes) -> None:
    """Write a whole object in one atomic step: readers see the old or the new one, never a half."""
    path = local_path(url)
    if path is None:
        _store(url, longer_s=len(data) / _SLOWEST_BYTES_PER_S).call("put", "pipe_file", data)
    else:
        with translated("put", url):
            localfiles.replace(path, data)


def create(url: str, data: bytes) -> bool:
    """Write an object only if there is none; tell whether this call wrote it."""
    path = local_path(url)
    try:
        if path is None:
            _store(url).call("put", "pipe_file", data, mode="create")
        else:
            with translated("put", url):
                localfiles.create(path, data)
    except FileExistsError:
        return False
    return True


def delete(url: str) -> None:
    """Remove one object; an object that is not there is no error."""
    path = local_path(url)
    with suppress(NotFoundError):
        if path is None:
            _store(url).call("delete", "rm_file")
        else:
            with translated("delete", url):
                path.unlink()


def info(url: str) -> ObjectInfo | None:
    """Return what the store knows of one object, or None where there is none."""
    path = local_path(url)
    try:
        if path is None:
            found = _store(url).call("get", "info")
            return None if found["type"] == "directory" else _described(url, found)
        with translated("get", url):
            return _described_local(path) if path.is_file() else None
    except NotFoundError:
        return None


def list_objects(url: str) -> Iterator[ObjectInfo]:
    """Yield every object below a folder or bucket, sorted by URL; hidden names (`.x`) are left out.

    Raises:
        NotFoundError: the bucket or the local folder does not exist.
    """
    url = canonical(url)
    path = local_path(url)
    if path is not None:
        yield from sorted(_walk(path), key=lambda found: found.url)
        return
    store = _store(url, longer_s=_LISTING_S)
    protocol = url.partition("://")[0]
    try:
        found = store.call("list", "find", detail=True)
    except NotFoundError:
        found = {}
    if not found:
        require_bucket(url)
    for key in sorted(found):
        if found[key]["type"] != "directory" and "/." not in key.removeprefix(store.name):
            yield _described(f"{protocol}://{key.lstrip('/')}", found[key])


def is_left_over(found: ObjectInfo) -> bool:
    """Tell whether an object is so old that no run can still be about to make it count."""
    if found.modified_at is None:
        return False
    return (datetime.now(UTC) - found.modified_at).total_seconds() > LEFT_OVER_S


def remove_half_written(url: str) -> int:
    """Remove what killed processes left of files they were writing; return how many went.

    On a store there is nothing to remove: an object is there whole or not at all.
    """
    path = local_path(url)
    if path is None or not path.is_dir():
        return 0
    with translated("delete", url):
        return localfiles.remove_temporaries(path, older_s=LEFT_OVER_S)


def listed(url: str) -> list[ObjectInfo]:
    """Return every object below a folder, sorted by URL; none where there is no such folder."""
    try:
        return list(list_objects(url))
    except NotFoundError:
        return []


def require_bucket(url: str) -> None:
    """Do nothing where the bucket or local folder of `url` is there.

    Raises:
        NotFoundError: it is not; says which near names can be seen.
    """
    url = canonical(url)
    path = local_path(url)
    if path is not None:
        if not path.exists():
            raise NotFoundError(f"The folder {path} does not exist.")
        return
    protocol, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    store = _store(f"{protocol}://{bucket}")
    if protocol not in S3:
        return
    try:
        store.call("list", "lsdir", max_items=1)
    except NotFoundError as error:
        seen = store.visible_buckets()
        near = get_close_matches(bucket, seen, n=3, cutoff=0.5)
        hint = f" You can see: {', '.join(near or seen[:5])}." if seen else ""
        raise NotFoundError(
            f"The bucket {bucket!r} does not exist or is not yours.{hint}"
        ) from error


def require_writable(url: str) -> None:
    """Put and delete a small object under `url`, before any work that would be lost."""
    probe = f"{canonical(url)}/_probe-{secrets.token_hex(4)}"
    write(probe, b"clipcap was here to see whether it may write\n")
    delete(probe)


def _store(url: str, *, longer_s: float = 0.0) -> Store:
    return open_store(_absolute(url), deadline_s=DEADLINE_S + longer_s)


def _described(url: str, found: dict[str, Any]) -> ObjectInfo:
    modified = found.get("LastModified") or found.get("last_modified") or found.get("created")
    if isinstance(modified, int | float):
        modified = datetime.fromtimestamp(modified, UTC)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    modified_at = modified.astimezone(UTC) if isinstance(modified, datetime) else None
    size = int(found.get("size") or 0)
    etag = str(found.get("ETag") or found.get("etag") or "").strip('"')
    if not etag:
        etag = f"{size}-{modified_at.timestamp() if modified_at else found.get('mtime', 0)}"
    return ObjectInfo(url, size, etag, modified_at)


def _described_local(path: str | Path) -> ObjectInfo:
    status = os.stat(path)
    modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
    url = "file://" + _quoted(os.path.abspath(path))
    return ObjectInfo(url, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", modified_at)


def _walk(folder: Path) -> Iterator[ObjectInfo]:
    with translated("list", str(folder)):
        for path in localfiles.walk(folder):
            yield _described_local(path)
