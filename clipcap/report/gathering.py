"""The shards that a night worked on in; what the report says of their images out, bounded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import layout, tables
from clipcap.errors import NotFoundError
from clipcap.layout import Shard
from clipcap.outcomes import Night, Outcome
from clipcap.report import mixture
from clipcap.report.cards import Label, Seen, best_labels
from clipcap.report.mixture import Mix

_READERS: Final = 8  # shards read at a time: hides the store's latency
_MANIFEST: Final = [
    "image_id", "source_uri", "member_offset", "member_bytes", "width", "height", "exif",
    "taken_at", "reference_captions", "flags", "run_id",
]  # fmt: skip
_CAPTIONS: Final = ["caption", "status", "clip_score", "candidates", "review_reasons"]
_LABELS: Final = ["image_id", "label_set", "label", "rank", "score", "accepted", "run_id"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a night's shards hold; `queue` and `sheet` together are at most the images asked for."""

    queue: Sequence[Seen] = ()
    sheet: Sequence[Seen] = ()
    in_queue: int = 0
    images: int = 0
    clip_score: float | None = None
    """Mean over the captions of this night."""
    mixes: Sequence[Mix] = ()


@dataclass(slots=True)
class _Part:
    """One shard: a few of its rows, and what the others add up to."""

    shard: Shard
    queue: pa.Table
    others: pa.Table
    images: int = 0
    in_queue: int = 0
    scores: tuple[float, int] = (0.0, 0)
    labels: dict[str, list[Label]] = field(default_factory=dict)
    mix: dict[str, Counter[str]] = field(default_factory=dict)


def gather(night: Night, *, images: int) -> Gathered:
    """Look at the shards for which this night computed something; other shards are not touched."""
    by_shard: dict[Shard, list[Outcome]] = {}
    for outcome in night.outcomes:
        by_shard.setdefault(outcome.shard, []).append(outcome)
    active = {
        shard: outcomes
        for shard, outcomes in sorted(by_shard.items())
        if any(outcome.computed for outcome in outcomes)
    }
    if not active:
        return Gathered()
    share = math.ceil(images / len(active))
    with ThreadPoolExecutor(_READERS, thread_name_prefix="report") as pool:
        found = pool.map(
            lambda pair: _part(night, pair[0], pair[1], most=images, share=share), active.items()
        )
        parts = [part for part in found if part is not None]
    others = [seen for part in parts for seen in _seen(part, part.others)]
    queue = _least_trusted(parts, images - min(len(others), images // 2))
    sheet = _spread(others, images - len(queue))
    count = sum(part.scores[1] for part in parts)
    return Gathered(
        queue=queue,
        sheet=sheet,
        in_queue=sum(part.in_queue for part in parts),
        images=sum(part.images for part in parts),
        clip_score=sum(part.scores[0] for part in parts) / count if count else None,
        mixes=_mixes(night, parts, frozenset(active)),
    )


def _part(
    night: Night, shard: Shard, outcomes: Sequence[Outcome], *, most: int, share: int
) -> _Part | None:
    try:
        live = tables.read(layout.manifest(night.run.out, shard), _MANIFEST)
    except NotFoundError:
        return None  # every image of the shard was rejected or went
    run_id = night.run.run_id
    captions = next((one for one in outcomes if one.stage == "caption"), None)
    table, mine = _with_captions(live, captions, run_id)
    labels = [tables.read(one.url, _LABELS) for one in outcomes if one.stage == "label"]
    for rows in labels:
        relabelled = rows.filter(pc.equal(rows["run_id"], run_id))["image_id"]
        mine = pc.or_(mine, pc.is_in(table["image_id"], relabelled.combine_chunks()))
    table = table.filter(mine)
    doubtful = pc.fill_null(pc.greater(pc.list_value_length(table["review_reasons"]), 0), False)  # noqa: FBT003
    waiting, others = table.filter(doubtful), table.filter(pc.invert(doubtful))
    part = _Part(
        shard=shard,
        queue=waiting.sort_by("clip_score").slice(0, most),
        others=_evenly(others, share),
        images=table.num_rows,
        in_queue=waiting.num_rows,
        scores=(pc.sum(table["clip_score"]).as_py() or 0.0, pc.count(table["clip_score"]).as_py()),
    )
    _add_labels(part, labels, run_id)
    return part


def _with_captions(
    live: pa.Table, captions: Outcome | None, run_id: str
) -> tuple[pa.Table, pa.ChunkedArray]:
    """Return the images with their captions beside them, and which of both this run made."""
    schema = tables.SCHEMAS["captions"]
    names = ["image_id", *_CAPTIONS, "run_id"]
    empty = pa.schema([schema.field(name) for name in names]).empty_table()
    found = tables.read(captions.url, names) if captions else empty
    at = pc.index_in(live["image_id"], value_set=found["image_id"].combine_chunks())
    beside = found.take(at)
    ours = pc.fill_null(pc.equal(beside["run_id"], run_id), False)  # noqa: FBT003 - the value
    mine = pc.or_(pc.equal(live["run_id"], run_id), ours)
    for name in _CAPTIONS:
        live = live.append_column(name, beside[name])
    return live, mine


def _evenly(table: pa.Table, count: int) -> pa.Table:
    """Return `count` rows from all over a table."""
    if table.num_rows <= count:
        return table
    return table.take(pa.array([n * table.num_rows // count for n in range(count)], pa.int64()))


def _add_labels(part: _Part, tables_of_labels: Sequence[pa.Table], run_id: str) -> None:
    ids = [*part.queue["image_id"].to_pylist(), *part.others["image_id"].to_pylist()]
    shown = pa.array(ids, pa.string())
    rows: list[Mapping[str, Any]] = []
    for table in tables_of_labels:
        rows += table.filter(pc.is_in(table["image_id"], shown)).to_pylist()
        if table.num_rows:
            label_set = table["label_set"][0].as_py()
            part.mix[label_set] = mixture.count(table, run_id)
    part.labels = best_labels(rows)


def _seen(part: _Part, table: pa.Table) -> list[Seen]:
    return [
        Seen(part.shard, row, part.labels.get(row["image_id"], ())) for row in table.to_pylist()
    ]


def _least_trusted(parts: Sequence[_Part], images: int) -> list[Seen]:
    waiting = [seen for part in parts for seen in _seen(part, part.queue)]
    return sorted(waiting, key=lambda seen: seen.row["clip_score"] or 0.0)[:images]


def _spread(seen: Sequence[Seen], count: int) -> list[Seen]:
    """Return at most `count` images from all over the shards, in the order of their URIs."""
    taken = min(count, len(seen))
    kept = [seen[n * len(seen) // taken] for n in range(taken)]
    return sorted(kept, key=lambda one: str(one.row["source_uri"]))


def _mixes(night: Night, parts: Sequence[_Part], active: frozenset[Shard]) -> list[Mix]:
    folders = {
        one.of: one.url.rpartition("/dt=")[0] for one in night.of("label") if one.shard in active
    }
    now: dict[str, Counter[str]] = {}
    for part in parts:
        for label_set, counted in part.mix.items():
            now[label_set] = now.get(label_set, Counter()) + counted
    return [
        mixture.compare(
            label_set, counted, mixture.earlier(folders[label_set], night.run.run_id, active)
        )
        for label_set, counted in sorted(now.items())
        if counted and label_set in folders
    ]
