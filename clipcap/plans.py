"""A night's work in, small objects beside the output out: each task reads that of its shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import ahead, keys, layout, planning, samples, storage, tables
from clipcap.comparison import Comparison
from clipcap.errors import NotFoundError
from clipcap.layout import Run, Shard
from clipcap.planning import Todo

MOST_TASKS: Final = 500
"""Task runs of one stage of one run, whatever there is to do: each costs 20 KB of Prefect's
database, and a stage over all shards of years would have a hundred thousand."""
MOST_SHARDS: Final = 10_000
"""Shards of one task: their names are parameters of a run, which Prefect takes up to 512 KiB."""

T = TypeVar("T")
R = TypeVar("R")
Packed = Iterable[tuple[Shard, pa.Table]]
"""Shards to be written, as they are packed: the rows of `Comparison.rows` that each shall hold."""

_SIGNED: Final = ("source", "in_place", "images")
_SAMPLE: Final = samples.SCHEMA.remove(samples.SCHEMA.get_field_index("archived"))
_SCHEMA: Final = pa.schema(
    [
        ("image_id", pa.string()),
        ("key", pa.string()),
        *_SAMPLE,
        ("first_seen_at", tables.TIME),
        ("attempts", pa.int32()),
        ("changed", pa.bool_()),
        ("donor", pa.string()),
    ]
)


def shards_per_task(shards: int, wanted: int) -> int:
    """Return how many shards a task takes: as `wanted`, or more where that gave too many tasks."""
    return max(wanted, min(-(-shards // MOST_TASKS), MOST_SHARDS))


def task_count(shards: int, wanted: int) -> int:
    """Return how many tasks that gives."""
    return -(-shards // shards_per_task(shards, wanted))


@dataclass(frozen=True, slots=True)
class Planned:
    """A shard to be written; its samples lie in the plan object."""

    shard: Shard
    images: int
    size_bytes: int
    changed: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """The samples of a planned shard, the source they come from, and whether they stay in it."""

    todo: list[Todo]
    source: str
    in_place: bool
    images: int
    """How many were planned; a takedown may have taken some of them out since."""
    written_as: Shard
    """The shard that an earlier try of the run has written them as, or was about to."""


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
    in_place: bool = False
    """Whether the images stay in the tars of the source."""

    def first(self, live: Iterable[Shard]) -> list[Shard]:
        """Return shards, those of this plan first: rows of moved images are still in the others."""
        own = {part.shard for part in self.planned}
        return sorted(live, key=lambda shard: (planning.planned(shard) not in own, shard))


def write(
    compared: Comparison, packed: Packed, *, run: Run, source: str, in_place: bool = False
) -> Plan:
    """Write what each task needs to know, and return the plan in numbers and names.

    `in_place`: the images of each shard lie in one tar of the source, and stay there.
    """
    signed = {"source": source, "in_place": str(int(in_place))}

    def to_do(found: tuple[Shard, pa.Table]) -> Planned:
        shard, rows = found
        names = [keys.sample_key(uri) for uri in rows["source_uri"].to_pylist()]
        table = rows.append_column("key", pa.array(names, pa.string()))
        table = table.select(_SCHEMA.names).cast(_SCHEMA)
        own = signed | {"images": str(table.num_rows)}
        storage.write(layout.plan(run, shard), tables.to_bytes(table, own))
        return _planned(found)

    def to_leave(found: tuple[Shard, Mapping[str, list[str]]]) -> Shard:
        shard, lists = found
        storage.write(layout.retirement(run, shard), json.dumps(lists).encode())
        return shard

    planned = tuple(ahead.mapped(to_do, packed, threads=storage.IN_FLIGHT))
    left = tuple(ahead.mapped(to_leave, compared.retired(), threads=storage.IN_FLIGHT))
    plan = _plan(compared, planned, left, source)
    return replace(plan, in_place=in_place)


def summary(compared: Comparison, packed: Packed, *, source: str, in_place: bool = False) -> Plan:
    """Return the plan in numbers and names, writing nothing."""
    planned = tuple(map(_planned, packed))
    plan = _plan(compared, planned, tuple(shard for shard, _ in compared.retired()), source)
    return replace(plan, in_place=in_place)


def _planned(found: tuple[Shard, pa.Table]) -> Planned:
    shard, rows = found
    size, changed = pc.sum(rows["size_bytes"]).as_py(), pc.sum(rows["changed"]).as_py()
    retried = pc.sum(pc.greater(rows["attempts"], 0)).as_py()
    return Planned(shard, rows.num_rows, int(size or 0), int(changed or 0), int(retried or 0))


def _plan(
    compared: Comparison, planned: tuple[Planned, ...], retired: tuple[Shard, ...], source: str
) -> Plan:
    taken = sum(part.images for part in planned)
    changed = sum(part.changed for part in planned)
    return Plan(
        source=source,
        planned=planned,
        retired=retired,
        listed=compared.listed - (compared.todo - taken),
        new=taken - changed,
        changed=changed,
        deleted=compared.deleted,
        unchanged=compared.listed - compared.todo,
    )


def read(run: Run, shard: Shard) -> Work:
    """Return what is to do for a planned shard.

    Raises:
        NotFoundError: no such plan was written.
    """
    table = tables.read(layout.plan(run, shard))
    signed = tables.metadata(table)
    todo = [_todo(row) for row in table.to_pylist()]
    return Work(
        todo,
        signed["source"],
        in_place=signed["in_place"] == "1",
        images=int(signed["images"]),
        written_as=Shard(shard.dt, signed.get("written_as", shard.name)),
    )


def write_as(run: Run, shard: Shard, written: Shard) -> None:
    """Write down that a planned shard will be written as another: a later try must find it."""
    table = tables.read(layout.plan(run, shard))
    found = tables.metadata(table)
    signed = {name: found[name] for name in _SIGNED} | {"written_as": written.name}
    storage.write(layout.plan(run, shard), tables.to_bytes(table, signed))


def _todo(row: Mapping[str, Any]) -> Todo:
    return Todo(samples.of_row(row), row["first_seen_at"], row["attempts"], row["changed"])


def donors(run: Run, shard: Shard) -> list[Shard]:
    """Return the shards that hold, under other names, what looks like images of a planned shard.

    Their versions are equal: a hint, which content digests confirm or not. None without a plan.
    """
    try:
        found = tables.read(layout.plan(run, planning.planned(shard)), columns=["donor"])["donor"]
    except NotFoundError:
        return []
    names = found.drop_null().unique().to_pylist()
    return sorted(Shard(*name.split("/")) for name in names)


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
