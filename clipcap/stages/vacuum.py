"""An output in; what nothing names, and the dead bytes of its tars, gone: or only told of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from clipcap import (
    ahead,
    holdings,
    layout,
    leases,
    litter,
    rewriting,
    shards,
    storage,
    tables,
)
from clipcap.holdings import Holdings
from clipcap.layout import Run, Shard
from clipcap.litter import Kind
from clipcap.merging import Merged
from clipcap.parts import Part
from clipcap.rewriting import Group
from clipcap.settings import Settings
from clipcap.storage import Unfinished

_READERS: Final = 4  # tars at a time, each in pieces
_END_BYTES: Final = 2 * shards.BLOCK


class VacuumSettings(Settings):
    """What may go. What a shard that counts holds, and what a kept list names, never does."""

    keep: int = Field(default=litter.KEEP, ge=1)
    """Keep the lists (`_manifests`) and the reports of so many last runs."""
    older_than: int = Field(default=7, ge=1)
    """Touch nothing that is younger than so many days."""
    dead: float = Field(default=0.25, gt=0, le=1)
    """Write tars anew of which a larger share is no live image's."""


@dataclass(frozen=True, slots=True)
class Hollow:
    """A shard with many dead bytes in its tar."""

    part: Part
    dead_bytes: int


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What went, or, in a dry run, would go; in `found`, what nobody knows is left alone.

    `removed` has the kind and the size of each object that went.
    """

    found: litter.Found
    unfinished: tuple[Unfinished, ...]
    hollow: tuple[Hollow, ...]
    removed: tuple[tuple[Kind, int], ...]
    merged: tuple[Merged, ...]
    seconds: float

    def kinds(self) -> Iterator[tuple[Kind, int, int]]:
        """Yield each kind with the number of its objects and their bytes, as they were found."""
        sizes = [(one.kind, one.size_bytes) for one in self.found.litter]
        sizes += [("unfinished uploads and files", one.size_bytes) for one in self.unfinished]
        for kind in sorted({kind for kind, _ in sizes}):
            some = [size for name, size in sizes if name == kind]
            yield kind, len(some), sum(some)

    @property
    def dead_bytes(self) -> int:
        """What writing tars anew saves."""
        return sum(one.dead_bytes for one in self.hollow)


def vacuum(run: Run, *, settings: VacuumSettings, write: bool) -> Vacuumed:
    """Remove what nothing names, and write hollow tars anew; without `write`, only say what.

    Raises:
        ClipcapError: the output is not whole, or a run is under way; nothing was changed.
    """
    began = time.time()
    held = holdings.held(run.out)
    merged: list[Merged] = []
    if write:
        rewriting.require_rest(run.out)
        merged = rewriting.finish(held, run=run)
        held = holdings.held(run.out) if merged else held
    found = litter.find(held, keep=settings.keep, days=settings.older_than)
    left = tuple(litter.unfinished(run.out))
    hollow = tuple(hollows(held, settings.dead))
    removed: list[tuple[Kind, int]] = []
    if write:
        leases.require(run.out)  # tars were read since
        removed = [(one.kind, one.size_bytes) for one in found.litter if litter.remove(one, held)]
        for one in left:
            storage.discard(one)
            removed.append(("unfinished uploads and files", one.size_bytes))
        groups = [Group(one.part.shard.dt, (one.part,)) for one in hollow]
        merged += rewriting.rewrite(groups, held, run=run, least=1)
        if removed or merged:
            params = settings.model_dump_json()
            rewriting.record(run, merged, flow="vacuum", began=began, params=params)
    return Vacuumed(found, left, hollow, tuple(removed), tuple(merged), time.time() - began)


def hollows(held: Holdings, share: float) -> Iterator[Hollow]:
    """Yield the shards of whose tar a larger share than that belongs to no live image.

    A tar is read only if the images alone, without the files that came with them, are so few.
    """

    def has_tar(shard: Shard) -> bool:
        return layout.tar("", shard)[1:] in held.by_shard[shard]

    def looked_at(part: Part) -> Hollow:
        live = tables.read(part.live.url, ["key", "member_bytes"])
        dead = part.tar_bytes - _END_BYTES - sum(map(_in_tar, live["member_bytes"].to_pylist()))
        if dead > share * part.tar_bytes and live.num_rows:
            chunks = storage.stream(layout.tar(held.out, part.shard))
            blocks = shards.kept(chunks, set(live["key"].to_pylist()))
            dead = part.tar_bytes - _END_BYTES - sum(len(block) for _, block in blocks)
        return Hollow(part, dead)

    some = rewriting.parts(held, has_tar)
    for one in ahead.mapped(looked_at, some, threads=_READERS):
        if one.dead_bytes > share * one.part.tar_bytes:
            yield one


def _in_tar(length: int) -> int:
    return shards.BLOCK + length + (-length % shards.BLOCK)
