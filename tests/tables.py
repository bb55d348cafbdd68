"""Two outputs in, every difference between their tables out, but for names of runs and clocks."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from clipcap import manifest, storage, tables
from clipcap.errors import NotFoundError
from clipcap.layout import PER_SHARD, Table

CLOCKS = ("run_id", "created_at", "first_seen_at", "rejected_at")
TOLERANCE = 1e-5  # a batch of other images may move the last bits of a log-probability


def glob(out: str, name: Table) -> pa.Table:
    """Return every row of a table, as a reader sees it who takes all files below its folder."""
    try:
        found = [info.url for info in storage.list_objects(f"{out}/{name}")]
    except NotFoundError:
        found = []
    parts = [tables.read(url) for url in found if url.endswith(".parquet")]
    return (
        pa.concat_tables([part.replace_schema_metadata() for part in parts])
        if parts
        else pa.table({})
    )


def rows(out: str, name: Table) -> list[dict[str, Any]]:
    """Return a table's rows, sorted, without names of runs and clocks."""
    kept = [
        {column: value for column, value in row.items() if column not in CLOCKS}
        for row in glob(out, name).to_pylist()
    ]
    order = ("source_uri", "image_id", "label_set", "rank", "model_id", "captioner_id")
    return sorted(kept, key=lambda row: [str(row.get(column, "")) for column in order])


def differences(out: str, other: str) -> list[str]:
    """Return what differs between two outputs; nothing means that they say the same."""
    found = []
    for name in PER_SHARD:
        here, there = rows(out, name), rows(other, name)
        if len(here) != len(there):
            found.append(f"{name}: {len(here)} rows against {len(there)}")
        pairs = zip(here, there, strict=False)
        found += [f"{name}: {a} against {b}" for a, b in pairs if not _same(a, b)][:3]
    live = {row["source_uri"] for row in rows(out, "manifest")}
    both = sorted(live & {row["source_uri"] for row in rows(out, "rejects")})
    found += [f"{uri} is in manifest and rejects" for uri in both]
    if manifest.orphan_rejects(out):
        found.append("rejects of a shard that does not count")
    return found


def _same(a: Any, b: Any) -> bool:  # noqa: ANN401 - any value of a table
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, abs=TOLERANCE, rel=TOLERANCE, nan_ok=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
