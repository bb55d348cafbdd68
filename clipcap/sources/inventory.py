"""An S3 Inventory in; the samples that listing its bucket would give, without listing it, out.

It is as old as its day: an image that came later is seen with the next one, one that went meanwhile
becomes a reject. Versions of the past and delete markers are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import files, inventories, storage
from clipcap import samples as form
from clipcap.errors import NotFoundError, SettingsError
from clipcap.files import FileSettings
from clipcap.sample import Sample

_FORMS: Final = ((".csv", "CSV"), (".csv.gz", "CSV"), (".parquet", "PARQUET"), (".orc", "ORC"))
_ARCHIVED: Final = pa.array(["GLACIER", "DEEP_ARCHIVE", "ARCHIVE"])
_MALFORMED: Final = (
    *(ValueError, OverflowError, RecursionError),
    *(KeyError, TypeError, AttributeError),
)
_S3: Final = "s3://"
_TEXT: Final = pa.string()


class Settings(FileSettings):
    """Which inventory lists the bucket, and which of its files are looked at."""

    url: str
    """`manifest.json` of an inventory, or a `.csv`, `.csv.gz`, `.parquet` or `.orc` of its form."""
    prefix: str = ""
    """Look only at what lies below this key, as the source `s3://bucket/prefix` would."""
    columns: str = ""
    """Columns of a `.csv` given alone, as `fileSchema` of a manifest; empty: its first row."""
    bucket_url: str = ""
    """URL of a copy that the keys lie below; empty: `s3://` and the name of the bucket."""


@dataclass(frozen=True, slots=True)
class _Inventory:
    """The files of one inventory: URL and md5, which is empty where none is given."""

    kind: str
    columns: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    bucket: str
    made_at: datetime | None = None


def lists(settings: Settings) -> tuple[str, datetime | None]:
    """Return the URL that listing the bucket itself would have, and when the inventory was made.

    So an output may change from one to the other: its images are the same ones.
    """
    inventory = _opened(settings)
    return _root(inventory, settings), inventory.made_at


def batches(settings: Settings) -> Iterator[pa.RecordBatch]:
    """Yield every current object, in no order; sidecars ride with their image.

    Raises:
        StorageError: a file of the inventory is not there.
        SettingsError: a file is cut or changed, is no inventory, or lacks a column.
    """
    inventory = _opened(settings)
    found = (
        _listed(batch, inventory, settings)
        for url, md5 in inventory.files
        for batch in inventories.rows(url, md5, inventory.kind, inventory.columns)
    )
    listed = files.batches(found, _root(inventory, settings), settings)
    return map(_of_copy, listed) if settings.bucket_url else listed


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every object once, sorted by URL; holds them all: a night asks for `batches` instead.

    Raises:
        StorageError: a file of the inventory is not there.
        SettingsError: a file is cut or changed, is no inventory, or lacks a column.
    """
    return form.in_order(batches(settings))


def _bucket_url(inventory: _Inventory, settings: Settings) -> str:
    return storage.canonical(settings.bucket_url or f"{_S3}{inventory.bucket}")


def _root(inventory: _Inventory, settings: Settings) -> str:
    below = settings.prefix.strip("/")
    return "/".join(part for part in (_bucket_url(inventory, settings), below) if part)


def _opened(settings: Settings) -> _Inventory:
    """Return the files of the inventory, by its manifest or by itself.

    Raises:
        SettingsError: the manifest is not one.
    """
    url = storage.canonical(settings.url)
    kind = next((kind for ending, kind in _FORMS if url.lower().endswith(ending)), None)
    if kind is not None:
        info = storage.info(url)
        if info is None:
            raise NotFoundError(f"There is no inventory at {url}: it is not there.")
        columns = inventories.names(settings.columns)
        return _Inventory(kind, columns, ((url, ""),), _bucket(url, info.etag, kind, columns))
    data = storage.read(url)
    try:
        said = json.loads(data)
        made_at = said.get("creationTimestamp")
        return _Inventory(
            kind=str(said["fileFormat"]).upper(),
            columns=inventories.names(said["fileSchema"]) if said["fileFormat"] == "CSV" else (),
            files=tuple(
                (_place(url, said["destinationBucket"], one["key"]), one.get("MD5checksum") or "")
                for one in said["files"]
            ),
            bucket=str(said["sourceBucket"]),
            made_at=datetime.fromtimestamp(int(made_at) / 1000, UTC) if made_at else None,
        )
    except _MALFORMED as error:
        raise SettingsError(
            f"{url} must be the manifest.json of an S3 Inventory (`sourceBucket`, `fileFormat`, "
            f"`fileSchema`, `files`), but is not: {type(error).__name__}: {error}."
        ) from error


def _place(manifest: str, bucket: str, key: str) -> str:
    """Return where a file of the inventory lies: in its bucket, or beside a copied manifest."""
    if manifest.startswith(_S3):
        return f"{_S3}{bucket.rpartition(':')[2]}/{key}"
    return f"{manifest.rpartition('/')[0].rpartition('/')[0]}/data/{key.rpartition('/')[2]}"


@lru_cache(maxsize=8)
def _bucket(url: str, etag: str, kind: str, columns: tuple[str, ...]) -> str:
    """Return the bucket that one version of an inventory file is of, by its first row."""
    for batch in inventories.rows(url, "", kind, columns):
        if batch.num_rows:
            return str(batch["bucket"][0].as_py())
    raise SettingsError(f"The inventory {url} ({etag}) has no rows. Nothing was changed.")


def _of_copy(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return samples whose bytes lie in a copy of the bucket, under etags of its own."""
    forms = pa.array(["copy"] * batch.num_rows, _TEXT)
    return batch.set_column(batch.schema.get_field_index("form"), "form", forms)


def _listed(batch: pa.RecordBatch, inventory: _Inventory, settings: Settings) -> pa.RecordBatch:
    """Return what a listing of the bucket says of the objects that an inventory's rows are of."""
    if not pc.all(pc.equal(batch["bucket"], inventory.bucket), min_count=0).as_py():
        raise SettingsError(
            f"An inventory must be of one bucket, but {settings.url} is of others than "
            f"{inventory.bucket} as well."
        )
    batch = batch.filter(_is_shown(batch, settings.prefix.strip("/")))
    root, keys = _bucket_url(inventory, settings), batch["key"]
    folder = storage.local_path(root)
    urls = (
        pc.binary_join_element_wise(root, keys, "/")
        if folder is None
        else pa.array([storage.canonical(str(folder / key)) for key in keys.to_pylist()], _TEXT)
    )
    tier = pc.is_in(batch["intelligent_tiering_access_tier"], value_set=_ARCHIVED)
    columns = {
        "url": urls,
        "size_bytes": batch["size"],
        "etag": pc.ascii_trim(pc.fill_null(batch["e_tag"], ""), '"'),
        "modified_at": batch["last_modified_date"],
        "archived": pc.or_(pc.is_in(batch["storage_class"], value_set=_ARCHIVED), tier),
    }
    return pa.record_batch(list(columns.values()), names=list(columns))


def _is_shown(batch: pa.RecordBatch, prefix: str) -> pa.Array:
    """Tell which rows are of a current object below a prefix that a listing would show."""
    key = batch["key"]
    below = pc.utf8_slice_codeunits(key, start=len(prefix) + 1 if prefix else 0)
    reasons = (
        pc.fill_null(_is(batch["is_latest"], "false"), False),  # noqa: FBT003 - fills a column
        pc.fill_null(_is(batch["is_delete_marker"], "true"), False),  # noqa: FBT003
        pc.match_substring_regex(below, r"(^|/)\."),
        pc.and_(pc.ends_with(key, "/"), _is(pc.coalesce(batch["size"].cast(_TEXT), "0"), "0")),
        pc.invert(pc.starts_with(key, f"{prefix}/" if prefix else "")),
    )
    left_out = reasons[0]
    for reason in reasons[1:]:
        left_out = pc.or_(left_out, reason)
    return pc.invert(left_out)


def _is(column: pa.Array, text: str) -> pa.Array:
    return pc.equal(pc.utf8_lower(column), text)
