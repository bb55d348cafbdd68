"""A shard's images and rejects in, its manifest and its rejects out, each written whole.

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

VERSION: Final = 2
"""Raised by hand when the meaning of a manifest changes."""
LOST: Final = "lost"
"""`source_etag` of an image whose bytes are lost: no version is such, so the next run reads it."""
KNOWN: Final = pa.schema(
    [
        ("source_uri", pa.string()),
        ("etag", pa.string()),
        ("retryable", pa.bool_()),
        ("attempts", pa.int32()),
        ("limits", pa.string()),
        ("first_seen_at", tables.TIME),
    ]
)
"""What is known of an image that is live or was rejected; `limits` are those that it broke."""


@dataclass(frozen=True, slots=True)
class SourceTar:
    """The tar of the source that the images of a shard were left in, and its version."""

    url: str
    etag: str

    @property
    def footer(self) -> dict[str, str]:
        """What the footer of the manifest says of it."""
        return {"tar": self.url, "tar_etag": self.etag}


@dataclass(frozen=True, slots=True)
class MergedFrom:
    """The shards that a shard was merged from, each with the digest of its members then."""

    members: Mapping[Shard, str]

    @property
    def footer(self) -> dict[str, str]:
        """What the footer of the manifest says of them."""
        return {"merged": json.dumps([[one.dt, one.name, of] for one, of in self.members.items()])}


def merged_from(metadata: Mapping[str, str]) -> MergedFrom | None:
    """Return the shards that the footer of a manifest names as those it was merged from."""
    named = json.loads(metadata.get("merged", "[]"))
    return MergedFrom({Shard(dt, name): of for dt, name, of in named}) if named else None


def source_tar(metadata: Mapping[str, str]) -> SourceTar | None:
    """Return the tar of the source that the footer of a manifest names; None: the shard has one."""
    url = metadata.get("tar")
    return SourceTar(url, metadata.get("tar_etag", "")) if url else None


def shards(out: str) -> list[Shard]:
    """Return every shard that counts, oldest first."""
    return sorted(layout.shard_of(found.url) for found in objects(out, "manifest"))


def orphan_rejects(out: str) -> list[Shard]:
    """Return shards that have rejects but no manifest: a run was killed between the two."""
    found = {layout.shard_of(found.url) for found in objects(out, "rejects")}
    return sorted(found - set(shards(out)))  # in this order: a shard may be written meanwhile


def objects(out: str, name: layout.Table) -> list[storage.ObjectInfo]:
    """Return the objects of a table, sorted by URL; a Delta log beside them is none of it."""
    found = storage.listed(layout.table(out, name))
    return [
        info for info in found if info.url.endswith(".parquet") and "/_delta_log/" not in info.url
    ]


def _source(table: pa.Table) -> str:
    """Return the source that a manifest's images came from."""
    return str((table.schema.metadata or {}).get(b"source", b"").decode())


def known(url: str) -> tuple[pa.Table, str]:
    """Return what a manifest knows of its images, in columns of `KNOWN`, and their source."""
    table = tables.read(url, ["source_uri", "source_etag", "first_seen_at"])
    columns = {
        "source_uri": table["source_uri"],
        "etag": table["source_etag"],
        "first_seen_at": table["first_seen_at"],
    }
    none = {field.name: pa.nulls(table.num_rows, field.type) for field in KNOWN}
    return pa.table({**none, **columns}, schema=KNOWN), _source(table)


def known_rejects(url: str) -> pa.Table:
    """Return what a shard's rejects know, in columns of `KNOWN`."""
    columns = ["source_uri", "extra_json", "retryable", "attempts", "rejected_at"]
    rows = [
        {
            "source_uri": row["source_uri"],
            "etag": extra.get("source_etag", ""),
            "retryable": row["retryable"],
            "attempts": row["attempts"],
            "limits": extra.get("limits"),
            "first_seen_at": datetime.fromisoformat(extra["first_seen_at"])
            if "first_seen_at" in extra
            else row["rejected_at"],
        }
        for row in tables.read(url, columns).to_pylist()
        for extra in [json.loads(row["extra_json"] or "{}")]
    ]
    return tables.from_rows(rows, KNOWN)


def tar_url(out: str, shard: Shard, metadata: Mapping[str, str]) -> str:
    """Return where the tar of a shard lies: a source's own where its manifest's footer says so.

    Args:
        out: URL of the output.
        shard: The shard.
        metadata: Footer of its manifest (`Commit.metadata`).
    """
    found = source_tar(metadata)
    return found.url if found else layout.tar(out, shard)


def members(table: pa.Table) -> str:
    """Return the digest of the live images of a shard: which objects, which content, and where."""
    columns = ("image_id", "content_sha256", "member", "member_offset")
    return digest([table[name].to_pylist() for name in columns])


def recipe() -> str:
    """Return the recipe of manifests as they are written now."""
    return digest(["manifest", VERSION, layout.RECIPES])


def publish(
    table: pa.Table,
    shard: Shard,
    *,
    run: Run,
    source: str,
    tar: SourceTar | MergedFrom | None = None,
) -> Commit:
    """Write the manifest of a shard; from now on the shard counts.

    `tar`: where its images lie, if they were left in the source; or what they were merged from.
    """
    listed = members(table)
    return commits.publish(
        layout.manifest(run.out, shard),
        table,
        fingerprint=Fingerprint(recipe(), listed),
        run_id=run.run_id,
        metadata={"members": listed, "source": source, **(tar.footer if tar else {})},
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
        fingerprint=Fingerprint(digest(["rejects", VERSION, layout.RECIPES]), listed),
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

    A shard that holds nothing any more is removed: its rejects, then its manifest, then its tar. A
    tar of the source is never touched.
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
        tar = source_tar(tables.metadata(table))
        publish(kept, shard, run=run, source=_source(table), tar=tar)
    return int(kept.num_rows)


def lacks_tar(out: str, shard: Shard) -> bool:
    """Look, after a listing, whether a shard's images have no bytes.

    Another run may have written or retired it since. Images that wait to be read again lack none
    that anybody counts on.
    """
    if storage.info(layout.tar(out, shard)) is not None:
        return False
    try:
        etags = tables.read(layout.manifest(out, shard), columns=["source_etag"])
    except NotFoundError:
        return False
    return any(etag != LOST for etag in etags["source_etag"].to_pylist())


def remove(out: str, shard: Shard) -> None:
    """Remove a shard that holds nothing; its manifest before its tar, so that no tar is missed."""
    storage.delete(layout.rejects(out, shard))
    storage.delete(layout.manifest(out, shard))
    storage.delete(layout.tar(out, shard))
