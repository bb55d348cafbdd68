"""What a source lists and an output knows in; samples packed into shards, images to retire, out.

Every listed sample ends in one place: unchanged, in a planned shard, or (later) in that shard's
rejects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import duckdb
import pyarrow as pa
from pydantic import Field

from clipcap.errors import SettingsError
from clipcap.layout import Run, Shard
from clipcap.manifest import Known
from clipcap.sample import Sample
from clipcap.settings import Settings, digest

_LISTED: Final = pa.schema(
    [
        ("n", pa.int64()),
        ("source_uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)


_UNKNOWN_BYTES: Final = 2**19  # taken for an image whose size only its download will tell


class PackSettings(Settings):
    """How many images go into one shard."""

    max_images: int = Field(default=2_000, gt=0)
    """Most images in one shard."""
    max_bytes: int = Field(default=256 * 2**20, gt=0)
    """Most bytes of images in one shard; bounds the memory of the shard stage."""


@dataclass(frozen=True, slots=True)
class Todo:
    """A sample that has to be read: new, changed, or rejected for a reason that may have passed."""

    sample: Sample
    first_seen_at: datetime | None = None
    attempts: int = 0
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """A listing against what is known.

    `today` holds every sample that is to do or lies in a shard of this run's date, in the order of
    the listing: packing them as a whole gives the same shards, whether or not an earlier attempt of
    the night wrote some of them.
    """

    today: tuple[Todo | Sample, ...]
    retired: Mapping[Shard, Mapping[str, list[str]]]
    listed: int
    deleted: int

    @property
    def todo(self) -> list[Todo]:
        """The samples that have to be read."""
        return [item for item in self.today if isinstance(item, Todo)]


# A listed sample is kept where a live row, or a reject not worth another try, has its version.
_COMPARE: Final = """
CREATE TEMP TABLE keep AS
SELECT n, k.* FROM listed JOIN (
    SELECT *, 0 AS kind FROM live UNION ALL SELECT *, 1 FROM rejects WHERE NOT retryable
) k USING (source_uri, etag)
QUALIFY row_number() OVER (PARTITION BY source_uri ORDER BY kind, k.dt, k.shard) = 1;
CREATE TEMP TABLE known AS
SELECT source_uri, min(first_seen_at) AS first_seen_at FROM (FROM live UNION ALL FROM rejects)
GROUP BY source_uri;
"""
_TODAY: Final = """
SELECT l.n, keep.n IS NULL AS todo, k.first_seen_at, k.source_uri IS NOT NULL AS known,
       (SELECT max(attempts) FROM rejects r
        WHERE r.source_uri = l.source_uri AND r.etag = l.etag) AS tried
FROM listed l LEFT JOIN keep ON keep.n = l.n LEFT JOIN known k ON k.source_uri = l.source_uri
WHERE keep.n IS NULL OR keep.dt = ? ORDER BY l.n"""
_RETIRED: Final = """
SELECT dt, shard, 'live' AS kind, image_id FROM live
WHERE NOT EXISTS (SELECT 1 FROM keep WHERE keep.kind = 0 AND keep.image_id = live.image_id
                  AND keep.dt = live.dt AND keep.shard = live.shard)
UNION ALL
SELECT dt, shard, 'rejects', image_id FROM rejects
WHERE NOT EXISTS (SELECT 1 FROM keep WHERE keep.kind = 1 AND keep.image_id = rejects.image_id
                  AND keep.dt = rejects.dt AND keep.shard = rejects.shard)
ORDER BY ALL"""


def compare(samples: Sequence[Sample], known: Known, *, run: Run) -> Comparison:
    """Compare a listing, sorted by URI, with what an output holds of the same source.

    Raises:
        SettingsError: nothing is listed, or images are in the output from another source.
    """
    if not samples:
        raise SettingsError(
            "The source has no files: the folder, bucket or table is empty, or nothing matches the "
            "glob. Nothing was changed."
        )
    columns = [
        list(range(len(samples))),
        [sample.source_uri for sample in samples],
        [sample.etag for sample in samples],
        [sample.size_bytes for sample in samples],
    ]
    with duckdb.connect() as database:
        database.register("listed", pa.table(columns, schema=_LISTED))
        database.register("live", known.live)
        database.register("rejects", known.rejects)
        database.register("elsewhere", known.elsewhere)
        _require_one_source(database)
        database.execute(_COMPARE)
        rows = database.execute(_TODAY, [run.dt]).fetchall()
        retired: dict[Shard, dict[str, list[str]]] = {}
        for dt, shard, kind, image_id in database.execute(_RETIRED).fetchall():
            lists = retired.setdefault(Shard(dt, shard), {"live": [], "rejects": []})
            lists[kind].append(image_id)
        deleted = database.execute(
            "SELECT count(*) FROM known ANTI JOIN listed USING (source_uri)"
        ).fetchone()
    today = tuple(
        Todo(samples[n], first_seen_at, tried or 0, changed=is_known and tried is None)
        if todo
        else samples[n]
        for n, todo, first_seen_at, is_known, tried in rows
    )
    return Comparison(today, retired, len(samples), deleted[0] if deleted else 0)


def _require_one_source(database: duckdb.DuckDBPyConnection) -> None:
    found = database.execute(
        "SELECT source_uri, shard FROM listed JOIN elsewhere USING (source_uri) LIMIT 1"
    ).fetchone()
    if found:
        raise SettingsError(
            f"{found[0]} is in this output already, from another source (shard {found[1]}). "
            "Use the same source address as before, or another output."
        )


def shards_to_write(
    compared: Comparison,
    *,
    run: Run,
    pack: PackSettings,
    taken: frozenset[Shard],
    limit: int | None = None,
) -> dict[Shard, list[Todo]]:
    """Pack the night's samples into shards; each gets a name made from what it shall hold."""
    if limit is not None:
        fresh_first = sorted(compared.todo, key=lambda item: item.attempts > 0)
        groups = _grouped(fresh_first[:limit], pack)
    else:
        packed = _grouped(compared.today, pack)
        whole = [group for group in packed if all(isinstance(item, Todo) for item in group)]
        broken = [group for group in packed if not all(isinstance(item, Todo) for item in group)]
        rest = [item for group in broken for item in group if isinstance(item, Todo)]
        groups = [*whole, *_grouped(rest, pack)]
    written: dict[Shard, list[Todo]] = {}
    for group in groups:
        samples = [item for item in group if isinstance(item, Todo)]
        written[_named(samples, run, taken)] = samples
    return written


def _grouped(items: Sequence[Todo | Sample], pack: PackSettings) -> list[list[Todo | Sample]]:
    groups: list[list[Todo | Sample]] = []
    size = 0
    for item in items:
        more = (item.sample if isinstance(item, Todo) else item).size_bytes or _UNKNOWN_BYTES
        if not groups or len(groups[-1]) == pack.max_images or size + more > pack.max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += more
    return groups


def _named(samples: list[Todo], run: Run, taken: frozenset[Shard]) -> Shard:
    content = [[item.sample.source_uri, item.sample.etag, item.attempts] for item in samples]
    for salt in range(len(taken) + 1):
        shard = Shard(run.dt, digest([content, salt] if salt else content)[:16])
        if shard not in taken:
            return shard
    raise SettingsError(f"No free name for a shard of {run.dt}: every one tried is in the output.")
