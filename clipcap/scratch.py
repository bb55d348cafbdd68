"""A limit of memory in; a database and spools on the local disk that go when they are closed, out.

What a night lists and compares may be larger than its memory. It lies here, in one temporary
folder, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field

from clipcap.errors import SettingsError
from clipcap.settings import Settings

_PREFIX: Final = "clipcap-scratch-"
_LEFT_OVER_S: Final = 24 * 3_600.0
_THREADS: Final = 8  # each needs memory of its own: with more, a small limit does not do
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM: Final = (duckdb.OutOfMemoryException, duckdb.IOException)
ROWS: Final = 65_536  # of a batch on its way: large enough for Arrow's speed, 20 MB at most


class ScratchSettings(Settings):
    """What comparing a listing may take of the machine; changes no result."""

    memory_bytes: int = Field(default=2**29, ge=2**27)
    """Most memory of the database that compares; what does not fit goes to `folder`."""
    folder: str = ""
    """Local folder with room for about 200 bytes per listed image; empty: that of `TMPDIR`."""


class Spool:
    """Arrow batches in a file, read back in the order in which they came, column by column."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._path, self._schema = path, schema
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(str(path), schema, options=options)

    def append(self, batch: pa.RecordBatch) -> None:
        """Add rows; small batches are joined, so that they may be as small as they come."""
        self._held.append(batch)
        self._held_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._held_rows >= ROWS:
            self._flush()

    def extend(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Add all rows of some batches."""
        for batch in batches:
            self.append(batch)

    def close(self) -> None:
        """End the writing; from now on the rows can be read."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(
                pa.Table.from_batches(self._held, self._schema), max_chunksize=ROWS
            )
            self._held, self._held_rows = [], 0

    def read(self, columns: Sequence[str] = ()) -> pa.RecordBatchReader:
        """Return some columns (or all of them), and `n`, the place of the row from 0."""
        names = [name for name in self._schema.names if name in (columns or self._schema.names)]
        fields = [*(self._schema.field(name) for name in names), pa.field("n", pa.int64())]
        return pa.RecordBatchReader.from_batches(pa.schema(fields), self._batches(names))

    def take(self, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.RecordBatchReader:
        """Return the rows at some places, which must ascend."""
        reader = self.read()
        return pa.RecordBatchReader.from_batches(reader.schema, _taken(reader, places))

    def _batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = [self._schema.get_field_index(name) for name in names]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        start = 0
        with (
            pa.OSFile(str(self._path)) as stream,
            pa.ipc.open_file(stream, options=options) as file,
        ):
            for at in range(file.num_record_batches):
                batch = file.get_batch(at)
                n = pa.array(np.arange(start, start + batch.num_rows, dtype=np.int64))
                start += batch.num_rows
                yield pa.record_batch([*(batch[name] for name in names), n], names=[*names, "n"])


def _taken(
    batches: Iterable[pa.RecordBatch], places: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        first, last = np.searchsorted(places, (start, start + batch.num_rows))
        if last > first:
            yield batch.take(pa.array(places[first:last] - start))
        start += batch.num_rows


class Scratch:
    """One temporary folder, with a database in it from the first query on."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self.folder = folder
        self.memory_bytes = memory_bytes

    @cached_property
    def database(self) -> duckdb.DuckDBPyConnection:
        """The database: its tables lie on the disk, and what its queries hold goes there too."""
        config: dict[str, Any] = {
            "memory_limit": f"{self.memory_bytes // 2**20}MiB",
            "temp_directory": str(self.folder / "spill"),
            "threads": min(_THREADS, os.cpu_count() or 1),
            "preserve_insertion_order": False,
            "fsync_mode": "NONE",  # nobody looks at it again after a crash
        }
        database = duckdb.connect(str(self.folder / "scratch.duckdb"), config=config)
        database.execute("SET TimeZone = 'UTC'")
        return database

    def close(self) -> None:
        """Close the database, if there is one, and let go of it.

        Who keeps an error keeps what its traceback reaches, such as this: a database that is still
        there as the process ends is told of in forty lines of DuckDB's own.
        """
        database = self.__dict__.pop("database", None)
        if database is not None:
            database.close()

    def spool(self, name: str, schema: pa.Schema) -> Spool:
        """Return a new, empty spool."""
        return Spool(self.folder / f"{name}.arrow", schema)

    def insert(self, query: str, reader: pa.RecordBatchReader) -> None:
        """Run a query over the rows of `reader`, which stands in it as `incoming`."""
        self.database.register("incoming", reader)
        self.rows(query)
        self.database.unregister("incoming")

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a query and return all its rows."""
        return self.database.execute(query, list(parameters) or None).fetchall()

    def batches(self, query: str, *parameters: object) -> Iterator[pa.RecordBatch]:
        """Yield what a query gives, as it is found; other queries may run in between."""
        with self.database.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            yield from cursor.sql(query, params=list(parameters)).to_arrow_reader(ROWS)

    def integers(self, query: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the one column of integers that a query gives."""
        (column,) = self.database.execute(query).fetchnumpy().values()
        return np.asarray(column, dtype=np.int64)

    def number(self, query: str) -> int:
        """Return the one number that a query gives."""
        return int(self.rows(query)[0][0] or 0)


@contextmanager
def opened(settings: ScratchSettings) -> Iterator[Scratch]:
    """Open a scratch folder and its database; both go at the end, also after an error.

    Raises:
        SettingsError: the folder is not there, its disk is full, or the memory does not do.
    """
    parent = Path(settings.folder).expanduser() if settings.folder else Path(tempfile.gettempdir())
    if not parent.is_dir():
        raise SettingsError(f"The scratch folder {parent} must be there, but is not.")
    _remove_left_over(parent)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name,
            closing(Scratch(Path(name), settings.memory_bytes)) as place,
        ):
            yield place
    except (duckdb.Error, OSError) as error:
        if not _is_full(error):
            raise
        raise SettingsError(
            f"Comparing did not fit into {settings.memory_bytes / 1e9:.1f} GB of memory and the "
            f"disk of {parent} (settings `scratch.memory_bytes`, `scratch.folder`): "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


def _is_full(error: duckdb.Error | OSError) -> bool:
    """Tell whether a disk is full, or the memory; DuckDB says of each step in its own way."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, _NO_ROOM) or any(os.strerror(one) in str(error) for one in _FULL)


def _remove_left_over(parent: Path) -> None:
    """Remove the folders of runs that were killed long ago."""
    with os.scandir(parent) as found:
        for one in found:
            if one.name.startswith(_PREFIX) and _is_old(one):
                shutil.rmtree(one.path, ignore_errors=True)


def _is_old(found: os.DirEntry[str]) -> bool:
    try:
        return time.time() - found.stat().st_mtime > _LEFT_OVER_S
    except OSError:  # another run has just removed it
        return False
