"""A URL of any other store in, calls of the fsspec filesystem behind it out: under a deadline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.asyn import AsyncFileSystem, sync

from clipcap.errors import NotFoundError, SettingsError, StorageError
from clipcap.objects import ObjectInfo, Part, batch_of
from clipcap.refusals import Call, translated


@dataclass(frozen=True, slots=True)
class FsspecPlace:
    """A filesystem, and the name that a URL has in it: a `clipcap.objects.Place`."""

    url: str
    filesystem: Any
    deadline_s: float

    def read(self, offset: int, length: int | None) -> bytes:
        """Return a range, or all from `offset`."""
        end = None if length is None else offset + length
        start = offset if offset or end is not None else None
        data = bytes(self._call("get", "cat_file", start=start, end=end or None))
        if length is not None and len(data) > length:
            raise StorageError(f"Cannot get a range of {self.url}: it sends the whole of it.")
        return data

    def part(self, offset: int, length: int | None) -> Part:
        """Return the same, of a version that is not told."""
        return Part(self.read(offset, length), 0, "")

    def stream(self, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        """Yield a range in chunks, each a request of its own."""
        at, end = offset, None if length is None or offset < 0 else offset + length
        if offset < 0:
            yield self.read(offset, length)
            return
        while end is None or at < end:
            data = self.read(at, chunk if end is None else min(chunk, end - at))
            if data:
                yield data
            if len(data) < chunk:
                return
            at += chunk

    def write(self, *parts: bytes) -> None:
        """Write the object."""
        self._call("put", "pipe_file", b"".join(parts))

    def create(self, data: bytes) -> None:
        """Write the object where there is none."""
        self._call("put", "pipe_file", data, mode="create")

    def delete(self) -> None:
        """Remove the object."""
        self._call("delete", "rm_file")

    def info(self) -> ObjectInfo | None:
        """Return what the filesystem knows of the object; a folder is none."""
        found = self._call("get", "info")
        return None if found["type"] == "directory" else _described(self.url, found)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what lies below, all at once."""
        protocol = self.url.partition("://")[0]
        try:
            found = self._call("list", "find", detail=True)
        except NotFoundError:
            found = {}
        yield batch_of(
            _described(f"{protocol}://{key.lstrip('/')}", one)
            for key, one in found.items()
            if one["type"] != "directory" and "/." not in key.removeprefix(self._name)
        )

    def require(self) -> None:
        """Do nothing: most of these stores have no buckets that could be missing."""

    @property
    def _name(self) -> str:
        protocol, _, rest = self.url.partition("://")
        return {"memory": f"/{rest}", "http": self.url, "https": self.url}.get(protocol, rest)

    def _call(self, kind: Call, method: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run a method of fsspec, such as `cat_file`, on the name.

        Raises:
            StorageError: the store refused, or did not answer before the deadline.
        """
        fs = self.filesystem
        with translated(kind, self.url):
            if not isinstance(fs, AsyncFileSystem):
                return getattr(fs, method)(self._name, *args, **kwargs)
            function = getattr(fs, f"_{method}")
            return sync(fs.loop, function, self._name, *args, timeout=self.deadline_s, **kwargs)


def open_place(url: str, deadline_s: float) -> FsspecPlace:
    """Return the place that a URL stands for, without asking its store anything.

    Raises:
        SettingsError: there is no filesystem for such URLs.
    """
    try:
        return FsspecPlace(url, fsspec.filesystem(url.partition("://")[0]), deadline_s)
    except (ImportError, ValueError, TypeError) as error:
        raise SettingsError(f"The URL {url} cannot be opened: {error}.") from error


def _described(url: str, found: dict[str, Any]) -> ObjectInfo:
    said = _time(found.get("LastModified") or found.get("last_modified") or found.get("created"))
    size = int(found.get("size") or 0)
    etag = str(found.get("ETag") or found.get("etag") or "").strip('"')
    if not etag:  # its form must stay: another one looks like another version of every object
        etag = f"{size}-{said.timestamp() if said else found.get('mtime', 0)}"
    return ObjectInfo(url, size, etag, said or _time(found.get("mtime")))


def _time(said: object) -> datetime | None:
    """Return a moment that a filesystem tells; None where it cannot be read, or there is none."""
    try:
        if isinstance(said, int | float):
            return datetime.fromtimestamp(said, UTC) if said else None
        if isinstance(said, str):
            said = datetime.fromisoformat(said)
    except (ValueError, OverflowError, OSError):
        return None
    return said.astimezone(UTC) if isinstance(said, datetime) else None
