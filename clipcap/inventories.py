"""One file of an S3 Inventory in, its rows by their plain names out, checked against its md5."""

from __future__ import annotations

import csv
import gzip
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq

from clipcap import storage, tables
from clipcap.errors import SettingsError

COLUMNS: Final = (
    *("bucket", "key", "size", "e_tag", "is_latest", "is_delete_marker", "last_modified_date"),
    *("storage_class", "intelligent_tiering_access_tier"),
)
"""What is looked at, by the names that Parquet and ORC have; the first four must be there."""
_NEEDED: Final = COLUMNS[:4]
_TIME: Final = "last_modified_date"
_TEXT: Final = pa.string()
_TYPES: Final = {"size": pa.int64(), _TIME: pa.timestamp("ns", "UTC")}  # all others are text
_CHUNK: Final = 16 * 2**20
_ROWS: Final = 65_536


def names(text: str) -> tuple[str, ...]:
    """Return the columns of a `fileSchema`, such as `Bucket, Key, ETag`, by their plain names."""
    return tuple(_name(name) for name in text.split(",") if name.strip())


def _name(name: str) -> str:
    plain = {one.replace("_", ""): one for one in COLUMNS}
    return plain.get(name.strip().lower().replace("_", ""), name.strip())


def rows(url: str, md5: str, kind: str, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one file: `COLUMNS`, null where the file does not have them.

    `kind` is `CSV`, `PARQUET` or `ORC`; `columns` names those of a CSV, which else has them in its
    first row; an empty `md5` is not checked.

    Raises:
        NotFoundError: it is not there.
        SettingsError: its bytes are not those that the manifest tells, or it is not of that form.
    """
    if kind not in _READERS:
        raise SettingsError(f"An inventory must be CSV, Parquet or ORC, but {url} is {kind!r}.")
    with tempfile.TemporaryDirectory(prefix="clipcap-inventory-") as folder:
        path = Path(folder) / url.rpartition("/")[2][-64:]
        _download(url, path, md5)
        try:
            for batch in _READERS[kind](path, columns):
                names = [_name(name) for name in batch.schema.names]
                _require_columns(url, names)
                yield _plain(batch.rename_columns(names))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingsError(
                f"The inventory {url} cannot be read as {kind}: {error}."
            ) from error


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the columns that are looked at; those that an inventory does not have are null."""
    none = pa.nulls(batch.num_rows, _TEXT)
    columns = {
        name: (batch[name] if name in batch.schema.names else none).cast(_TYPES.get(name, _TEXT))
        for name in COLUMNS
    }
    columns[_TIME] = columns[_TIME].cast(tables.TIME, safe=False)
    return pa.record_batch(list(columns.values()), names=list(columns))


def _require_columns(url: str, names: Sequence[str]) -> None:
    lacks = [name for name in _NEEDED if name not in names]
    if lacks:
        raise SettingsError(
            f"The inventory {url} must have the columns bucket, key, size and e_tag, but lacks "
            f"{', '.join(lacks)} (it has {', '.join(names)[:200]}). Switch the fields on in the "
            "configuration of the bucket's inventory; for a CSV without a manifest, say `columns`."
        )


def _download(url: str, path: Path, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as stream:
        for chunk in storage.stream(url):
            digest.update(chunk)
            stream.write(chunk)
    if md5 and digest.hexdigest() != md5.lower():
        raise SettingsError(
            f"The inventory file {url} must have the md5 {md5}, but has {digest.hexdigest()}: it "
            "is cut or was changed. Nothing was changed; take another inventory."
        )


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV, gzipped or not; its keys are percent-encoded, `+` is a space."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        names = columns or tuple(next(csv.reader(lines), ()))
    _require_columns(path.name, [_name(name) for name in names])
    at = [_name(name) for name in names].index("key")
    with pa.input_stream(str(path), compression="detect") as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                column_names=names,
                skip_rows=0 if columns else 1,
                block_size=_CHUNK,
                use_threads=False,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        for batch in reader:
            keys = pa.array(map(unquote_plus, batch.column(at).to_pylist()), pa.string())
            yield batch.set_column(at, names[at], keys)


def _parquet(path: Path, _columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        wanted = [name for name in file.schema_arrow.names if _name(name) in COLUMNS]
        yield from file.iter_batches(batch_size=_ROWS, columns=wanted, use_threads=False)


def _orc(path: Path, _columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    file = pyarrow.orc.ORCFile(path)
    wanted = [name for name in file.schema.names if _name(name) in COLUMNS]
    for stripe in range(file.nstripes):
        yield from pa.Table.from_batches([file.read_stripe(stripe, wanted)]).to_batches(_ROWS)


_READERS: Final[dict[str, Callable[[Path, tuple[str, ...]], Iterator[pa.RecordBatch]]]] = {
    "CSV": _csv,
    "PARQUET": _parquet,
    "ORC": _orc,
}
