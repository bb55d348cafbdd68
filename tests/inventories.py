"""Objects of a bucket in, an S3 Inventory of them out, in each of its three forms."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq

from clipcap import storage

MADE_AT = datetime(2026, 1, 5, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("bucket", pa.string()),
        ("key", pa.string()),
        ("version_id", pa.string()),
        ("is_latest", pa.bool_()),
        ("is_delete_marker", pa.bool_()),
        ("size", pa.int64()),
        ("last_modified_date", pa.timestamp("ms")),
        ("e_tag", pa.string()),
        ("storage_class", pa.string()),
        ("intelligent_tiering_access_tier", pa.string()),
    ]
)
CSV_COLUMNS = (
    "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass, "
    "IntelligentTieringAccessTier"
)
FORMS = ("CSV", "Parquet", "ORC")


@dataclass(frozen=True)
class Entry:
    """One row of an inventory."""

    key: str
    e_tag: str | None = "e"
    size: int | None = 7
    is_latest: bool = True
    is_delete_marker: bool = False
    storage_class: str = "STANDARD"
    tier: str | None = None
    at: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)
    bucket: str = "photos"

    def row(self) -> dict[str, Any]:
        """Return the row by its columns."""
        return {
            "bucket": self.bucket,
            "key": self.key,
            "is_latest": self.is_latest,
            "is_delete_marker": self.is_delete_marker,
            "size": self.size,
            "last_modified_date": self.at.replace(tzinfo=None),
            "e_tag": self.e_tag,
            "storage_class": self.storage_class,
            "intelligent_tiering_access_tier": self.tier,
        }


def data(entries: list[Entry], form: str) -> bytes:
    """Return one file of an inventory."""
    if form == "CSV":
        return gzip.compress(text(entries).encode())
    table = pa.Table.from_pylist([entry.row() for entry in entries], schema=SCHEMA)
    sink = io.BytesIO()
    if form == "ORC":
        pyarrow.orc.write_table(table, sink)
    else:
        pq.write_table(table, sink)
    return sink.getvalue()


def text(entries: list[Entry], *, header: bool = False) -> str:
    """Return the CSV of an inventory: all quoted, keys percent-encoded, `+` for a space."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    if header:
        writer.writerow(CSV_COLUMNS.split(", "))
    for entry in entries:
        row = {name: entry.row().get(name) for name in SCHEMA.names}
        row["key"] = quote_plus(entry.key, safe="/")
        row["last_modified_date"] = entry.at.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        plain = {True: "true", False: "false", None: ""}
        writer.writerow([plain.get(cell, cell) for cell in row.values()])
    return stream.getvalue()


def write(
    folder: str,
    *files: list[Entry],
    form: str = "Parquet",
    made_at: datetime | None = MADE_AT,
    bucket: str = "photos",
) -> str:
    """Write an inventory of some files as S3 lays it out; return the URL of its manifest."""
    ending = {"CSV": "csv.gz", "Parquet": "parquet", "ORC": "orc"}[form]
    told = []
    for number, entries in enumerate(files):
        found = data(entries, form)
        key = f"photos/daily/data/{number}.{ending}"
        storage.write(f"{folder}/{key}", found)
        md5 = hashlib.md5(found, usedforsecurity=False).hexdigest()
        told.append({"key": key, "size": len(found), "MD5checksum": md5})
    said: dict[str, Any] = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{folder.rpartition('://')[2]}",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": CSV_COLUMNS if form == "CSV" else "message s3.inventory { ... }",
        "files": told,
    }
    if made_at:
        said["creationTimestamp"] = str(int(made_at.timestamp() * 1000))
    url = f"{folder}/photos/daily/2026-01-05T01-00Z/manifest.json"
    storage.write(url, json.dumps(said).encode())
    return url
