"""A comparison in; the night's samples packed into shards, each with its name, out, one by one.

Every listed sample ends in one place: unchanged, in a planned shard, or (later) in that shard's
rejects.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

import pyarrow as pa
from pydantic import Field

from clipcap.comparison import Comparison
from clipcap.errors import SettingsError
from clipcap.layout import Shard
from clipcap.sample import Sample
from clipcap.settings import Settings, digest

_MORE: Final = "-"
_UNKNOWN_BYTES: Final = 2**19  # taken for an image whose size only its download will tell


class PackSettings(Settings):
    """How many images go into one shard."""

    max_images: int = Field(default=2_000, gt=0)
    """Most images in one shard."""
    max_bytes: int = Field(default=256 * 2**20, gt=0)
    """Most bytes of images in one shard that is copied; bounds the memory of the shard stage."""
    in_place: bool | None = None
    """Leave the images of tars in the source, one shard for each tar, however many it holds; a
    manifest says where they lie. Empty: yes for tars. Other sources are always copied."""


@dataclass(frozen=True, slots=True)
class Todo:
    """A sample that has to be read: new, changed, or rejected for a reason that may have passed."""

    sample: Sample
    first_seen_at: datetime | None = None
    attempts: int = 0
    changed: bool = False


def names(dt: str, there: Iterable[Shard] = (), how: str = "") -> Callable[[pa.Table], Shard]:
    """Return what names the shards of a date by what each shall hold, and how that is read.

    None gets the name of a shard that is `there`, nor that which one was planned as. `how` is the
    digest of the settings that images are read by.
    """
    return partial(_named, dt=dt, taken={planned(shard) for shard in there}, how=how)


def _named(group: pa.Table, dt: str, taken: Set[Shard], how: str) -> Shard:
    columns = (group[name].to_pylist() for name in ("source_uri", "etag", "attempts"))
    content = [how, *(list(row) for row in zip(*columns, strict=True))]
    for salt in range(len(taken) + 1):
        shard = Shard(dt, digest([content, salt] if salt else content)[:16])
        if shard not in taken:
            return shard
    raise SettingsError(f"No free name for a shard of {dt}: every one tried is in the output.")


def shards_to_write(
    compared: Comparison,
    *,
    named: Callable[[pa.Table], Shard],
    pack: PackSettings,
    limit: int | None = None,
) -> Iterator[tuple[Shard, pa.Table]]:
    """Yield the shards of the night, each named by what it shall hold, with its rows.

    They are those of `Comparison.rows`. Groups that are wholly to do come first; what is to do of
    the others, which an earlier attempt of the night wrote in part, is packed together.
    """
    if limit is not None:
        some = compared.some(limit, by_container=bool(pack.in_place))
        for group in _grouped(some, pack):
            yield named(group), group
        return
    rest = array("q")
    for group in _grouped(compared.today(by_container=bool(pack.in_place)), pack):
        todo = group.filter(group["todo"])
        if todo.num_rows == group.num_rows:
            yield named(group), group
        else:
            rest.extend(todo["n"].to_pylist())
    if rest:
        for group in _grouped(compared.rows(rest, by_container=bool(pack.in_place)), pack):
            yield named(group), group


def planned(shard: Shard) -> Shard:
    """Return the planned shard that one was written for; its own name may say more."""
    return Shard(shard.dt, shard.name.partition(_MORE)[0])


def held(shard: Shard, content: Any) -> Shard:  # noqa: ANN401 - any JSON value
    """Return the name that a planned shard has when it holds something else than was planned."""
    return Shard(shard.dt, f"{shard.name}{_MORE}{digest(content)[:8]}")


def _grouped(batches: Iterable[pa.RecordBatch], pack: PackSettings) -> Iterator[pa.Table]:
    """Yield rows that go together, in their order; at most one group is held."""
    held: list[pa.RecordBatch] = []
    images = size = 0
    last = ""
    for batch in batches:
        start = 0
        sizes = batch["size_bytes"].to_pylist()
        urls = batch["url"].to_pylist() if pack.in_place else [""] * len(sizes)
        for at, (found, url) in enumerate(zip(sizes, urls, strict=True)):
            more = found or _UNKNOWN_BYTES
            is_full = images == pack.max_images or size + more > pack.max_bytes
            if images and (url != last if pack.in_place else is_full):
                yield pa.Table.from_batches([*held, batch.slice(start, at - start)])
                held, start, images, size = [], at, 0, 0
            images, size, last = images + 1, size + more, url
        held.append(batch.slice(start))
    if images:
        yield pa.Table.from_batches(held)
