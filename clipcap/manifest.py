"""An output in, what is known of its images out; a shard's manifest and rejects, written whole.

A shard counts when its manifest object is there, even with no rows. Its rejects count only beside
it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import commits, layout, storage, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.errors import NotFoundError
from clipcap.layout import Run, Shard
from clipcap.settings import digest

VERSION: Final = 1
"""Raised by hand when the meaning of a manifest changes."""
_KNOWN_SCHEMA: Final = pa.schema(
    [
        ("source_uri", pa.string()),
        ("etag", pa.string()),
        ("image_id", pa.string()),
        ("dt", pa.string()),
        ("shard", pa.string()),
        ("retryable", pa.bool_()),
        ("attempts", pa.int32()),
        ("first_seen_at", tables.TIME),
    ]
)


@dataclass(frozen=True, slots=True)
class Known:
    """What an output holds: a row per live image and per reject, each with its shard and version.

    `elsewhere` has the live images and the rejects of other sources than the one asked for.
    """

    live: pa.Table
    rejects: pa.Table
    elsewhere: pa.Table
    shards: frozenset[Shard]


def shards(out: str) -> list[Shard]:
    """Return every shard that counts, oldest first."""
    return sorted(layout.shard_of(found.url) for found in _objects(out, "manifest"))


def orphan_rejects(out: str) -> list[Shard]:
    """Return shards that have rejects but no manifest: a run was killed between the two."""
    found = {layout.shard_of(found.url) for found in _objects(out, "rejects")}
    return sorted(found - set(shards(out)))  # in this order: a shard may be written meanwhile


def _objects(out: str, name: layout.Table) -> list[storage.ObjectInfo]:
    found = storage.listed(layout.table(out, name))
    return [info for info in found if info.url.endswith(".parquet")]


def known(out: str, source: str, *, limits: str) -> Known:
    """Return what is known of the images of one source (its canonical URL).

    Rejects under other `limits` (the fingerprint of the image settings) are worth another try.
    """
    counted = shards(out)
    with_rejects = {layout.shard_of(found.url) for found in _objects(out, "rejects")}
    live: list[pa.Table] = []
    rejects: list[pa.Table] = []
    elsewhere: list[pa.Table] = []
    for shard in counted:
        url = layout.manifest(out, shard)
        table = tables.read(url)
        ours = _source(table) == source
        (live if ours else elsewhere).append(_known_live(table, shard))
        if shard in with_rejects:
            left_out = _known_rejects(tables.read(layout.rejects(out, shard)), shard, limits)
            (rejects if ours else elsewhere).append(left_out)
    return Known(_joined(live), _joined(rejects), _joined(elsewhere), frozenset(counted))


def _source(table: pa.Table) -> str:
    """Return the source that a manifest's images came from."""
    return str((table.schema.metadata or {}).get(b"source", b"").decode())


def _joined(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([_KNOWN_SCHEMA.empty_table(), *parts])


def _known_live(table: pa.Table, shard: Shard) -> pa.Table:
    rows = table.num_rows
    columns = [
        table["source_uri"],
        table["source_etag"],
        table["image_id"],
        pa.repeat(shard.dt, rows),
        pa.repeat(shard.name, rows),
        pa.repeat(False, rows),  # noqa: FBT003 - a column of falses
        pa.repeat(pa.scalar(0, pa.int32()), rows),
        table["first_seen_at"],
    ]
    return pa.table(columns, schema=_KNOWN_SCHEMA)


def _known_rejects(table: pa.Table, shard: Shard, limits: str) -> pa.Table:
    columns = ["source_uri", "extra_json", "image_id", "retryable", "attempts", "rejected_at"]
    rows = [
        {
            "source_uri": row["source_uri"],
            "etag": extra.get("source_etag", ""),
            "image_id": row["image_id"],
            "dt": shard.dt,
            "shard": shard.name,
            "retryable": row["retryable"] or extra.get("limits", limits) != limits,
            "attempts": row["attempts"],
            "first_seen_at": datetime.fromisoformat(extra["first_seen_at"])
            if "first_seen_at" in extra
            else row["rejected_at"],
        }
        for row in table.select(columns).to_pylist()
        for extra in [json.loads(row["extra_json"] or "{}")]
    ]
    return tables.from_rows(rows, _KNOWN_SCHEMA)


def members(table: pa.Table) -> str:
    """Return the digest of the live images of a shard: which objects, which content, and where."""
    columns = ("image_id", "content_sha256", "member", "member_offset")
    return digest([table[name].to_pylist() for name in columns])


def publish(table: pa.Table, shard: Shard, *, run: Run, source: str) -> Commit:
    """Write the manifest of a shard; from now on the shard counts."""
    listed = members(table)
    recipe = digest(["manifest", VERSION, layout.CONTRACT])
    return commits.publish(
        layout.manifest(run.out, shard),
        table,
        fingerprint=Fingerprint(recipe, listed),
        run_id=run.run_id,
        metadata={"members": listed, "source": source},
    )


def publish_rejects(rows: Iterable[Mapping[str, Any]], shard: Shard, *, run: Run) -> int:
    """Write the rejects of a shard, or remove the object where there are none; return how many."""
    table = tables.from_rows(rows, tables.SCHEMAS["rejects"]).sort_by("source_uri")
    url = layout.rejects(run.out, shard)
    if table.num_rows == 0:
        storage.delete(url)
        return 0
    listed = digest([table["source_uri"].to_pylist(), table["reason"].to_pylist()])
    commits.publish(
        url,
        table,
        fingerprint=Fingerprint(digest(["rejects", VERSION, layout.CONTRACT]), listed),
        run_id=run.run_id,
        metadata={"members": listed},
    )
    return int(table.num_rows)


def read_rejects(out: str, shard: Shard) -> pa.Table:
    """Return the rejects of a shard; no object means none."""
    try:
        return tables.read(layout.rejects(out, shard))
    except NotFoundError:
        return tables.SCHEMAS["rejects"].empty_table()


def retire(shard: Shard, *, run: Run, live: Collection[str], rejects: Collection[str]) -> int:
    """Take images (by `image_id`) out of a shard's tables; return how many live rows stay.

    A shard that holds nothing any more is removed: its rejects, then its manifest, then its tar.
    """
    try:
        table = tables.read(layout.manifest(run.out, shard))
    except NotFoundError:  # an earlier try got so far
        remove(run.out, shard)
        return 0
    kept = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(list(live), pa.string()))))
    left = read_rejects(run.out, shard).to_pylist()
    staying = [row for row in left if row["image_id"] not in rejects]
    if len(staying) != len(left):
        publish_rejects(staying, shard, run=run)
    if kept.num_rows == 0 and not staying:
        remove(run.out, shard)
    elif kept.num_rows != table.num_rows:
        publish(kept, shard, run=run, source=_source(table))
    return int(kept.num_rows)


def remove(out: str, shard: Shard) -> None:
    """Remove a shard that holds nothing; its manifest before its tar, so that no tar is missed."""
    storage.delete(layout.rejects(out, shard))
    storage.delete(layout.manifest(out, shard))
    storage.delete(layout.tar(out, shard))
