"""An output of many small shards in, the same images and tables in few shards out; no model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from typing import Final, Literal

from pydantic import Field

from clipcap import holdings, layout, rewriting
from clipcap.holdings import Holdings
from clipcap.layout import Run, Shard
from clipcap.merging import Merged
from clipcap.parts import Part
from clipcap.planning import PackSettings
from clipcap.rewriting import Group
from clipcap.settings import Settings

_LETTERS: Final = {"day": 10, "month": 7, "year": 4}  # of a date, such as 2026-11-20


class CompactSettings(Settings):
    """Which shards are merged. The images, and every row of every table, stay as they are."""

    pack: PackSettings = PackSettings()
    """How large a shard may become; of one that is written at a time all is held in memory."""
    small: float = Field(default=0.5, gt=0, le=1)
    """Shards with less than this share of the most images, and of the most bytes, are merged."""
    within: Literal["day", "month", "year"] = "day"
    """Merge shards of one date only, or also those of a month or a year. Then images move to the
    earliest date (`dt`) among them: who reads by `dt` finds them there. `first_seen_at` and
    `run_id` stay."""
    settled_days: int = Field(default=7, ge=0)
    """Within a month or year, leave dates alone that are less than so many days older than the
    newest one: who reads night by night may not have come there yet."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was merged, or, in a dry run, would be.

    `untouched` small shards have none to be merged with; `unsettled` ones are of the newest dates;
    those that are `waiting` were changed since readers were told of them.
    """

    shards: int
    small: int
    untouched: int
    unsettled: int
    waiting: int
    finished: int
    groups: tuple[Group, ...]
    merged: tuple[Merged, ...]
    seconds: float

    @property
    def sources(self) -> int:
        """How many shards are merged."""
        return sum(len(one.parts) for one in self.groups)


def compact(run: Run, *, settings: CompactSettings, write: bool) -> Compacted:
    """Merge the small shards of an output, or, without `write`, only say which ones.

    Shards are merged that have the source and the tables in common, by the same models and
    settings; so nothing has to be made anew. Others wait for the night that makes them alike.

    Raises:
        ClipcapError: the output is not whole, or a run is under way; nothing was changed.
    """
    began = time.time()
    held = holdings.held(run.out)
    finished: list[Merged] = []
    if write:
        rewriting.require_rest(run.out)
        finished = rewriting.finish(held, run=run)
        held = holdings.held(run.out) if finished else held
    live = held.live
    tars = {shard: _tar_bytes(held, shard) for shard in live}
    most = settings.pack.max_bytes * settings.small
    found = rewriting.parts(held, lambda shard: tars[shard] < most)
    some = [one for one in found if one.images < settings.pack.max_images * settings.small]
    old = list(_old_enough(some, live, settings))
    groups = tuple(grouped(old, settings))
    merged = rewriting.rewrite(groups, held, run=run) if write else []
    if merged or finished:
        params = settings.model_dump_json()
        rewriting.record(run, [*finished, *merged], flow="compact", began=began, params=params)
    return Compacted(
        shards=len(live),
        small=len(some),
        untouched=len(old) - sum(len(one.parts) for one in groups),
        unsettled=len(some) - len(old),
        waiting=sum(tars[shard] < most and not held.is_told(shard) for shard in live),
        finished=len(finished),
        groups=groups,
        merged=tuple(merged),
        seconds=time.time() - began,
    )


def _tar_bytes(held: Holdings, shard: Shard) -> int:
    found = held.by_shard[shard].get(layout.tar("", shard)[1:])
    return found.size_bytes if found else 0


def _old_enough(
    some: Sequence[Part], live: Sequence[Shard], settings: CompactSettings
) -> Iterator[Part]:
    if settings.within == "day" or not live:
        yield from some
        return
    newest = date.fromisoformat(live[-1].dt) - timedelta(days=settings.settled_days)
    yield from (one for one in some if one.shard.dt <= newest.isoformat())


def grouped(some: Iterable[Part], settings: CompactSettings) -> Iterator[Group]:
    """Yield shards that go together, oldest first, in groups of two at least."""

    def alike(one: Part) -> tuple[str, str]:
        return one.shard.dt[: _LETTERS[settings.within]], one.kind

    in_order = sorted(some, key=lambda one: (*alike(one), one.shard))
    for _, same in groupby(in_order, key=alike):
        for parts in _packed(same, settings.pack):
            if len(parts) > 1:
                yield Group(parts[0].shard.dt, tuple(parts))


def _packed(same: Iterable[Part], pack: PackSettings) -> Iterator[list[Part]]:
    held: list[Part] = []
    images = size = 0
    for one in same:
        is_full = images + one.images > pack.max_images or size + one.tar_bytes > pack.max_bytes
        if held and is_full:
            yield held
            held, images, size = [], 0, 0
        held.append(one)
        images, size = images + one.images, size + one.tar_bytes
    yield held
