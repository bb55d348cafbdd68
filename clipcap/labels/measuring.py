"""Scores of labels and what is true in, how good the scores are out: figures of arrays, exact.

I images, N labels. Equal scores are never told apart by the order of the images: ranks of equal
ones count half, and where they share a place the expectation over all orders is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.floating]
    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]
    Places = NDArray[np.int64]

BINS: Final = 15
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """Hits among some, and where the share lies with 95 % confidence: Wilson's score interval.

    Drawing the images anew would say "100 % to 100 %" of ten right ones among ten.
    """

    value: float
    low: float
    high: float
    hits: int
    among: int


def share(hits: int, among: int) -> Share | None:
    """Return a share and its interval; None of nothing."""
    if among == 0:
        return None
    rate, z = hits / among, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (rate + z**2 / (2 * among)) / (1 + z**2 / among)
    half = z / (1 + z**2 / among) * (rate * (1 - rate) / among + z**2 / (4 * among**2)) ** 0.5
    return Share(rate, max(0.0, min(middle - half, rate)), min(1.0, max(middle + half, rate)),
                 int(hits), int(among))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bin:
    """Images of like confidence."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean of what was said."""
    right: float
    """Share of what was right."""


def reliability(
    confidence_I: Numbers,
    right_I: Flags,
    *,
    by: Literal["width", "mass"] = "width",
    bins: int = BINS,
) -> list[Bin]:
    """Return bins of images by confidence (0 to 1), without empty ones.

    Args:
        confidence_I: how sure each answer is said to be.
        right_I: whether it was right.
        by: `width`: (0, 1/15], (1/15, 2/15] ... as is usual, 0 in the first; `mass`: as many images
            in each, as far as those of the same confidence stay together.
        bins: how many.

    Raises:
        ValueError: a confidence is no number.
    """
    _require_finite(confidence_I)
    if len(confidence_I) == 0:
        return []
    if by == "width":
        edges: Numbers = np.linspace(0, 1, bins + 1)
    else:
        last_K = np.arange(bins + 1) * len(confidence_I) // bins - 1  # of each bin
        edges = np.sort(confidence_I)[np.maximum(last_K, 0)]
    place_I = np.searchsorted(edges[1:-1], confidence_I, "left")
    count_K = np.bincount(place_I, minlength=bins)
    said_K = np.bincount(place_I, confidence_I, bins) / np.maximum(count_K, 1)
    right_K = np.bincount(place_I, right_I, bins) / np.maximum(count_K, 1)
    numbers = zip(edges[:-1], edges[1:], count_K, said_K, right_K, strict=True)
    return [
        Bin(float(low), float(high), int(count), float(said), float(right))
        for low, high, count, said, right in numbers
        if count
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: how far what is said is from what is right."""
    images = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.right) for one in bins) / max(images, 1)


def brier(confidence_I: Numbers, right_I: Flags) -> float:
    """Return the mean squared distance between what was said and what was right (1 or 0).

    Raises:
        ValueError: a confidence is no number.
    """
    _require_finite(confidence_I)
    return float(np.mean((confidence_I.astype(np.float64) - right_I) ** 2))


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """How many answers are wrong if only the surest are given."""

    risk_I: Floats
    """Share of wrong ones among the k + 1 surest."""

    @property
    def area(self) -> float:
        """Mean risk over all coverages; 0 is best."""
        return float(self.risk_I.mean())

    def right_at(self, coverage: float) -> Share | None:
        """Return the share of right ones among the surest, as many as `coverage` says."""
        images = len(self.risk_I)
        among = int(np.ceil(coverage * images - 1e-9))
        return share(round((1 - self.risk_I[among - 1]) * among), among) if among else None

    def points(self, most: int = 200) -> list[tuple[float, float]]:
        """Return coverage and risk at some places, the last one among them."""
        images = len(self.risk_I)
        places = np.unique(np.linspace(0, images - 1, min(most, images)).round().astype(np.int64))
        return [((place + 1) / images, float(self.risk_I[place])) for place in places.tolist()]


def risk_coverage(confidence_I: Numbers, right_I: Flags) -> RiskCoverage:
    """Return the risk at every coverage; among equal confidences the expectation.

    Raises:
        ValueError: a confidence is no number, or there is none.
    """
    _require_finite(confidence_I)
    if len(confidence_I) == 0:
        raise ValueError("there must be an answer to judge")
    _, place_I, count_G = np.unique(-confidence_I, return_inverse=True, return_counts=True)
    rate_G = np.bincount(place_I, ~right_I, len(count_G)) / count_G
    wrong_I = np.cumsum(np.repeat(rate_G, count_G))
    return RiskCoverage(wrong_I / np.arange(1, len(wrong_I) + 1))


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well a score tells images that have a label from those that have not; NaN: no two."""

    auc: float
    average_precision: float
    positives: int
    negatives: int


def ranking(score_I: Numbers, positive_P: Places, unsure_U: Places | None = None) -> Ranking:
    """Return area under the ROC curve and average precision, as scikit-learn has them.

    Args:
        score_I: of every image.
        positive_P: places of those that have the label.
        unsure_U: places of those of which nobody knows, which do not count.

    Raises:
        ValueError: a score is no number.
    """
    _require_finite(score_I)
    sure_I = np.delete(score_I, unsure_U) if unsure_U is not None and len(unsure_U) else score_I
    all_S, hit_P = np.sort(sure_I), np.sort(score_I[positive_P])
    positives, negatives = len(hit_P), len(all_S) - len(hit_P)
    if positives == 0:
        return Ranking(np.nan, np.nan, 0, negatives)
    below_P, upto_P = (np.searchsorted(all_S, hit_P, side) for side in ("left", "right"))
    own_below_P, own_upto_P = (np.searchsorted(hit_P, hit_P, side) for side in ("left", "right"))
    precision_P = (positives - own_below_P) / (len(all_S) - below_P)
    beaten = float((below_P - own_below_P + upto_P - own_upto_P).sum()) / 2
    auc = beaten / (positives * negatives) if negatives else np.nan
    return Ranking(auc, float(precision_P.mean()), positives, negatives)


@dataclass(frozen=True, slots=True)
class Classes:
    """Figures of each of N labels; NaN where there is nothing to divide by."""

    given_N: Places
    """Images that were given it."""
    precision_N: Floats
    recall_N: Floats
    f1_N: Floats

    @property
    def mean_recall(self) -> float:
        """Mean over the labels that images have."""
        return _mean(self.recall_N)

    @property
    def macro_f1(self) -> float:
        """Mean over the labels that images have or were given, as scikit-learn's."""
        return _mean(self.f1_N)


def classes(hits_N: Places, given_N: Places, support_N: Places) -> Classes:
    """Return precision, recall and F1 of labels.

    Args:
        hits_N: images that have the label and were given it.
        given_N: images that were given it.
        support_N: images that have it.
    """
    return Classes(
        given_N,
        _ratio(hits_N, given_N),
        _ratio(hits_N, support_N),
        _ratio(2 * hits_N, given_N + support_N),
    )


def confusions(true_T: Places, given_T: Places, most: int) -> list[tuple[int, int, int]]:
    """Return the most frequent pairs of true and given label, and how often each was met."""
    if len(true_T) == 0:
        return []
    width = int(given_T.max()) + 1
    pair_K, count_K = np.unique(true_T * width + given_T, return_counts=True)
    order_K = np.argsort(-count_K, kind="stable")[:most]
    pairs = zip(pair_K[order_K].tolist(), count_K[order_K].tolist(), strict=True)
    return [(pair // width, pair % width, count) for pair, count in pairs]


def _ratio(part_N: Places, whole_N: Places) -> Floats:
    return np.where(whole_N > 0, part_N / np.maximum(whole_N, 1), np.nan)


def _mean(value_N: Floats) -> float:
    there_N = value_N[~np.isnan(value_N)]
    return float(there_N.mean()) if len(there_N) else float("nan")


def _require_finite(number_I: Numbers) -> None:
    if not np.isfinite(number_I).all():
        raise ValueError("every score must be a number")
