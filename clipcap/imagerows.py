"""A Parquet or Arrow file with a column of images in, where the image of each row lies out.

Neither form's images are read: of Parquet the footer, of Arrow the headers and lengths, and of both
the captions. So the size of an image in a Parquet file is only the mean of its row group; an Arrow
file, which is not compressed, holds each image as a plain range of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import columnar, metadata, packed
from clipcap.errors import SettingsError
from clipcap.registry import unknown
from clipcap.sample import Bytes
from clipcap.storage import ObjectInfo

_USUAL: Final = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "image_bytes", "picture")
_MAX_SIZE: Final = 2**40  # a footer may say anything
_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where its image lies, or, for a row without bytes, the path it gives instead."""

    number: int
    at: Bytes | None
    size_bytes: int
    path: str | None
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns that hold images and captions; empty: where they usually stand."""

    image: str = ""
    captions: str = ""


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of one file: the images, and in a struct the names of bytes and path; texts."""

    image: str
    bytes: str
    path: str
    captions: str

    @property
    def leaf(self) -> str:
        """The path of the bytes, as Parquet names them."""
        return f"{self.image}.{self.bytes}" if self.bytes else self.image


def rows(file: ObjectInfo, wanted: Wanted) -> Iterator[Row]:
    """Yield the rows of a file, by its ending Arrow or Parquet, in their order.

    Raises:
        columnar.BROKEN: it is cut or damaged.
        StorageError: the store refused.
        SettingsError: no column holds images, or the one asked for is not there.
    """
    yield from (_arrow if file.url.endswith(".arrow") else _parquet)(file, wanted)


def _parquet(found: ObjectInfo, wanted: Wanted) -> Iterator[Row]:
    file = columnar.parquet(found.url, found.size_bytes)
    columns = _columns(file.schema_arrow, wanted, found.url)
    number = 0
    for group in range(file.metadata.num_row_groups):
        chunk = columnar.chunk(file, group, columns.leaf)
        is_absent = _is_absent(file, group, columns.leaf, chunk)
        nothing = [None] * len(is_absent)
        texts = _cells(file, group, columns.captions) if columns.captions else nothing
        paths = nothing
        if columns.path and any(is_absent):
            paths = _cells(file, group, f"{columns.image}.{columns.path}")
        mean = max(0, chunk.total_uncompressed_size) // max(is_absent.count(False), 1)
        for absent, path, text in zip(is_absent, paths, texts, strict=True):
            at = None if absent else packed.parquet_row(found.url, columns.leaf, number)
            yield Row(number, at, min(mean, _MAX_SIZE), path, metadata.captions(text))
            number += 1


def _is_absent(file: pq.ParquetFile, group: int, column: str, chunk: Any) -> list[bool]:  # noqa: ANN401 - pyarrow is untyped
    """Tell which rows have no bytes; where it is neither none nor all, the bytes must be read."""
    count = file.metadata.row_group(group).num_rows
    known = chunk.statistics
    if known is not None and known.has_null_count and known.null_count in (0, count):
        return [known.null_count == count] * count
    batches = file.iter_batches(
        batch_size=_BATCH, row_groups=[group], columns=[column], use_threads=False
    )
    nulls = (packed.leaf(batch.column(0)).is_null() for batch in batches)
    return [null for found in nulls for null in found.to_pylist()]


def _cells(file: pq.ParquetFile, group: int, column: str) -> list[Any]:
    """Return the values of a column, or of a field of it, in one row group."""
    found = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    parts = [packed.leaf(part) if "." in column else part for part in found.chunks]
    return [value for part in parts for value in part.to_pylist()]


def _arrow(found: ObjectInfo, wanted: Wanted) -> Iterator[Row]:
    columns = None
    number = 0
    for schema, batch in columnar.arrow_batches(found.url, found.size_bytes):
        columns = columns or _columns(schema, wanted, found.url)
        if batch is None:
            continue
        for row in _of_batch(batch, columns):
            yield replace(row, number=number)
            number += 1


def _of_batch(batch: columnar.Batch, columns: _Columns) -> Iterator[Row]:
    image = batch.columns.column(columns.image)
    data = image.field(columns.bytes) if columns.bytes else image
    lies, lengths = batch.places(data)
    is_absent = [any(pair) for pair in zip(batch.is_null(image), batch.is_null(data), strict=True)]
    nothing = [None] * len(is_absent)
    paths = batch.filled(image.field(columns.path)).to_pylist() if columns.path else nothing
    texts = nothing
    if columns.captions:
        texts = batch.filled(batch.columns.column(columns.captions)).to_pylist()
    for number, absent in enumerate(is_absent):
        at = None if absent else Bytes(batch.url, lies[number], lengths[number])
        yield Row(number, at, lengths[number], paths[number], metadata.captions(texts[number]))


def _columns(schema: pa.Schema, wanted: Wanted, url: str) -> _Columns:
    """Choose the columns of a file.

    Raises:
        SettingsError: there is none with images, or none of the name asked for.
    """
    told = _features(schema)
    found = [field.name for field in schema if _holds_images(field, told)]
    usual = [name for name in _USUAL if name in found]
    image = wanted.image or next(iter([*usual, *found]), "")
    if not image:
        raise SettingsError(
            f"A file of a dataset must have a column of images, but {url} has only: "
            f"{_listed(schema.names)}. Say which one it is (image_column), or name the right files "
            "by a pattern."
        )
    for column in filter(None, (image, wanted.captions)):
        if column not in schema.names:
            raise SettingsError(f"{unknown('column', column, schema.names[:40])} File: {url}.")
    kind = schema.field(image).type
    inside = [field.name for field in kind if _is_binary(field.type)] if _is_struct(kind) else []
    if not inside and not _is_binary(kind):
        raise SettingsError(
            f"The column {image!r} of {url} must hold files of images (bytes, or a struct of bytes "
            f"and path), but holds {kind}."
        )
    return _Columns(
        image=image,
        bytes=next(iter([name for name in inside if name == "bytes"] or inside), ""),
        path="path" if _has(kind, "path", _is_text) else "",
        captions=wanted.captions or metadata.caption_column(schema.names),
    )


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return what the library `datasets` wrote of the columns, or nothing."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _holds_images(field: pa.Field, told: dict[str, Any]) -> bool:
    feature = told.get(field.name)
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if kind not in (None, "Image", "Value"):
        return False  # sounds and films are such structs too
    if _is_struct(field.type):
        return _has(field.type, "bytes", _is_binary)
    return _is_binary(field.type) and (kind == "Image" or field.name in _USUAL)


def _is_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind))


def _has(kind: pa.DataType, name: str, is_right: Callable[[pa.DataType], bool]) -> bool:
    """Tell whether a type is a struct with such a field."""
    at = kind.get_field_index(name) if _is_struct(kind) else -1
    return at >= 0 and is_right(kind.field(at).type)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _listed(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:40]) or "none"
