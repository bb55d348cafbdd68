"""A listing and what an output knows in; what is new, changed or gone out, row by row, from disk.

First, all rows are brought together by 128 bits of their URI's hash, which is their `image_id`, and
64 bits of their version's, as many at a time as the memory holds; an image that is listed once,
known once and the same leaves there. What is left, 1 or 2 % on most nights, is looked at in full.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final

import pyarrow as pa

from clipcap.errors import SettingsError
from clipcap.index import Known
from clipcap.layout import Shard
from clipcap.samples import SCHEMA
from clipcap.scratch import Scratch, Spool

_LOG = logging.getLogger(__name__)
FEW: Final = 20
"""So many images may always go: a small source may change altogether."""
_BYTES_PER_ROW: Final = 192  # of the memory limit, where rows are brought together; 130 were seen
# Sides: 1 listed, 2 known, 4 known and to be looked at again, 8 known from another source. An image
# listed once and known once is unchanged if `bit_xor` of its two versions is 0.
_LISTED: Final = """
CREATE TABLE sides AS
SELECT sha256(source_uri)[:32]::UUID AS id, md5_number_lower(coalesce(etag, '')) AS version,
       n, coalesce(epoch_us(modified_at), 0) AS written, 1::UTINYINT AS side
FROM incoming"""
_KNOWN: Final = """
CREATE TABLE sided AS
SELECT e.*, source = a.of AS ours, a.limits,
       (CASE WHEN source <> a.of THEN 8 WHEN e.dt = a.dt THEN 4 ELSE 2 END)::UTINYINT AS side
FROM entries e CROSS JOIN asked a;
CREATE VIEW known AS
SELECT i.* EXCLUDE (retryable, limits), e.is_live, e.dt, e.shard, e.ours, e.side,
       coalesce(retryable, false) OR coalesce(i.limits <> e.limits, false) AS retryable
FROM indexed i JOIN sided e USING (part, object);
INSERT INTO sides
SELECT id, version, NULL, NULL, if(retryable AND ours, 4, side) FROM known;
CREATE TABLE candidates (id UUID, n BIGINT, times BIGINT)"""
_CANDIDATES: Final = """
INSERT INTO candidates
SELECT id, arg_max(n, written), count(n) FROM sides
WHERE hash(id) % $1::UBIGINT = $2::UBIGINT GROUP BY id
HAVING bit_or(side) & 7 <> 0
   AND NOT (count(*) = 2 AND bit_or(side) = 3 AND bit_xor(version) = 0)"""
# `merged`: how often (`Shard.generation`). What was merged counts before what it was merged from.
_FEW_KNOWN: Final = """
DROP TABLE sides;
CREATE TABLE k AS
SELECT *, coalesce(try_cast(split_part(shard, '-m', 2) AS INTEGER), 0) AS merged
FROM known SEMI JOIN candidates USING (id)"""
_FEW_LISTED: Final = """
CREATE TABLE l AS
SELECT * REPLACE (coalesce(etag, '') AS etag, coalesce(size_bytes, 0) AS size_bytes,
                  coalesce(url, source_uri) AS url, coalesce("offset", 0) AS "offset",
                  coalesce(form, '') AS form, coalesce(captions, []) AS captions,
                  coalesce(sidecars, []) AS sidecars),
       sha256(source_uri)[:32]::UUID AS id, md5_number_lower(coalesce(etag, '')) AS version
FROM incoming"""
_ELSEWHERE: Final = """
SELECT source_uri, e.source, shard FROM l JOIN k USING (id) JOIN entries e USING (dt, shard)
WHERE NOT ours ORDER BY ALL LIMIT 1"""
# A listed sample is kept where a live row, or a reject not worth another try, has its version. What
# is archived can only be kept. What was first seen after the listing was made cannot be in it, but
# what is listed and must not come in is seen to be there, and goes.
_JUDGE: Final = """
DELETE FROM k WHERE NOT ours;
DELETE FROM k WHERE first_seen_at > (SELECT as_of FROM asked)
AND id NOT IN (SELECT id FROM l) AND id NOT IN (SELECT id FROM kept_out);
CREATE TABLE keep AS
SELECT l.n, k.id, k.is_live, k.dt, k.shard FROM l JOIN k USING (id, version)
WHERE k.is_live OR NOT k.retryable
QUALIFY row_number() OVER (PARTITION BY id ORDER BY NOT k.is_live, merged DESC, k.dt, k.shard) = 1;
CREATE TABLE unread AS SELECT n FROM l ANTI JOIN keep USING (n) WHERE coalesce(archived, false);
DELETE FROM l WHERE n IN (FROM unread);
CREATE TABLE today AS
SELECT l.n, keep.n IS NULL AS todo, s.first_seen_at, coalesce(t.attempts, 0)::INTEGER AS attempts,
       keep.n IS NULL AND s.id IS NOT NULL AND t.attempts IS NULL AS changed
FROM l LEFT JOIN keep USING (n)
LEFT JOIN (SELECT id, min(first_seen_at) AS first_seen_at FROM k GROUP BY id) s ON s.id = l.id
LEFT JOIN (SELECT id, version, max(attempts) AS attempts FROM k WHERE NOT is_live
           GROUP BY id, version) t ON t.id = l.id AND t.version = l.version
WHERE keep.n IS NULL OR keep.dt = (SELECT dt FROM asked);
CREATE TABLE retired AS FROM k ANTI JOIN keep USING (id, is_live, dt, shard);
CREATE TABLE taken AS SELECT n FROM today WHERE todo;
CREATE TABLE donors AS
SELECT n, any_value(d.dt || '/' || d.shard) AS donor
FROM today JOIN l USING (n) JOIN known d ON d.version = l.version AND d.is_live
WHERE todo AND etag <> '' GROUP BY n"""
_SOME: Final = """
CREATE OR REPLACE TABLE taken AS
SELECT n FROM today JOIN l USING (n) WHERE todo ORDER BY attempts > 0, source_uri LIMIT ?"""
_SOME_CONTAINERS: Final = """
CREATE OR REPLACE TABLE taken AS
SELECT n FROM today JOIN l USING (n) JOIN (
    FROM (SELECT url, count(*) AS images FROM today JOIN l USING (n) WHERE todo GROUP BY url)
    SELECT url QUALIFY sum(images) OVER (ORDER BY url) <= ? OR row_number() OVER (ORDER BY url) = 1
) USING (url) WHERE todo"""
# A changed image that a limit puts off keeps one old row until its turn comes: the newest, and of a
# live row and a reject the live one; a killed run may have left more.
_RETIRED: Final = """
SELECT dt, shard, is_live, replace(id::VARCHAR, '-', '') AS image_id FROM retired ANTI JOIN (
    SELECT id, dt, shard, is_live FROM retired
    WHERE id IN (SELECT id FROM l JOIN (FROM today WHERE todo) USING (n) ANTI JOIN taken USING (n))
    QUALIFY row_number()
        OVER (PARTITION BY id ORDER BY NOT is_live, merged DESC, dt DESC, shard DESC) = 1
) USING (id, dt, shard, is_live) ORDER BY ALL"""
_KEPT_OUT: Final = """
CREATE TABLE kept_out AS SELECT sha256(source_uri)[:32]::UUID AS id FROM incoming"""
_LOST: Final = """
SELECT count(DISTINCT id) FROM k
WHERE is_live AND id NOT IN (SELECT id FROM l) AND id NOT IN (SELECT id FROM kept_out)"""
_ROWS: Final = f"""
SELECT {", ".join(f'l."{name}"' for name in SCHEMA.names if name != "archived")}, l.n,
       replace(l.id::VARCHAR, '-', '') AS image_id, donor, t.* EXCLUDE (n)
FROM l JOIN today t USING (n) LEFT JOIN donors USING (n)"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is compared: a listing of the source `of` (a canonical URL), on the date `dt`.

    Rejects under other `limits` (the fingerprint of the image settings) are worth another try. A
    listing that was made at `as_of` says nothing of images first seen later. `max_delete_rate` is
    the largest share of the live images that may go.
    """

    of: str
    dt: str
    limits: str
    as_of: datetime | None = None
    max_delete_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A listing against what is known; its rows lie in the scratch database.

    `unread` counts listed images that are archived and not in the output: they are left out.
    """

    listed: int
    todo: int
    deleted: int
    unread: int
    place: Scratch

    def today(self, *, by_container: bool) -> Iterator[pa.RecordBatch]:
        """Yield every sample that is `todo` or lies in a shard of this date, sorted by URI.

        Packing them as a whole gives the same shards, whether or not an earlier attempt of the
        night wrote some of them. `by_container` sorts by the object that holds the bytes first.
        """
        return self.place.batches(f"{_ROWS} ORDER BY {_order(by_container)}")

    def some(self, limit: int, *, by_container: bool) -> Iterator[pa.RecordBatch]:
        """Yield at most `limit` samples that are to do, and put off the rest; new ones first.

        `by_container`: whole containers, and one at least.
        """
        self.place.rows(_SOME_CONTAINERS if by_container else _SOME, limit)
        order = _order(by_container) if by_container else "t.attempts > 0, source_uri"
        return self.place.batches(f"{_ROWS} SEMI JOIN taken USING (n) ORDER BY {order}")

    def rows(self, places: Sequence[int], *, by_container: bool) -> Iterator[pa.RecordBatch]:
        """Yield the samples at some places of the listing (`n`), sorted by URI."""
        rest = pa.table({"n": pa.array(places, pa.int64())})
        self.place.insert("CREATE OR REPLACE TABLE rest AS FROM incoming", rest.to_reader())
        return self.place.batches(
            f"{_ROWS} SEMI JOIN rest USING (n) ORDER BY {_order(by_container)}"
        )

    def retired(self) -> Iterator[tuple[Shard, dict[str, list[str]]]]:
        """Yield the shards that images leave, with the `image_id` of those `live` and `rejects`."""
        rows = (row for batch in self.place.batches(_RETIRED) for row in batch.to_pylist())
        for shard, leaving in groupby(rows, key=lambda row: Shard(row["dt"], row["shard"])):
            lists: dict[str, list[str]] = {"live": [], "rejects": []}
            for row in leaving:
                lists["live" if row["is_live"] else "rejects"].append(row["image_id"])
            yield shard, lists


def _order(by_container: bool) -> str:  # noqa: FBT001 - private, and said by name where it matters
    return "url, source_uri" if by_container else "source_uri"


def compare(
    listing: Spool, known: Known, asked: Asked, kept_out: Spool | None = None
) -> Comparison:
    """Compare a listing (columns of `samples.SCHEMA`) with what an output holds of the same source.

    Of two rows of one URI the newest counts. `kept_out` has the `source_uri` of what was listed but
    must not come in: it may go without being missed.

    Raises:
        SettingsError: nothing is listed, images are in the output from another source, or more of
            them would go than is allowed.
    """
    if not listing.rows and not (kept_out and kept_out.rows):
        raise SettingsError(
            "The source has no files: the folder, bucket or table is empty, or nothing matches the "
            "glob or lies below the folder of `only`. Nothing was changed."
        )
    place = known.place
    place.rows(
        "CREATE TABLE asked AS SELECT $1 AS of, $2 AS dt, $3 AS limits, $4::TIMESTAMPTZ AS as_of",
        *(asked.of, asked.dt, asked.limits, asked.as_of),
    )
    place.insert(_LISTED, listing.read(("source_uri", "etag", "modified_at")))
    place.rows(_KNOWN)
    passes = 1 + (listing.rows + known.rows) * _BYTES_PER_ROW // place.memory_bytes
    for number in range(passes):
        place.rows(_CANDIDATES, passes, number)
    n = place.integers("SELECT n FROM candidates WHERE times > 0 ORDER BY n")
    place.rows(_FEW_KNOWN)
    place.insert(_FEW_LISTED, listing.take(n))
    _require_one_source(place)
    _note_kept_out(place, kept_out)
    place.rows(_JUDGE)
    repeated = place.number("SELECT sum(times - 1) FROM candidates WHERE times > 0")
    unread = place.number("SELECT count(*) FROM unread")
    compared = Comparison(
        listed=listing.rows - repeated - unread,
        todo=place.number("SELECT count(*) FROM taken"),
        deleted=place.number("SELECT count(DISTINCT id) FROM k WHERE id NOT IN (SELECT id FROM l)"),
        unread=unread,
        place=place,
    )
    if unread:
        _LOG.warning(
            "%d of %d listed images are archived and cannot be read: they are left out until "
            "they are restored.", unread, listing.rows - repeated,
        )  # fmt: skip
    _require_few_deletions(compared, known.live(asked.of), asked)
    return compared


def _note_kept_out(place: Scratch, kept_out: Spool | None) -> None:
    if kept_out and kept_out.rows:
        place.insert(_KEPT_OUT, kept_out.read())
    else:
        place.rows("CREATE TABLE kept_out (id UUID)")


def _require_one_source(place: Scratch) -> None:
    for uri, source, shard in place.rows(_ELSEWHERE):
        raise SettingsError(
            f"{uri} is in this output already, from another source ({source}, shard {shard}). "
            "Use the same source address as before, or another output."
        )


def _require_few_deletions(compared: Comparison, live: int, asked: Asked) -> None:
    lost = compared.place.number(_LOST)
    if lost > FEW and lost > asked.max_delete_rate * live:
        raise SettingsError(
            f"{lost:,} of the {live:,} images that this output holds of {asked.of} are not in its "
            f"listing of {compared.listed:,} ({lost / live:.0%}, limit {asked.max_delete_rate:.0%})"
            ": they would all be taken out. Nothing was changed. Is a glob or prefix mistyped, a "
            "disk or bucket mounted that is another or half empty, the inventory a partial one? If "
            "they are meant to go, allow it for one run: max_delete_rate = 1 under [shard] of a "
            "`--settings` file."
        )
