"""What a store says of its objects: one row each, or Arrow batches; and what every store can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import pyarrow as pa

LISTED: Final = pa.schema(
    [
        ("url", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("modified_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""What a listing says of each object: the columns of `storage.list_batches`."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: `etag` is the store's own, or size and time where the store has none."""

    url: str
    size_bytes: int
    etag: str
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a writer that was killed left of an object, and no listing shows.

    A hidden file of this machine, or the parts of an upload, `upload_id`, whose size is not told.
    """

    url: str
    size_bytes: int
    begun_at: datetime
    upload_id: str = ""


def batch_of(found: Iterable[ObjectInfo]) -> pa.RecordBatch:
    """Return objects as one batch of schema `LISTED`."""
    rows = [(one.url, one.size_bytes, one.etag, one.modified_at) for one in found]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    return pa.record_batch([list(column) for column in columns], schema=LISTED)


def rows_of(batch: pa.RecordBatch) -> Iterator[ObjectInfo]:
    """Yield the objects of a batch of schema `LISTED`."""
    url, size_bytes, etag, modified_at = batch.columns
    naive = modified_at.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False).astype(object)
    times = (time.replace(tzinfo=UTC) if time else None for time in naive)  # to_pylist is slow
    columns = (column.to_pylist() for column in (url, size_bytes, etag))
    return map(ObjectInfo, *columns, times)


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an object; the size of the whole, and its version (0 and "" if not told)."""

    data: bytes
    size_bytes: int
    etag: str


class Place(Protocol):
    """One URL on one store; every call returns, or raises a `StorageError`, before its deadline."""

    def read(self, offset: int, length: int | None) -> bytes:
        """Return `length` bytes, or all up to the end; an `offset` below 0 counts from the end."""

    def part(self, offset: int, length: int | None) -> Part:
        """Return the same with size and version of the whole, as far as the store tells them."""

    def stream(self, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        """Yield the same, `chunk` bytes at a time, all from one version of the object."""

    def write(self, *parts: bytes) -> None:
        """Write the whole object, which is all parts one behind the other, in one atomic step."""

    def create(self, data: bytes) -> None:
        """Write the object where there is none, or raise `FileExistsError`."""

    def delete(self) -> None:
        """Remove the object."""

    def info(self) -> ObjectInfo | None:
        """Return what the store knows of the object, or None where there is none."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what lies below, unsorted, hidden names left out; schema `LISTED`."""

    def require(self) -> None:
        """Raise `NotFoundError` where the bucket or local folder is not there."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a store says of an object without its bytes."""

    size_bytes: int
    etag: str
    modified_at: datetime | None


class Client(Protocol):
    """What a bucket can be asked for; every method may raise `Refusal` or an `OSError`."""

    def get(self, key: str, start: int, end: int | None, etag: str) -> Part:
        """Return bytes of an object, or of none but that version; `start` below 0: its tail."""

    def put(self, key: str, data: bytes, *, is_new: bool) -> None:
        """Write an object in one atomic step, or only where there is none."""

    def delete(self, key: str) -> None:
        """Remove an object."""

    def head(self, key: str) -> Head:
        """Describe an object."""
