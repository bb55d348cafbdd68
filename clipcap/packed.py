"""Where the bytes of some samples lie in, the bytes themselves out, unpacked and checked.

By the `form` of a place (`clipcap.sample.Bytes`): `""` is a range of an object as it is, and so is
`copy`, of which no version is known. `zip` is a range from the header of a member up to the next
one's. `parquet` is row `offset` of the column behind the `#` of its URL. `web` is a page whose
address came from a stranger. `absent` is nowhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from threading import Lock
from typing import Any, Final
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import columnar, storage, zipfiles
from clipcap.errors import ImageError, NotFoundError, StorageError, TransientStorageError
from clipcap.sample import Bytes, Sample

_ROWS: Final = storage.IN_FLIGHT  # decoded at a time: as many as are worked on at a time


class Reader:
    """Reads the bytes of samples, for several threads at once.

    A Parquet file is read forward, and what it passes of the rows `wanted` is kept until it is
    asked for: no row group is decoded twice, and no more rows are held than are asked for at a
    time.
    """

    def __init__(self, wanted: Iterable[Bytes] = ()) -> None:
        rows: dict[str, set[int]] = {}
        for at in wanted:
            if at.form == "parquet":
                rows.setdefault(at.url, set()).add(at.offset)
        self._columns = {url: _Column(url, found) for url, found in rows.items()}

    def image(self, sample: Sample, most: int) -> bytes:
        """Return the bytes of a sample's image.

        Raises:
            StorageError: the store refused.
            ImageError: they cannot be unpacked, or are more than `most`, or than they should be.
        """
        return self.seen(sample, most)[0]

    def seen(self, sample: Sample, most: int) -> tuple[bytes, bool | None]:
        """Return the same, and whether it is the version that was listed.

        None where nobody can tell, such as of rows and pages.

        Raises:
            StorageError: the store refused; or a file that holds images was replaced: what lies in
                that place now is not this image.
            ImageError: they cannot be unpacked, or are more than `most`, or than they should be.
        """
        at = sample.at
        if at.form not in ("", "copy", "zip"):
            return self.read(at, most), None
        is_whole = at.length is None
        part = self._part(replace(at, length=most + 1) if is_whole else at)
        expected = sample.size_bytes if at.length is None else at.length
        is_known = bool(sample.etag) and at.form != "copy"
        is_replaced = is_known and (part.etag not in sample.etag or len(part.data) != expected)
        if is_replaced and not is_whole:
            raise TransientStorageError(
                f"Cannot get {sample.source_uri}: {at.url} was replaced after it was listed."
            )
        if len(part.data) > most:
            raise ImageError("too_large", f"It has more than {most} bytes.")
        is_sure = is_known and bool(part.etag)
        is_listed = False if is_replaced else is_sure or None
        if at.form == "zip":
            return zipfiles.unzipped(part.data, min(most, sample.size_bytes)), is_listed
        return part.data, is_listed

    def _part(self, at: Bytes) -> storage.Part:
        """Return a range of an object as it is, with its version."""
        return storage.read_part(at.url, at.offset, at.length)

    def read(self, at: Bytes, most: int) -> bytes:
        """Return the bytes of one place; of packed ones at most `most`.

        Raises:
            StorageError: the store refused.
            ImageError: they cannot be unpacked, or are more.
        """
        if at.form == "absent":
            raise NotFoundError(f"Cannot get {at.url}: it is not there.")
        if at.form == "parquet":
            column = self._columns.get(at.url) or _Column(at.url, set())
            return column.row(at.offset)
        if at.form.startswith("web"):
            return storage.read_page(at.url, at.form, most)
        data = self._part(at).data
        return zipfiles.unzipped(data, most) if at.form == "zip" else data


def parquet_row(url: str, column: str, row: int) -> Bytes:
    """Return the place of one row; `column` is the path of a leaf, such as `image.bytes`."""
    return Bytes(f"{url}#{quote(column)}", row, 1, "parquet")


class _Column:
    """A binary column of a Parquet file, read forward; what is passed of `wanted` is kept."""

    def __init__(self, url: str, wanted: set[int]) -> None:
        self._url, _, column = url.rpartition("#")
        self._name = unquote(column)
        self._wanted = wanted
        self._lock = Lock()
        self._kept: dict[int, bytes | None] = {}
        self._file: pq.ParquetFile | None = None
        self._ends: list[int] = []
        self._group, self._next = -1, 0
        self._rest: Iterator[Any] = iter(())
        self._broken: dict[int, str] = {}
        self._unreadable = ""

    def row(self, row: int) -> bytes:
        """Return the bytes in one row."""
        with self._lock:
            if row not in self._kept:
                self._wanted.add(row)
                self._read_up_to(row)
            data = self._kept.pop(row)
            self._wanted.discard(row)
            if not self._wanted:
                self._file, self._rest, self._group = None, iter(()), -1
        if data is None:
            raise ImageError("empty_file", f"Row {row} of {self._url} has no image.")
        return data

    def _read_up_to(self, row: int) -> None:
        """Read on until `row` is kept.

        Raises:
            ImageError: the row group is damaged; it is not read again.
        """
        file = self._file = self._file or self._opened()
        group = bisect_right(self._ends, row)
        if group == len(self._ends) or self._name not in _leaves(file):
            raise NotFoundError(f"Cannot get row {row} of {self._url}: it is not there.")
        if group in self._broken:
            raise ImageError("decode_failed", self._broken[group])
        if group != self._group or row < self._next:
            self._leave(group)
            self._rest = file.iter_batches(
                batch_size=_ROWS, row_groups=[group], columns=[self._name], use_threads=False
            )
            self._group, self._next = group, self._ends[group - 1] if group else 0
        self._go_on(row)

    def _leave(self, group: int) -> None:
        """Read what is wanted of a row group before another one: a thread that is late needs it."""
        left = range(self._next, self._ends[self._group] if 0 <= self._group != group else 0)
        with suppress(ImageError):
            self._go_on(max((row for row in self._wanted if row in left), default=-1))

    def _go_on(self, row: int) -> None:
        try:
            while self._next <= row:
                self._keep(leaf(next(self._rest).column(0)))
        except StorageError:
            self._group = -1  # what pyarrow read before is lost: begin again
            raise
        except (*columnar.BROKEN, StopIteration) as error:
            message = f"Row group {self._group} of {self._url}: {error}"[:300]
            self._broken[self._group], self._group = message, -1
            raise ImageError("decode_failed", message) from error

    def _opened(self) -> pq.ParquetFile:
        if self._unreadable:
            raise ImageError("decode_failed", self._unreadable)
        found = storage.info(self._url)
        if found is None:
            raise NotFoundError(f"Cannot get {self._url}: it is not there.")
        try:
            file = columnar.parquet(self._url, found.size_bytes)
        except columnar.BROKEN as error:
            self._unreadable = f"{self._url}: {error}"[:300]
            raise ImageError("decode_failed", self._unreadable) from error
        groups = range(file.metadata.num_row_groups)
        self._ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))
        return file

    def _keep(self, values: pa.Array) -> None:
        for at in range(len(values)):
            if self._next + at in self._wanted:
                self._kept[self._next + at] = values[at].as_py()
        self._next += len(values)


def leaf(column: pa.Array) -> pa.Array:
    """Return the values of the one field that was read of a struct, or those of a plain column."""
    while pa.types.is_struct(column.type):
        column = column.field(0)
    return column


def _leaves(file: pq.ParquetFile) -> set[str]:
    return {file.schema.column(number).path for number in range(len(file.schema))}
