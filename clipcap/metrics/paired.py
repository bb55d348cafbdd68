"""The scores of two captioners for the same images in, which of them is better out, by bootstrap.

The images are drawn again and again, with replacement, and both captioners are judged on each draw:
what differs between the draws is how much chance there is in the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipcap.errors import SettingsError
from clipcap.metrics.ngram_scores import ORDERS, BleuCounts
from clipcap.metrics.scorefile import MEANS
from clipcap.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Verdict = Literal["better", "not worse", "worse"]
_AT_A_TIME: Final = 4_000_000  # numbers of one block of draws: 32 MB


class PairedSettings(Settings):
    """How surely two captioners are told apart."""

    draws: int = Field(default=2_000, ge=100)
    """How often images are drawn."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of the draws that lies inside an interval."""
    seed: int = 0
    """Same seed and same scores, same intervals."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of two captioners; the interval is of `b - a`."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: Verdict
    """`better`: b, and the whole interval says so; `not worse`: it holds 0."""
    images: int


def compare(a: pa.Table, b: pa.Table, settings: PairedSettings) -> list[Difference]:
    """Return for each metric that both have whether `b` is better than `a`.

    The tables are score files (`clipcap.metrics.scorefile`). Words keep the weights that CIDEr-D
    gave them over all images.

    Raises:
        SettingsError: they judge other images, or by other references.
    """
    b = _aligned(a, b)
    found = [] if a.num_rows == 0 else list(_metrics(a, b))
    metrics = [name for name, _, _, _ in found]
    drawn = _drawn(a.num_rows, [(left, right) for _, left, right, _ in found], settings)
    tail = (1 - settings.confidence) / 2
    made = []
    for at, metric in enumerate(metrics):
        _, left, right, images = found[at]
        whole_a, whole_b = (float(judge(np.ones((1, a.num_rows)))[0]) for judge in (left, right))
        low, high = np.quantile(drawn[at], [tail, 1 - tail]).tolist()
        made.append(
            Difference(
                metric=metric,
                a=whole_a,
                b=whole_b,
                difference=whole_b - whole_a,
                low=low,
                high=high,
                verdict="better" if low > 0 else "worse" if high < 0 else "not worse",
                images=images,
            )
        )
    return made


def shortfall(one: Difference, margin: float) -> Literal["", "worse", "perhaps worse"]:
    """Return whether `b` falls short of `a` by more than a margin can be; empty: it does not.

    Args:
        one: the difference; its interval must begin no lower than the margin allows.
        margin: by how much `b` may be lower, as a share of the figure of `a`.
    """
    if one.low >= -margin * abs(one.a):
        return ""
    return "worse" if one.high < 0 else "perhaps worse"


def _aligned(a: pa.Table, b: pa.Table) -> pa.Table:
    """Return the rows of `b` in the order of the images of `a`."""
    ids = a["image_id"].to_pylist()
    place = {image_id: at for at, image_id in enumerate(b["image_id"].to_pylist())}
    missing = [image_id for image_id in ids if image_id not in place]
    if missing or len(ids) != len(place):
        raise SettingsError(
            f"Both must judge the same images, but one judges {len(ids)}, the other {len(place)}, "
            f"and {len(missing)} of the first are not in the second. Evaluate both over one output."
        )
    b = b.take(pa.array([place[image_id] for image_id in ids], pa.int64()))
    for column in ("content_sha256", "reference_captions"):
        pairs = zip(a[column].to_pylist(), b[column].to_pylist(), strict=True)
        changed = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
        if changed is not None:
            raise SettingsError(
                f"Both must judge by the same {column}, but those of image {ids[changed]} differ. "
                "Evaluate both again."
            )
    return b


_Judge = Callable[["Floats"], "Floats"]
"""Weights of N images in W draws in, the figure of each draw out."""


def _metrics(a: pa.Table, b: pa.Table) -> Iterator[tuple[str, _Judge, _Judge, int]]:
    left, right = _bleu(a), _bleu(b)
    for k in range(ORDERS):
        yield f"bleu_{k + 1}", _of_bleu(left, k), _of_bleu(right, k), a.num_rows
    for name in MEANS:
        one_N, other_N = (_numbers(table, name) for table in (a, b))
        there_N = np.isfinite(one_N) & np.isfinite(other_N)
        if there_N.any():
            yield name, _mean(one_N, there_N), _mean(other_N, there_N), int(there_N.sum())


def _numbers(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(), np.float64)


def _bleu(table: pa.Table) -> BleuCounts:
    matched = table["matched"].combine_chunks().flatten().to_numpy()
    return BleuCounts(
        matched.reshape(table.num_rows, ORDERS),
        table["words"].to_numpy(),
        table["reference_words"].to_numpy(),
    )


def _of_bleu(counts: BleuCounts, k: int) -> _Judge:
    return lambda weight_WN: counts.whole(weight_WN)[:, k]


def _mean(value_N: Floats, there_N: NDArray[np.bool_]) -> _Judge:
    filled_N = np.where(there_N, value_N, 0.0)
    share_N = there_N.astype(np.float64)

    def judge(weight_WN: Floats) -> Floats:
        return np.asarray((weight_WN @ filled_N) / np.maximum(weight_WN @ share_N, 1))

    return judge


def _drawn(
    images: int, judges: list[tuple[_Judge, _Judge]], settings: PairedSettings
) -> list[Floats]:
    """Return the difference of each metric in each draw; the draws are the same for all."""
    if not judges:
        return []
    rng = np.random.default_rng(settings.seed)
    block = max(1, _AT_A_TIME // images)
    parts: list[list[Floats]] = [[] for _ in judges]
    for start in range(0, settings.draws, block):
        size = min(block, settings.draws - start)
        weight_WN = rng.multinomial(images, np.full(images, 1 / images), size).astype(np.float64)
        for part, (left, right) in zip(parts, judges, strict=True):
            part.append(right(weight_WN) - left(weight_WN))
    return [np.concatenate(part) for part in parts]
