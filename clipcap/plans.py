"""A night's work in, small objects beside the output out: each task reads that of its shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from clipcap import keys, layout, storage, tables
from clipcap.layout import Run, Shard
from clipcap.planning import Comparison, Todo
from clipcap.sample import Bytes, Sample, Sidecar

_RANGE: Final = [("url", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]
_SCHEMA: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("key", pa.string()),
        ("source_uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_at", tables.TIME),
        *_RANGE,
        ("captions", tables.STRINGS),
        ("sidecars", pa.list_(pa.field("element", pa.struct([("suffix", pa.string()), *_RANGE])))),
        ("first_seen_at", tables.TIME),
        ("attempts", pa.int32()),
        ("changed", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A shard to be written; its samples lie in the plan object."""

    shard: Shard
    images: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The night's work in numbers and names; small enough to cross a task boundary."""

    source: str
    planned: tuple[Planned, ...]
    retired: tuple[Shard, ...]
    listed: int
    new: int
    changed: int
    deleted: int
    unchanged: int


def write(
    compared: Comparison, shards: Mapping[Shard, list[Todo]], *, run: Run, source: str
) -> Plan:
    """Write what each task needs to know, and return the plan in numbers and names."""
    plan = summary(compared, shards, source=source)
    for shard, todo in shards.items():
        write_samples(layout.plan(run, shard), todo, source=source)
    for shard, lists in _retired(compared, shards).items():
        storage.write(layout.retirement(run, shard), json.dumps(lists).encode())
    return plan


def summary(compared: Comparison, shards: Mapping[Shard, list[Todo]], *, source: str) -> Plan:
    """Return the plan in numbers and names, writing nothing."""
    planned = tuple(
        Planned(shard, len(todo), sum(item.sample.size_bytes for item in todo))
        for shard, todo in shards.items()
    )
    taken = sum(part.images for part in planned)
    changed = sum(item.changed for todo in shards.values() for item in todo)
    todo = len(compared.todo)
    return Plan(
        source=source,
        planned=planned,
        retired=tuple(_retired(compared, shards)),
        listed=compared.listed - (todo - taken),
        new=taken - changed,
        changed=changed,
        deleted=compared.deleted,
        unchanged=compared.listed - todo,
    )


def _retired(
    compared: Comparison, shards: Mapping[Shard, list[Todo]]
) -> dict[Shard, dict[str, list[str]]]:
    """Leave out what a limit puts off: a changed image keeps one old row until its turn comes.

    One, the newest, and of a live row and a reject the live one: a killed run may have left more.
    """
    taken = {item.sample.source_uri for todo in shards.values() for item in todo}
    waiting = {
        keys.image_id(item.sample.source_uri)
        for item in compared.todo
        if item.sample.source_uri not in taken
    }
    leaving: dict[Shard, dict[str, list[str]]] = {shard: {} for shard in compared.retired}
    for kind in ("live", "rejects"):
        for shard in sorted(compared.retired, reverse=True):
            ids = compared.retired[shard][kind]
            leaving[shard][kind] = [i for i in ids if i not in waiting]
            waiting.difference_update(ids)
    return {shard: lists for shard, lists in leaving.items() if any(lists.values())}


def write_samples(url: str, todo: Iterable[Todo], *, source: str) -> None:
    """Write what is known of some samples before their bytes are read."""
    table = tables.from_rows(map(_row, todo), _SCHEMA)
    storage.write(url, tables.to_bytes(table, {"source": source}))


def _row(item: Todo) -> dict[str, Any]:
    sample = item.sample
    return {
        "image_id": keys.image_id(sample.source_uri),
        "key": keys.sample_key(sample.source_uri),
        "source_uri": sample.source_uri,
        "etag": sample.etag,
        "size_bytes": sample.size_bytes,
        "modified_at": sample.modified_at,
        **_range(sample.at),
        "captions": list(sample.captions),
        "sidecars": [
            {"suffix": sidecar.suffix, **_range(sidecar.at)} for sidecar in sample.sidecars
        ],
        "first_seen_at": item.first_seen_at,
        "attempts": item.attempts,
        "changed": item.changed,
    }


def _range(at: Bytes) -> dict[str, Any]:
    return {"url": at.url, "offset": at.offset, "length": at.length}


def read(run: Run, shard: Shard) -> tuple[list[Todo], str]:
    """Return the samples of a planned shard and the source they come from."""
    return read_samples(layout.plan(run, shard))


def read_samples(url: str) -> tuple[list[Todo], str]:
    """Return the samples that `write_samples` wrote, and their source.

    Raises:
        NotFoundError: nothing was written there.
    """
    table = tables.read(url)
    source = (table.schema.metadata or {})[b"source"].decode()
    return [_todo(row) for row in table.to_pylist()], source


def _todo(row: Mapping[str, Any]) -> Todo:
    sidecars = tuple(
        Sidecar(found["suffix"], Bytes(found["url"], found["offset"], found["length"]))
        for found in row["sidecars"]
    )
    sample = Sample(
        source_uri=row["source_uri"],
        etag=row["etag"],
        size_bytes=row["size_bytes"],
        at=Bytes(row["url"], row["offset"], row["length"]),
        modified_at=row["modified_at"],
        captions=tuple(row["captions"]),
        sidecars=sidecars,
    )
    return Todo(sample, row["first_seen_at"], row["attempts"], row["changed"])


def read_retirement(run: Run, shard: Shard) -> tuple[list[str], list[str]]:
    """Return the ids of the live images and of the rejects that shall leave a shard."""
    lists = json.loads(storage.read(layout.retirement(run, shard)))
    return lists["live"], lists["rejects"]


def clear(run: Run) -> None:
    """Remove the plans of a run."""
    for found in storage.listed(layout.plans_of(run)):
        storage.delete(found.url)


def clear_left_over(out: str) -> int:
    """Remove the plans of runs that were killed long ago; return how many objects went."""
    found = [info for info in storage.listed(layout.plans(out)) if storage.is_left_over(info)]
    for info in found:
        storage.delete(info.url)
    return len(found)
