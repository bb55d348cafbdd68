"""Counts and means of tonight and of earlier nights in; how far they are apart, and its level, out.

Every measure has a size that matters (the limits) and a size that equal nights of so few images
reach by chance once in a thousand times; only what is over both is told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import Field

from clipcap.settings import Settings

Level = Literal["ok", "warn", "stop"]
Accepted = Literal["this-night", "from-now-on"]
NONE: Final = ""
"""Stands for "no accepted label"."""
_LEVELS: Final[tuple[Level, ...]] = ("ok", "warn", "stop")
_Z: Final = 3.0902  # one in a thousand lies above
_LEAST: Final = 5.0  # images a label must be expected on tonight to be counted by itself
_MANY: Final = 3 * _LEAST  # or how often it must be there, which then is no chance
_SMOOTHING: Final = 0.5  # a label that was never seen must not make the index infinite
_SHOWN: Final = 8
_REST: Final = "(rare labels)"


class Limit(Settings):
    """From which value on a measure is told, and from which on nothing is published."""

    warn: float | None = Field(default=None, ge=0)
    """Warns from here on; null: never."""
    stop: float | None = Field(default=None, ge=0)
    """The night is not published from here on; null: it always is."""


class DriftSettings(Settings):
    """How a night is compared with the nights before it. Changes no table."""

    nights: int = Field(default=30, gt=0)
    """Earlier dates that it is compared with."""
    min_images: int = Field(default=50, gt=0)
    """Fewer new images are not compared, nor are they with fewer earlier ones."""
    label_mix: Limit = Limit(warn=0.25)
    """Population stability index of each label set: 0.1 is a shift, 0.25 another mix."""
    unknown: Limit = Limit(warn=0.15)
    """By how much the share of images without an accepted label rose, 0 to 1, per label set."""
    embedding_mean: Limit = Limit(warn=0.3)
    """How far the mean embedding went; 1: as far as an image is from the mean, typically."""
    embedding_spread: Limit = Limit(warn=0.3)
    """By which factor the mean squared distance to the mean changed, as a logarithm (0.3: 1.35)."""
    embedding_norm: Limit = Limit(warn=0.5)
    """How far the mean length before normalising went, in standard deviations."""
    rejects: Limit = Limit(warn=0.05)
    """By how much the share of rejected files rose, 0 to 1."""
    canaries: str = ""
    """CSV, JSON or Parquet file of images that must keep their labels; empty: none."""
    canary_label: Level = "stop"
    """What another label of a canary does; `stop` ends the night before anything is taken in."""
    canary_embedding: Limit = Limit(warn=1e-3)
    """How far (1 - cosine) a canary may be from what the same weights made of it at first."""
    accept: Accepted | None = None
    """Publish a night that would be stopped: `this-night` is not compared with later, or
    `from-now-on` later nights are compared with it and what comes after."""


@dataclass(frozen=True, slots=True)
class Part:
    """One label or reason: its share tonight and before, 0 to 1."""

    name: str
    now: float
    before: float


@dataclass(frozen=True, slots=True)
class Measure:
    """How far one thing is from what it was."""

    name: str
    of: str
    """The label set or the model."""
    value: float
    chance: float
    """What equal nights exceed once in a thousand times; a smaller value says nothing."""
    level: Level
    limit: float | None
    """The limit that was reached, or else the lowest there is."""
    now: float | None = None
    before: float | None = None
    parts: tuple[Part, ...] = ()
    """What changed most."""


@dataclass(frozen=True, slots=True)
class Canary:
    """An image that must keep its label, and what was made of it tonight."""

    image: str
    label_set: str
    label: str
    """What it must be; empty: none of these."""
    found: str
    score: float
    distance: float | None
    """1 - cosine to the embedding of the first night with the same weights; none on that night."""
    level: Level
    why: str = ""


@dataclass(frozen=True, slots=True)
class Drift:
    """How a night compares with those before it."""

    images: int = 0
    before: int = 0
    nights: int = 0
    measures: tuple[Measure, ...] = ()
    canaries: tuple[Canary, ...] = ()
    accepted: Accepted | None = None

    @property
    def level(self) -> Level:
        """The worst of all."""
        levels = [one.level for one in self.measures] + [one.level for one in self.canaries]
        return worst(levels)

    @property
    def over(self) -> list[Measure]:
        """The measures that are told."""
        return [one for one in self.measures if one.level != "ok"]

    @property
    def moved(self) -> list[Canary]:
        """The canaries that are told."""
        return [one for one in self.canaries if one.level != "ok"]


def worst(levels: Iterable[Level]) -> Level:
    """Return the gravest of some levels."""
    return max(levels, key=_LEVELS.index, default="ok")


def level(value: float, limit: Limit, *, chance: float = 0.0) -> Level:
    """Return what a value means."""
    if value <= chance:
        return "ok"
    if limit.stop is not None and value >= limit.stop:
        return "stop"
    return "warn" if limit.warn is not None and value >= limit.warn else "ok"


def judged(
    name: str, of: str, sizes: tuple[float, float], limit: Limit, shown: Sequence[float] = ()
) -> Measure:
    """Return a measure.

    Args:
        name: what was measured.
        of: of which label set or model.
        sizes: its value, and what chance gives.
        limit: its limits.
        shown: what it was made from, tonight and before, where that is one number.
    """
    value, chance = sizes
    found = level(value, limit, chance=chance)
    reached = limit.stop if found == "stop" or limit.warn is None else limit.warn
    now, before = shown or (None, None)
    return Measure(name, of, value, chance, found, reached, now, before)


def bucketed(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return how often each label was the best tonight and before; rare ones are counted together.

    Rare is what would be expected on fewer than five images tonight if nothing had changed, and is
    not on fifteen: such counts say nothing by themselves, but many of them add up.
    """
    count, count_before = sum(now.values()), sum(before.values())
    share = count / max(count + count_before, 1)
    kept: dict[str, tuple[int, int]] = {}
    rest = rest_before = 0
    for label in sorted({*now, *before}):
        pair = (now.get(label, 0), before.get(label, 0))
        if share * sum(pair) >= _LEAST or pair[0] >= _MANY:
            kept[label] = pair
        else:
            rest, rest_before = rest + pair[0], rest_before + pair[1]
    return kept | ({_REST: (rest, rest_before)} if rest + rest_before else {})


def psi(pairs: Sequence[tuple[int, int]]) -> float:
    """Return the population stability index: sum of (p - q) ln(p / q) over the shares of N pairs.

    Half an image is added to every count.
    """
    count = sum(now + _SMOOTHING for now, _ in pairs)
    count_before = sum(before + _SMOOTHING for _, before in pairs)
    shares = [((a + _SMOOTHING) / count, (b + _SMOOTHING) / count_before) for a, b in pairs]
    return sum((p - q) * math.log(p / q) for p, q in shares)


def psi_by_chance(buckets: int, images: int, images_before: int) -> float:
    """Return what the index of equal nights exceeds once in a thousand times.

    It is (1/n + 1/m) times a chi-square of k - 1 degrees, k - 1 in the mean; the quantile is Wilson
    and Hilferty's.
    """
    degrees = max(buckets - 1, 1)
    spread = 2 / (9 * degrees)
    quantile = degrees * math.pow(1 - spread + _Z * math.sqrt(spread), 3)
    return quantile * _both(images, images_before)


def label_mix(
    name: str, now: Counter[str], before: Counter[str], settings: DriftSettings
) -> list[Measure]:
    """Return the stability index of the labels of one label set, and the rise of the unknown."""
    buckets = bucketed(now, before)
    pairs = list(buckets.values())
    count, count_before = now.total(), before.total()
    chance = psi_by_chance(len(pairs), count, count_before)
    parts = [Part(label, a / count, b / count_before) for label, (a, b) in buckets.items()]
    parts.sort(key=lambda part: -abs(part.now - part.before))
    mix = judged("label mix", name, (psi(pairs), chance), settings.label_mix)
    shares = (now[NONE] / count, before[NONE] / count_before)
    unknown = risen((now[NONE], count), (before[NONE], count_before))
    return [
        replace(mix, parts=tuple(parts[:_SHOWN])),
        judged("unknown", name, unknown, settings.unknown, shares),
    ]


def reject_rate(
    now: Counter[str], before: Counter[str], taken: tuple[int, int], limit: Limit
) -> Measure:
    """Return the rise of the share of rejected files; `taken` were not, tonight and before."""
    count, count_before = now.total() + taken[0], before.total() + taken[1]
    sizes = risen((now.total(), count), (before.total(), count_before))
    parts = [
        Part(reason, now[reason] / count, before[reason] / count_before) for reason in now | before
    ]
    parts.sort(key=lambda part: -abs(part.now - part.before))
    shares = (now.total() / count, before.total() / count_before)
    return replace(judged("rejects", "", sizes, limit, shares), parts=tuple(parts[:_SHOWN]))


def risen(now: tuple[int, int], before: tuple[int, int]) -> tuple[float, float]:
    """Return by how much a share rose, and by how much it does by chance; `(of, all)` each."""
    rise = now[0] / now[1] - before[0] / before[1]
    pooled = (now[0] + before[0] + 1) / (now[1] + before[1] + 2)
    return rise, _Z * math.sqrt(pooled * (1 - pooled) * _both(now[1], before[1]))


def _both(images: int, images_before: int) -> float:
    return 1 / images + 1 / images_before


def apart(images: int, images_before: int) -> float:
    """Return how many standard deviations two means are apart by chance."""
    return _Z * math.sqrt(_both(images, images_before))
