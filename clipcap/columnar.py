"""The URL of a Parquet or Arrow file in, its columns out by ranged reads, never the whole file.

What is broken raises pyarrow's own errors (`BROKEN`); what a store refuses, a `StorageError`.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import storage

BROKEN: Final = (pa.ArrowException, OSError, ValueError, LookupError, OverflowError)
"""What pyarrow was seen to raise on files that are cut, damaged or made to harm."""
WINDOW_BYTES: Final = 16 * 2**20
"""Read of a Parquet file at a time: most row groups of images in one request."""
FOOTER_BYTES: Final = 2**16
"""What pyarrow reads first of a Parquet file, at its end."""
_ARROW_WINDOW: Final = 2**14  # holds the header of nearly every batch
_GAP: Final = 2**16  # two ranges nearer than this are one request
_MAX_HEADER: Final = 2**26  # a longer schema is an attack
_MAX_SIZE: Final = 2**40
_FILE_MAGIC: Final = b"ARROW1"  # a stream with a footer behind it
_MARK: Final = b"\xff\xff\xff\xff"


class _Ranged:
    """A file for pyarrow, of which only the parts that it asks for are read."""

    closed = False

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url, self._size, self._at = url, size_bytes, 0

    def read(self, length: int = -1) -> bytes:
        """Return `length` bytes from where the file stands, or all that is left."""
        left = max(self._size - self._at, 0)
        data = storage.read_range(self._url, self._at, left if length < 0 else min(length, left))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Stand somewhere else, counted as `whence` says."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return where the file stands."""
        return self._at

    def close(self) -> None:
        """Do nothing: there is no handle."""


def parquet(url: str, size_bytes: int) -> pq.ParquetFile:
    """Open a Parquet file; its footer is read, and later the column chunks that are asked for.

    Pages are read forward, at most 16 MiB or one page at a time.
    """
    ranged = pa.PythonFile(_Ranged(url, size_bytes), mode="r")
    return pq.ParquetFile(ranged, buffer_size=WINDOW_BYTES, pre_buffer=False)


class _UntouchedError(Exception):
    """What pyarrow was about to read is not given."""


class _Untouchable(_Ranged):
    """A file that pyarrow may open by its footer, but not read."""

    def read(self, length: int = -1) -> bytes:
        raise _UntouchedError(length)


def chunk(file: pq.ParquetFile, group: int, column: str) -> Any:  # noqa: ANN401 - pyarrow's
    """Return what the footer of a Parquet file says of one column of a row group.

    Asked for it outright, pyarrow ends the process where that is damaged; so it is first made to
    begin with reading the column, which raises an error.

    Raises:
        BROKEN: it is damaged, or not of bytes, or there is no such column.
    """
    nothing = pa.PythonFile(_Untouchable("", _MAX_SIZE), mode="r")
    probe = pq.ParquetFile(nothing, metadata=file.metadata, pre_buffer=False)
    with suppress(_UntouchedError, StopIteration):
        next(probe.iter_batches(row_groups=[group], columns=[column], use_threads=False))
    paths = [file.schema.column(number).path for number in range(len(file.schema))]
    found = file.metadata.row_group(group).column(paths.index(column))
    if found.physical_type != "BYTE_ARRAY":  # else its statistics end the process
        raise pa.ArrowInvalid(f"row group {group} says that {column!r} is {found.physical_type}")
    return found


@dataclass(frozen=True, slots=True)
class Batch:
    """One record batch of an Arrow file: of its bytes only the header is here until asked for."""

    url: str
    start: int
    _body: mmap.mmap
    _buffer: pa.Buffer
    columns: pa.RecordBatch

    def filled(self, column: pa.Array) -> pa.Array:
        """Return a column of this batch with its values.

        Raises:
            ArrowException: they cannot be such a column's.
        """
        self._fill(column.buffers())
        column.validate(full=True)
        return column

    def is_null(self, column: pa.Array) -> list[bool]:
        """Tell which values of a column of this batch are null."""
        self._fill(column.buffers()[:1])
        return [bool(null) for null in column.is_null().to_pylist()]

    def places(self, column: pa.Array) -> tuple[list[int], list[int]]:
        """Return where in the file the values of a binary column begin, and how long each is.

        The values themselves are not read.
        """
        valid, offsets, data = column.buffers()
        if not data:  # every value is null or empty
            return [0] * len(column), [0] * len(column)
        self._fill([valid, offsets])
        column.validate(full=True)
        wide = pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type)
        ends = pa.Array.from_buffers(
            pa.int64() if wide else pa.int32(), len(column) + 1, [None, offsets]
        ).to_pylist()
        first = self._place(data)
        lengths = [end - begin for begin, end in pairwise(ends)]
        return [first + begin for begin in ends[:-1]], lengths

    def _place(self, buffer: pa.Buffer) -> int:
        at = int(buffer.address - self._buffer.address)
        if not 0 <= at <= at + buffer.size <= self._buffer.size:
            raise pa.ArrowInvalid("a buffer lies outside of it")
        return self.start + at

    def _fill(self, buffers: Iterable[pa.Buffer | None]) -> None:
        """Read the bytes of some buffers into their places; those that lie near in one request."""
        merged: list[list[int]] = []
        for at, end in sorted((at := self._place(one), at + one.size) for one in buffers if one):
            if merged and at - merged[-1][1] < _GAP:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([at, end])
        for at, end in merged:
            data = storage.read_range(self.url, at, end - at)
            if len(data) != end - at:
                raise pa.ArrowInvalid("it became shorter")
            self._body[at - self.start : end - self.start] = data


def arrow_batches(url: str, size_bytes: int) -> Iterator[tuple[pa.Schema, Batch | None]]:
    """Yield the batches of an Arrow IPC stream or file, each with the schema.

    The first pair has no batch. Only headers are read: a batch's values are zeros until `filled`.

    Raises:
        ArrowException: it is no such file, cut, or compressed.
    """
    head = storage.read_range(url, 0, min(len(_FILE_MAGIC), size_bytes))
    at, last = (8, 0) if head == _FILE_MAGIC else (0, size_bytes - 8)
    schema: pa.Schema | None = None
    while at < size_bytes:
        header, body = _framed(url, at, size_bytes)
        if not header and at < last:
            raise pa.ArrowInvalid(f"its end mark is at byte {at}, but more follows")
        if not header:
            return
        whole = mmap.mmap(-1, len(header) + body)  # untouched pages take no memory
        whole[: len(header)] = header
        buffer = pa.py_buffer(whole)
        message = pa.ipc.read_message(pa.BufferReader(buffer))
        if schema is None:
            if message.type != "schema":  # which pyarrow takes on trust
                raise pa.ArrowInvalid("it does not begin with a schema")
            schema = pa.ipc.read_schema(message)
            yield schema, None
        elif message.type == "record batch":
            columns = pa.ipc.read_record_batch(message, schema)
            columns.validate()  # else a length that lies ends the process
            yield schema, Batch(url, at, whole, buffer, columns)
        at += len(header) + body
    raise pa.ArrowInvalid("it has no end mark")


def _framed(url: str, at: int, size_bytes: int) -> tuple[bytes, int]:
    """Return a message's header with its frame, and how long its body is; none at the end mark."""
    data = storage.read_range(url, at, min(_ARROW_WINDOW, size_bytes - at))
    is_marked = data.startswith(_MARK)  # files of 2019 and before are not
    frame = 8 if is_marked else 4
    length = int.from_bytes(data[frame - 4 : frame], "little")
    if length == 0 and len(data) >= frame:
        return b"", 0
    if length > _MAX_HEADER or at + frame + length > size_bytes:
        raise pa.ArrowInvalid(f"the header at byte {at} has {length} bytes")
    if len(data) < frame + length:
        data = storage.read_range(url, at, frame + length)
    header = data[: frame + length]
    body = _body_length(header[frame:])
    if not 0 <= body <= size_bytes - at - len(header):
        raise pa.ArrowInvalid(f"the batch at byte {at} has {body} bytes, more than there are")
    return header, body


def _body_length(message: bytes) -> int:
    """Return `bodyLength`, the fourth field of a flatbuffer `Message`; pyarrow does not give it."""
    try:
        (table,) = struct.unpack_from("<I", message)
        (back,) = struct.unpack_from("<i", message, table)
        fields, _, _, _, _, place = struct.unpack_from("<6H", message, table - back)
        if fields < 12 or place == 0:
            return 0
        return int(struct.unpack_from("<q", message, table + place)[0])
    except struct.error as error:
        raise pa.ArrowInvalid("a header is broken") from error
