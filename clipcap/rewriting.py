"""Groups of shards in, each merged into one, told to readers and in its place, out.

In this order, some groups at a time: the new shards; the list that readers are told of, with the
new ones for the old; the old ones go. A reader of the list finds all that it names at any moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from clipcap import (
    ahead,
    commits,
    layout,
    leases,
    manifest,
    merging,
    records,
    snapshots,
    storage,
)
from clipcap.errors import ClipcapError
from clipcap.holdings import Holdings
from clipcap.layout import Run, Shard
from clipcap.merging import Merged
from clipcap.outcomes import Night, Outcome
from clipcap.parts import Part, part_of
from clipcap.snapshots import Entry

log = logging.getLogger(__name__)
_AT_ONCE: Final = 8  # groups that are there twice, for a moment


@dataclass(frozen=True, slots=True)
class Group:
    """Shards that become one shard of the date `dt`."""

    dt: str
    parts: tuple[Part, ...]

    @property
    def tar_bytes(self) -> int:
        """What their tars take."""
        return sum(one.tar_bytes for one in self.parts)


def parts(held: Holdings, wanted: Callable[[Shard], bool]) -> Iterator[Part]:
    """Yield the shards that may be merged among those wanted; none that readers do not know."""

    def looked_up(shard: Shard) -> Part | None:
        return part_of(held.out, shard, held.by_shard[shard])

    some = (shard for shard in held.live if wanted(shard) and held.is_told(shard))
    for found in ahead.mapped(looked_up, some, threads=storage.IN_FLIGHT):
        if found is not None:
            yield found


def require_rest(out: str) -> None:
    """Do nothing where no run is seen to be under way.

    Raises:
        ClipcapError: there are plans of one, or images are being taken out for good.
        LeaseError: one has taken over the lease of this process.
    """
    leases.require(out)
    if storage.listed(layout.unfinished(out)):
        raise ClipcapError(
            f"`clipcap forget` is under way over {out}, or was killed. Nothing was changed. Wait "
            "for it, or call it again first: what is to be forgotten must not be copied."
        )
    young = [one for one in storage.listed(layout.plans(out)) if not storage.is_left_over(one)]
    if young:
        run_id = young[0].url.removeprefix(f"{layout.plans(out)}/").partition("/")[0]
        raise ClipcapError(
            f"The run {run_id} over {out} is under way, or was killed less than a day ago. Nothing "
            "was changed. Wait for it; if it was killed, run the night again first."
        )


def finish(held: Holdings, *, run: Run) -> list[Merged]:
    """Go on with what an earlier call was killed at; return the shards that it had made.

    One whose old shards were changed since, or that lacks a table, is left to the next night.
    """

    def looked_up(shard: Shard) -> tuple[Shard, int, manifest.MergedFrom | None]:
        found = commits.find(layout.manifest(held.out, shard))
        return shard, *((found.rows, manifest.merged_from(found.metadata)) if found else (0, None))

    merged = (shard for shard in held.live if shard.generation)
    done = []
    for target, images, origin in ahead.mapped(looked_up, merged, threads=storage.IN_FLIGHT):
        left = [one for one in origin.members if held.by_shard.get(one)] if origin else []
        if not left:
            continue
        if origin and (target in held.told_by_shard or _is_whole(target, origin, held)):
            done.append(Merged(target, tuple(origin.members), (), images))
        else:
            log.warning("the merging of %s is not finished: left to the next night", target)
    if done:
        _put_in_place(done, held, run)
    return done


def _is_whole(target: Shard, origin: manifest.MergedFrom, held: Holdings) -> bool:
    """Tell whether a shard can still stand for all of those that it was merged from."""
    one = part_of(held.out, target, held.by_shard[target])
    if one is None:
        return False
    for shard, members in origin.members.items():
        old = part_of(held.out, shard, held.by_shard.get(shard, {}))
        if old is None or old.members != members or not set(old.tables) <= set(one.tables):
            return False
    return True


def rewrite(groups: Sequence[Group], held: Holdings, *, run: Run, least: int = 2) -> list[Merged]:
    """Merge each group of at least so many shards; return what was made.

    Raises:
        ClipcapError: a run began meanwhile; or a shard is damaged. What is in place stays.
    """
    done = []
    for at in range(0, len(groups), _AT_ONCE):
        require_rest(run.out)
        made = []
        try:
            for group in groups[at : at + _AT_ONCE]:
                one = merging.merge(group.parts, run=run, dt=group.dt, least=least)
                made += [one] if one else []
        finally:
            if made:
                _put_in_place(made, held, run)
        done += made
    return done


def record(run: Run, merged: Sequence[Merged], *, flow: str, began: float, params: str) -> None:
    """Write the rows of a run that merged shards or removed objects."""
    outcomes = []
    for one in merged:
        url, last = layout.manifest(run.out, one.shard), time.time() - began
        made = one.written[0].fingerprint if one.written else ""
        outcomes.append(
            Outcome(
                "shard", one.shard, "written", one.images, url, made, began, last,
                bytes_written=one.tar_bytes,
            )
        )  # fmt: skip
    done = Night(run, flow, "command", began, params, outcomes=tuple(outcomes))
    records.write(done, state="Completed", seconds={flow: time.time() - began})


def _put_in_place(made: Sequence[Merged], held: Holdings, run: Run) -> None:
    """Tell readers of merged shards, then take away the old ones."""
    told = snapshots.newest(run.out) or held.told  # a run may have published meanwhile
    new = {one.shard for one in made}
    gone = {shard for one in made for shard in one.sources} | new
    kept = [entry for path, entry in told.objects.items() if layout.shard_of(path) not in gone]
    entries = [entry for one in made for entry in _entries(one, held)]
    snapshots.publish(replace(run, dt=told.dt or run.dt), [*kept, *entries])
    for one in made:
        urls = [info.url for shard in one.sources for info in _tables(held, shard)]
        merging.settle(one.shard, one.sources, urls, run=run)


def _tables(held: Holdings, shard: Shard) -> list[storage.ObjectInfo]:
    return list(held.by_shard.get(shard, {}).values())


def _entries(one: Merged, held: Holdings) -> Iterator[Entry]:
    """Yield what the list says of a merged shard."""
    urls = [made.url for made in one.written] or [info.url for info in _tables(held, one.shard)]
    tar = layout.tar(held.out, one.shard)
    for url in sorted({*urls} - {tar}):
        found, commit = storage.info(url), commits.find(url)
        if found is None or commit is None:
            raise ClipcapError(f"{url} was written a moment ago and is gone. Run again.")
        yield snapshots.entry(found, commit, out=held.out)
    found = storage.info(tar)
    if found is not None:
        yield snapshots.entry(found, out=held.out)
