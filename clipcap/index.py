"""An output in, what it knows of each image out, in 24 bytes: an index that manifests overrule.

A part of the index holds the rows of some manifests and rejects, each object with the etag that it
had. It counts only for objects that are still there with that etag; all others are read themselves.
So a part may be missing, old or removed at any time, and nothing is lost but time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import layout, manifest, storage
from clipcap.errors import NotFoundError
from clipcap.layout import Shard
from clipcap.scratch import Scratch
from clipcap.storage import ObjectInfo

VERSION: Final = 1
"""Raised by hand when the columns of a part or their meaning change; others are not read."""
_WORTH_STORING: Final = 32  # objects that no part has; fewer are read again in a moment
_PART_ROWS: Final = 1_000_000  # 24 MB; bounds what is in memory, and what one change makes void
_MOST_SMALL: Final = 8  # parts with less than half that still in use; then they become one
_PARTS_AT_ONCE: Final = 4
_FRESH: Final = """
CREATE TABLE fresh (part INTEGER, object INTEGER, id UUID, version UBIGINT,
    retryable BOOLEAN, attempts INTEGER, limits VARCHAR, first_seen_at TIMESTAMPTZ)"""
_HASHED: Final = """
INSERT INTO fresh
SELECT -1, object, sha256(source_uri)[:32]::UUID, md5_number_lower(coalesce(etag, '')),
       retryable, attempts, limits, first_seen_at FROM incoming"""
_ENTRIES: Final = pa.schema(
    [
        ("part", pa.int32()),
        ("object", pa.int32()),
        ("is_live", pa.bool_()),
        ("dt", pa.string()),
        ("shard", pa.string()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One manifest or one shard's rejects (`path` below the output), as it was when it was read."""

    path: str
    etag: str
    source: str
    rows: int


@dataclass(frozen=True, slots=True)
class _Part:
    """One object of the index, and where it lies on this machine."""

    url: str
    path: Path
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What an output holds. Its rows lie in the scratch database.

    The view `indexed` has the rows of all parts: `part`, `object` (a number in the part), `id` (of
    the image, as a UUID), `version` (64 bits of its etag's md5), `retryable`, `attempts`, `limits`
    and `first_seen_at`. The table `entries` has the objects that count: `part`, `object`,
    `is_live`, `dt`, `shard`, `source`; rows of others are past.
    """

    out: str
    shards: frozenset[Shard]
    place: Scratch
    _parts: tuple[_Part, ...]
    _places: dict[tuple[int, int], Entry]
    """Part (-1: read this time) and number in it, of every object that counts."""
    _stored: frozenset[str]

    @property
    def rows(self) -> int:
        """How many rows `indexed` has."""
        return sum(entry.rows for entry in self._places.values())

    def live(self, source: str) -> int:
        """Return how many live images there are of one source."""
        return sum(
            entry.rows
            for entry in self._places.values()
            if entry.source == source and _is_live(entry.path)
        )


def load(out: str, place: Scratch) -> Known:
    """Return what an output knows of all sources, and read what no part has; writes nothing."""
    manifests, rejects = (manifest.objects(out, name) for name in ("manifest", "rejects"))
    shards = {layout.shard_of(info.url) for info in manifests}
    counted = [info for info in rejects if layout.shard_of(info.url) in shards]
    missing = {info.url.removeprefix(f"{out}/"): info for info in [*manifests, *counted]}
    stored = [info.url for info in storage.listed(layout.index(out))]
    parts = tuple(sorted(_held(stored, place), key=lambda part: (-len(part.entries), part.url)))
    places: dict[tuple[int, int], Entry] = {}
    for n, part in enumerate(parts):
        for number, entry in enumerate(part.entries):
            if entry.path in missing and missing[entry.path].etag == entry.etag:
                places[n, number] = entry
                del missing[entry.path]
    place.rows(_FRESH)
    read = _read(out, list(missing.values()), place)
    places |= {(-1, number): entry for number, entry in enumerate(read)}
    known = Known(out, frozenset(shards), place, parts, places, frozenset(stored))
    _describe(known)
    return known


def store(known: Known) -> int:
    """Write down what had to be read, for the next night; return how many parts were written.

    Parts that became small are joined, and those that nobody needs any more are removed.
    """
    used = {part for part, _ in known._places}
    fresh = [at for at in known._places if at[0] == -1]
    joined: set[int] = set()
    written: list[str] = []
    if len(fresh) >= _WORTH_STORING:
        small = [n for n in used - {-1} if _is_small(n, known)]
        joined = set(small) if len(small) >= _MOST_SMALL else set()
        moved = sorted(at for at in known._places if at[0] == -1 or at[0] in joined)
        written = [_write(chunk, known) for chunk in _chunks(moved, known)]
    needed = {part.url for n, part in enumerate(known._parts) if n in used - joined}
    for url in sorted(known._stored - needed - set(written)):
        storage.delete(url)
    return len(written)


def _is_live(path: str) -> bool:
    return path.startswith("manifest/")


def _is_small(n: int, known: Known) -> bool:
    live = sum(entry.rows for (part, _), entry in known._places.items() if part == n)
    return live < _PART_ROWS / 2


def _held(urls: Sequence[str], place: Scratch) -> Iterator[_Part]:
    """Copy the parts of an index to this machine; what is damaged or unknown is passed over."""
    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="index") as pool:
        for start in range(0, len(urls), _PARTS_AT_ONCE):
            found = pool.map(lambda url: _copied(url, place), urls[start : start + _PARTS_AT_ONCE])
            yield from (part for part in found if part is not None)


def _copied(url: str, place: Scratch) -> _Part | None:
    try:
        data = storage.read(url)
    except NotFoundError:
        return None
    name = url.rpartition("/")[2]
    if name != _name(data):
        return None  # cut, or not ours
    metadata = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    if metadata.get(b"index") != str(VERSION).encode():
        return None
    path = place.folder / name
    path.write_bytes(data)
    return _Part(url, path, tuple(Entry(*one) for one in json.loads(metadata[b"objects"])))


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"


def _read(out: str, missing: Sequence[ObjectInfo], place: Scratch) -> list[Entry]:
    """Read the manifests and rejects that no part has into the database, as part -1."""

    def rows(info: ObjectInfo) -> tuple[pa.Table, str]:
        is_live = _is_live(info.url.removeprefix(f"{out}/"))
        return manifest.known(info.url) if is_live else (manifest.known_rejects(info.url), "")

    entries: list[Entry] = []
    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="index") as pool:
        for start in range(0, len(missing), storage.IN_FLIGHT):
            some = missing[start : start + storage.IN_FLIGHT]
            found = list(pool.map(rows, some))
            numbered = [
                table.append_column("object", pa.repeat(pa.scalar(number, pa.int32()), len(table)))
                for number, (table, _) in enumerate(found, start=start)
            ]
            place.insert(_HASHED, pa.concat_tables(numbered).to_reader())
            entries += [
                Entry(info.url.removeprefix(f"{out}/"), info.etag, source, table.num_rows)
                for info, (table, source) in zip(some, found, strict=True)
            ]
    return entries


def _describe(known: Known) -> None:
    """Make the view `indexed` and the table `entries`."""
    sources = {
        layout.shard_of(entry.path): entry.source
        for entry in known._places.values()
        if _is_live(entry.path)
    }
    rows = []
    for (part, number), entry in known._places.items():
        shard, is_live = layout.shard_of(entry.path), _is_live(entry.path)
        rows.append((part, number, is_live, shard.dt, shard.name, sources[shard]))
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _ENTRIES]
    known.place.insert(
        "CREATE TABLE entries AS FROM incoming",
        pa.table(columns, schema=_ENTRIES).to_reader(),
    )
    selects = ["SELECT * FROM fresh"]
    selects += [
        f"SELECT {n}::INTEGER AS part, * FROM read_parquet('{_quoted(part.path)}')"
        for n, part in enumerate(known._parts)
    ]
    known.place.rows(f"CREATE VIEW indexed AS {' UNION ALL '.join(selects)}")


def _quoted(text: Path | str) -> str:
    return str(text).replace("'", "''")


def _chunks(places: Iterable[tuple[int, int]], known: Known) -> Iterator[list[tuple[int, int]]]:
    """Yield places whose objects fit into one part together."""
    chunk: list[tuple[int, int]] = []
    rows = 0
    for at in places:
        if chunk and rows + known._places[at].rows > _PART_ROWS:
            yield chunk
            chunk, rows = [], 0
        chunk.append(at)
        rows += known._places[at].rows
    if chunk:
        yield chunk


def _write(chunk: Sequence[tuple[int, int]], known: Known) -> str:
    """Write one part with the rows of some objects; return its URL."""
    place, path = known.place, known.place.folder / "part.parquet"
    parts, numbers = zip(*chunk, strict=True)
    columns = [list(parts), list(numbers), list(range(len(chunk)))]
    schema = pa.schema([(name, pa.int32()) for name in ("part", "object", "number")])
    place.insert(
        "CREATE OR REPLACE TABLE chosen AS FROM incoming",
        pa.table(columns, schema=schema).to_reader(),
    )
    objects = [
        [entry.path, entry.etag, entry.source, entry.rows]
        for entry in (known._places[at] for at in chunk)
    ]
    place.rows(
        "COPY (SELECT number AS object, id, version, retryable, attempts, limits, first_seen_at "
        "FROM indexed JOIN chosen USING (part, object) ORDER BY number) "
        f"TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd, KV_METADATA "
        f"{{index: '{VERSION}', objects: '{_quoted(json.dumps(objects))}'}})"
    )
    data = path.read_bytes()
    url = f"{layout.index(known.out)}/{_name(data)}"
    storage.write(url, data)
    return url
