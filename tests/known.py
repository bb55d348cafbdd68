"""Rows in, an output that knows them out: manifests and rejects without any image."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from clipcap import keys, layout, manifest, storage, tables
from clipcap.layout import Run, Shard

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One image that is live or was rejected; `seen` counts days from `BEGIN`."""

    uri: str
    etag: str = "a"
    is_live: bool = True
    retryable: bool = False
    attempts: int = 1
    limits: str | None = None
    seen: int = 0

    @property
    def first_seen_at(self) -> datetime:
        """When the image was first seen."""
        return BEGIN + timedelta(days=self.seen)


@dataclass
class Held:
    """What one shard holds, and of which source."""

    source: str
    rows: list[Row] = field(default_factory=list)


def write(out: str, shards: dict[Shard, Held]) -> None:
    """Write the manifest and the rejects of some shards."""
    for shard, held in shards.items():
        run = Run("run", out, shard.dt)
        rejects = [_reject(row, shard) for row in held.rows if not row.is_live]
        manifest.publish_rejects(rejects, shard, run=run)
        rows = [_live(row, shard) for row in held.rows if row.is_live]
        table = tables.from_rows(rows, tables.SCHEMAS["manifest"])
        manifest.publish(table, shard, run=run, source=held.source)


def remove(out: str, shard: Shard) -> None:
    """Remove a shard, as the retirement of its last image does."""
    manifest.remove(out, shard)


def index_parts(out: str) -> list[str]:
    """Return the URLs of the parts of an output's index."""
    return [found.url for found in storage.listed(layout.index(out))]


def shard(day: int, name: str = "s") -> Shard:
    """Return the name of a shard of one day."""
    return Shard((BEGIN + timedelta(days=day)).date().isoformat(), name)


def many(count: int, *, etag: str = "a", source: str = "s3://b") -> Iterable[Row]:
    """Yield rows of images that are live."""
    return (Row(f"{source}/{n:06d}.jpg", etag) for n in range(count))


def _live(row: Row, at: Shard) -> dict[str, Any]:
    return {
        "image_id": keys.image_id(row.uri),
        "key": keys.sample_key(row.uri),
        "source_uri": row.uri,
        "source_etag": row.etag,
        "content_sha256": "0" * 64,
        "shard": at.name,
        "member": "a.jpg",
        "member_offset": 512,
        "member_bytes": 1,
        "media_type": "image/jpeg",
        **dict.fromkeys(("width", "height", "original_width", "original_height"), 1),
        "first_seen_at": row.first_seen_at,
        "run_id": "run",
    }


def _reject(row: Row, at: Shard) -> dict[str, Any]:
    extra = {"source_etag": row.etag, "first_seen_at": row.first_seen_at.isoformat()}
    return {
        "source_uri": row.uri,
        "image_id": keys.image_id(row.uri),
        "stage": "shard",
        "reason": "timeout" if row.retryable else "truncated",
        "retryable": row.retryable,
        "attempts": row.attempts,
        "shard": at.name,
        "rejected_at": row.first_seen_at,
        "run_id": "run",
        "extra_json": json.dumps(extra | ({"limits": row.limits} if row.limits else {})),
    }
