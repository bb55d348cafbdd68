"""The URL of a Parquet, CSV or TSV table in; its addresses and captions out, some rows at a time.

However many rows there are, only a batch of them is held. A table of this machine is read where it
lies, any other is first copied to the scratch folder, so that all rows are of one version.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import columnar, storage
from clipcap.errors import SettingsError, TransientStorageError
from clipcap.registry import unknown

_ADDRESSES: Final = (
    *("url", "uri", "image_url", "image_uri", "img_url", "source_uri"),
    *("image", "image_path", "path", "file_path", "filepath", "file_name", "filename", "file"),
)
_CAPTIONS: Final = ("caption", "captions", "text")
_DELIMITERS: Final = ",\t;"
_PARQUET: Final = b"PAR1"
_TRIES: Final = 3
_PAUSE_S: Final = 0.5
_ROWS: Final = 10_000  # as Python objects at a time
_LINE: Final = 2**24  # characters; a cell of csv has at most 2**17

Cells = tuple[list[Any], list[Any]]
"""Some rows: the cells with addresses, and those with captions."""


def batches(url: str, *, asked: tuple[str, str], folder: Path) -> Iterator[Cells]:
    """Yield the rows of a table in their order.

    Args:
        url: canonical URL of the table.
        asked: the columns of addresses and of captions; the usual ones where empty.
        folder: where a table that lies elsewhere is copied to.

    Raises:
        StorageError: it is not there, or may not be read.
        SettingsError: it is no table, or lacks the column.
    """
    place = _copied(url, folder / "table")
    at = storage.canonical(str(place))
    found = storage.read_part(at, 0, len(_PARQUET))
    try:
        if found.data == _PARQUET:
            file = columnar.parquet(at, found.size_bytes)
            yield from _parquet(file, url, asked)
        else:
            with place.open(encoding="utf-8-sig", newline="") as stream:
                yield from _text(stream, url, asked)
    except (*columnar.BROKEN, csv.Error) as error:
        raise SettingsError(
            f"The table {url} must be Parquet, or CSV or TSV in UTF-8, but cannot be read: {error}."
        ) from error


def _copied(url: str, to: Path) -> Path:
    local = storage.local_path(url)
    if local is not None and local.is_file():
        return local
    for left in reversed(range(_TRIES)):
        try:
            with to.open("wb") as stream:
                stream.writelines(storage.stream(url))
            break
        except TransientStorageError:
            if not left:
                raise
            time.sleep(_PAUSE_S)
    return to


def _chosen(names: Sequence[str], url: str, asked: tuple[str, str], hint: str) -> tuple[str, str]:
    """Return the columns of addresses and of captions; the latter is empty if there is none.

    Raises:
        SettingsError: one that was asked for is not there, or none is of addresses; says which are.
    """
    for name in asked:
        if name and name not in names:
            raise SettingsError(unknown("column of text", name, [one[:80] for one in names[:40]]))
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    addresses, captions = (
        own or next((by_lower[name] for name in usual if name in by_lower), "")
        for own, usual in zip(asked, (_ADDRESSES, _CAPTIONS), strict=True)
    )
    if not addresses:
        raise SettingsError(
            f"The table {url} must have a column of addresses, but has only: {_listed(names)}. "
            f"{hint or 'Say which one it is: url_column.'}"
        )
    return addresses, captions


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:40]) or "none"


def _parquet(file: pq.ParquetFile, url: str, asked: tuple[str, str]) -> Iterator[Cells]:
    """Read columns of text only, and of those the two: others may hold the images."""
    names = [field.name for field in file.schema_arrow if _is_text(field.type)]
    addresses, captions = _chosen(names, url, asked, _hint(file))
    wanted = [name for name in (addresses, captions) if name]
    for batch in file.iter_batches(batch_size=_ROWS, columns=wanted, use_threads=False):
        cells = _column(batch, addresses)
        wrong = next((cell for cell in cells if not isinstance(cell, str | None)), None)
        if wrong is not None:
            raise SettingsError(
                f"The column {addresses!r} of {url} must hold text, but holds "
                f"{type(wrong).__name__}. Columns: {_listed(names)}."
            )
        yield cells, _column(batch, captions) if captions else [None] * len(cells)


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    first, *_ = batch.schema.get_all_field_indices(name)
    return list(batch.column(first).to_pylist())


def _hint(file: pq.ParquetFile) -> str:
    """Say what to do with a table that holds images, and no addresses."""
    for field in file.schema_arrow:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {one.name for one in field.type}:
            return (
                f"Its column {field.name[:80]!r} holds the images themselves: read it with kind "
                "huggingface (--kind huggingface)."
            )
    return ""


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.null())


def _text(stream: TextIO, url: str, asked: tuple[str, str]) -> Iterator[Cells]:
    delimiter = max(_DELIMITERS, key=stream.readline(_LINE).count)
    stream.seek(0)
    rows = _rows(stream, delimiter)
    names = next(rows, [])
    addresses, captions = (
        names.index(name) if name else None for name in _chosen(names, url, asked, "")
    )
    body = filter(None, rows)
    while some := list(islice(body, _ROWS)):
        yield _cells(some, addresses), _cells(some, captions)


def _rows(stream: TextIO, delimiter: str) -> Iterator[list[str]]:
    """Read rows; a quote that is not closed where its cell ends would swallow the rows behind."""
    rows = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
    try:
        yield from rows
    except csv.Error as error:
        hint = "a quote within a quoted cell must be doubled"
        raise csv.Error(f"line {rows.line_num}: {error} ({hint})") from error
    except UnicodeDecodeError as error:  # which counts from somewhere in the file
        raise csv.Error(f"after line {rows.line_num}: {error.reason}") from error


def _lines(stream: TextIO) -> Iterable[str]:
    while line := stream.readline(_LINE):
        if len(line) == _LINE:
            raise ValueError(f"a line has {_LINE} characters or more")
        yield line


def _cells(rows: Sequence[Sequence[str]], at: int | None) -> list[str | None]:
    return [row[at] if at is not None and at < len(row) else None for row in rows]
