"""Tables of a date's shards in; how often each label is the best, how embeddings lie, rejects, out.

It says what was taken in; images that went later are not taken out of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from clipcap import commits, layout, manifest, tables
from clipcap.errors import NotFoundError
from clipcap.layout import Shard
from clipcap.settings import Settings
from clipcap.stability import NONE, Accepted

VERSION: Final = 1
"""Raised by hand when a number changes its meaning; others are made anew."""
_READERS: Final = 4  # shards at a time
_EMBEDDED: Final = 64  # shards of a date whose embeddings are read, evenly from all
_MIX: Final = ["image_id", "label", "rank", "accepted"]
_RECIPES: Final = 8  # models, and label sets, that an object holds; the oldest go


@dataclass(frozen=True, slots=True)
class Source:
    """Tables by one model or label set: where they lie, and what they must be made by."""

    folder: str
    name: str
    recipe: str
    is_labels: bool


class Cloud(Settings):
    """Where embeddings lie: enough to join two, and to tell how far they are apart."""

    images: int = 0
    mean: tuple[float, ...] = ()
    """Of the unit vectors, D numbers."""
    square: float = 0.0
    """Mean of their squared lengths: 1, but for the rounding."""
    norm: float = 0.0
    """Mean of their lengths before normalising."""
    norm_square: float = 0.0

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Return it of rows of an embeddings table."""
        if not table.num_rows:
            return cls()
        embedding_BD = tables.vectors(table)
        norm_B = table["embedding_norm"].to_numpy().astype(np.float64)
        return cls(
            images=table.num_rows,
            mean=_rounded(embedding_BD.mean(axis=0, dtype=np.float64)),
            square=float(np.square(embedding_BD, dtype=np.float64).sum(axis=1).mean()),
            norm=float(norm_B.mean()),
            norm_square=float(np.square(norm_B).mean()),
        )

    def __add__(self, other: Cloud) -> Cloud:
        """Return it of both."""
        if not self.images or not other.images:
            return self if self.images else other
        images = self.images + other.images
        share = other.images / images

        def both(mine: float, others: float) -> float:
            return mine + share * (others - mine)

        pairs = zip(self.mean, other.mean, strict=True)
        return Cloud(
            images=images,
            mean=_rounded(both(mine, others) for mine, others in pairs),
            square=both(self.square, other.square),
            norm=both(self.norm, other.norm),
            norm_square=both(self.norm_square, other.norm_square),
        )

    @property
    def spread(self) -> float:
        """Mean squared distance to the mean."""
        return max(self.square - sum(one * one for one in self.mean), 0.0)

    @property
    def norm_deviation(self) -> float:
        """Standard deviation of the lengths before normalising."""
        return float(max(self.norm_square - self.norm**2, 0.0) ** 0.5)


def _rounded(numbers: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(one), 8) for one in numbers)


class Summary(Settings):
    """What some shards hold. Models and label sets stand by the recipe of their tables."""

    version: int = VERSION
    shards: tuple[str, ...] = ()
    taken: int = 0
    """Images; those that were rejected come on top."""
    rejects: dict[str, int] = Field(default_factory=dict)
    clouds: dict[str, Cloud] = Field(default_factory=dict)
    mixes: dict[str, dict[str, int]] = Field(default_factory=dict)
    """How many images have each label as their best accepted one, and how many have none."""
    accepted: Accepted | None = None
    """A night that somebody accepted although it differed from those before it."""

    def __add__(self, other: Summary) -> Summary:
        """Return what both hold."""
        clouds = {
            recipe: self.clouds.get(recipe, Cloud()) + other.clouds.get(recipe, Cloud())
            for recipe in self.clouds | other.clouds
        }
        mixes = {
            recipe: _added(self.mixes.get(recipe, {}), other.mixes.get(recipe, {}))
            for recipe in self.mixes | other.mixes
        }
        return Summary(
            shards=(*self.shards, *other.shards),
            taken=self.taken + other.taken,
            rejects=_added(self.rejects, other.rejects),
            clouds=clouds,
            mixes=mixes,
            accepted=self.accepted or other.accepted,
        )

    def lacking(self, sources: Iterable[Source]) -> list[Source]:
        """Return the tables of which it says nothing."""
        known = {*self.clouds, *self.mixes}
        return [one for one in sources if one.recipe not in known]

    def with_sections(self, other: Summary) -> Summary:
        """Return it with the models and label sets of another summary of the same shards."""
        clouds = list((self.clouds | other.clouds).items())[-_RECIPES:]
        mixes = list((self.mixes | other.mixes).items())[-_RECIPES:]
        return self.model_copy(update={"clouds": dict(clouds), "mixes": dict(mixes)})


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))


def summarised(out: str, shards: Sequence[Shard], sources: Sequence[Source]) -> Summary:
    """Return what some shards hold, from their tables; `sources` say which ones."""
    labels = [one for one in sources if one.is_labels]
    start = Summary(mixes={one.recipe: {} for one in labels})
    with ThreadPoolExecutor(_READERS, thread_name_prefix="summary") as pool:
        counted = sum(pool.map(lambda shard: _counted(out, shard, labels), shards), start)
    step = max(len(shards) / _EMBEDDED, 1.0)
    some = [shards[int(n * step)] for n in range(min(len(shards), _EMBEDDED))]
    clouds = {
        one.recipe: sum((_cloud(one, shard) for shard in some), Cloud())  # one table in memory
        for one in sources
        if not one.is_labels
    }
    return counted.model_copy(update={"clouds": clouds})


def _counted(out: str, shard: Shard, labels: Sequence[Source]) -> Summary:
    found = commits.find(layout.manifest(out, shard))
    reasons = manifest.read_rejects(out, shard)["reason"].to_pylist()
    tables_of = {one.recipe: _table(one, shard, _MIX) for one in labels}
    return Summary(
        shards=(shard.name,),
        taken=found.rows if found else 0,
        rejects=dict(Counter(reasons)),
        mixes={recipe: mix(table) for recipe, table in tables_of.items() if table is not None},
    )


def _cloud(source: Source, shard: Shard) -> Cloud:
    table = _table(source, shard, ["embedding", "embedding_norm"])
    return Cloud() if table is None else Cloud.of(table)


def _table(source: Source, shard: Shard, columns: list[str]) -> pa.Table | None:
    """Return the table of a shard, None where it has none that was made by the same recipe."""
    try:
        table = tables.read(layout.in_folder(source.folder, shard), columns)
    except NotFoundError:
        return None
    return table if tables.metadata(table).get("recipe") == source.recipe else None


def mix(table: pa.Table) -> dict[str, int]:
    """Return how many images have each label as their best accepted one; that may not be first."""
    accepted = table.filter(table["accepted"])
    first = accepted.group_by("image_id").aggregate([("rank", "min")])
    best = first.join(accepted, ["image_id", "rank_min"], ["image_id", "rank"], "inner")
    found = {row["values"]: row["counts"] for row in best["label"].value_counts().to_pylist()}
    unknown = pc.sum(pc.equal(table["rank"], 1)).as_py() or 0
    unknown -= best.num_rows
    return {**found, NONE: unknown} if unknown else found


def sources_of(folders: Mapping[str, tuple[str, Sequence[str]]]) -> Iterator[Source]:
    """Yield the tables of a night.

    Args:
        folders: of each folder of tables its name, and URLs of objects in it.
    """
    for folder, (name, urls) in folders.items():
        found = next(filter(None, map(commits.find, urls)), None)
        if found is not None:
            is_labels = "/labelset=" in folder
            yield Source(folder, name, found.recipe, is_labels)
