"""Scores of captions in, the threshold below which a caption is doubted out, and how sure that is.

Three ways: the lowest share of a sample, what captions of other images score, and people's labels.
What a sample does not show is an error, never a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import Field

from clipcap.errors import SettingsError
from clipcap.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

Measure = Literal["clip_score", "logprob", "margin"]
Method = Literal["quantile", "other_images", "labels"]
_AT_A_TIME: Final = 4_000_000  # numbers of one block of draws: 32 MB


class ThresholdSettings(Settings):
    """How a threshold is chosen, and what a sample must show for that."""

    lowest: float = Field(default=0.05, gt=0, lt=1)
    """Without labels: share of the captions that a quantile's threshold puts under it."""
    wrong_passed: float = Field(default=0.05, gt=0, lt=1)
    """Without labels: share of captions of other images that may reach the CLIPScore threshold."""
    min_auc: float = Field(default=0.7, ge=0.5, le=1)
    """How often, at least, a caption must fit its own image better than one of another image."""
    precision: float = Field(default=0.8, gt=0, le=1)
    """With labels: share of bad captions among those under a threshold."""
    min_flagged: int = Field(default=10, ge=1)
    """Captions of the sample that must lie under a threshold; without labels, as its share says."""
    min_each: int = Field(default=20, ge=2)
    """With labels: good and bad captions that there must be, of each."""
    draws: int = Field(default=1_000, ge=100)
    """How often the sample is drawn anew, for the intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of the draws that lies inside an interval."""
    seed: int = Field(default=0, ge=0)
    """Same seed and same sample, same thresholds."""


class Interval(Settings):
    """A figure, and where it lies when the sample is drawn anew."""

    value: float = Field(allow_inf_nan=False)
    """Of the whole sample."""
    low: float = Field(allow_inf_nan=False)
    """Lower end, by bootstrap."""
    high: float = Field(allow_inf_nan=False)
    """Upper end."""


class Measured(Settings):
    """A threshold, and the sample that it comes from."""

    measure: Measure
    """What is compared: `clip_score` (0 to 2.5), `logprob` (nats), `margin` (of what ranks)."""
    threshold: Interval
    """A caption below it is doubted."""
    method: Method
    """`quantile`: the lowest share of the captions; `other_images`: what captions of other images
    seldom reach; `labels`: what people called bad lies below it."""
    asked: float
    """The share, the share of wrong ones that pass, or the precision that was asked for."""
    captions: int
    """Captions in the sample."""
    wrong: int = 0
    """Known wrong ones: pairs with another image, or labels."""
    flagged: float
    """Share of the sample's own captions below the threshold."""
    precision: Interval | None = None
    """Share of bad ones below it; the interval is of labels that had no part in choosing it."""
    recall: Interval | None = None
    """Share of the bad ones that are below it; the interval as above."""
    auc: float | None = None
    """How often a caption fits its own image better than one of another image does."""


def quantile(measure: Measure, score_N: Floats, settings: ThresholdSettings) -> Measured:
    """Return what the lowest share of `score_N` lies under.

    Raises:
        SettingsError: the sample is too small for that share, or the scores are all alike.
    """
    _require_finite(measure, score_N)
    _require_enough(measure, len(score_N), settings.lowest, settings)
    drawn = [
        float(np.quantile(score_N[row_N], settings.lowest))
        for row_N in _draws(len(score_N), settings)
    ]
    threshold = interval(float(np.quantile(score_N, settings.lowest)), drawn, settings)
    flagged = float(np.mean(score_N < threshold.value))
    if not flagged:
        raise SettingsError(
            f"The {measure} of some captions must be lower than that of most, but the lowest "
            f"{settings.lowest:.1%} of {len(score_N):,} are all {threshold.value:.4g}."
        )
    return Measured(
        measure=measure, threshold=threshold, method="quantile", asked=settings.lowest,
        captions=len(score_N), flagged=flagged,
    )  # fmt: skip


def of_other_images(own_N: Floats, other_NS: Floats, settings: ThresholdSettings) -> Measured:
    """Return the CLIPScore that captions of other images seldom reach.

    Args:
        own_N: CLIPScore of each caption and its image.
        other_NS: CLIPScore of each image and captions of S others; NaN where one says the same.
        settings: how many may reach it, and how well both must be told apart.

    Raises:
        SettingsError: the sample is too small, or captions fit other images as well as their own.
    """
    _require_finite("clip_score", own_N)
    has_N = np.isfinite(other_NS).any(1)
    _require_enough("clip_score", int(has_N.sum()), settings.wrong_passed, settings)
    own_N, other_NS = own_N[has_N], other_NS[has_N]
    wrong = np.sort(other_NS[np.isfinite(other_NS)])
    auc = _auc(own_N, wrong)
    if auc < settings.min_auc:
        raise SettingsError(
            f"Captions must fit their own images better than others' in {settings.min_auc:.0%} of "
            f"the pairs, but do in {auc:.0%} of {len(wrong):,}: no CLIPScore tells good ones from "
            "wrong ones here. Is the captioner made for such images?"
        )
    share = 1 - settings.wrong_passed
    drawn = [
        float(np.nanquantile(other_NS[row_N], share)) for row_N in _draws(len(own_N), settings)
    ]
    threshold = interval(float(np.quantile(wrong, share)), drawn, settings)
    return Measured(
        measure="clip_score", threshold=threshold, method="other_images",
        asked=settings.wrong_passed, captions=len(own_N), wrong=len(wrong),
        flagged=float(np.mean(own_N < threshold.value)), auc=auc,
    )  # fmt: skip


def _auc(own_N: Floats, sorted_M: Floats) -> float:
    below_N = np.searchsorted(sorted_M, own_N, "left") + np.searchsorted(sorted_M, own_N, "right")
    return float(below_N.mean() / (2 * len(sorted_M)))


def of_labels(
    measure: Measure, score_N: Floats, bad_N: Flags, settings: ThresholdSettings
) -> Measured:
    """Return the highest threshold below which the share of bad captions is the one asked for.

    Each draw chooses a threshold anew and is judged by the captions that were not drawn, so that
    the intervals hold for captions that nobody has labelled.

    Raises:
        SettingsError: too few labels of a kind, or no threshold below which more are bad.
    """
    _require_finite(measure, score_N)
    bad, good = int(bad_N.sum()), int((~bad_N).sum())
    if min(bad, good) < settings.min_each:
        raise SettingsError(
            f"There must be {settings.min_each} good and {settings.min_each} bad captions with a "
            f"{measure}, but {good} good and {bad} bad ones are labelled. Label more."
        )
    found = lowest(score_N, bad_N, settings)
    if found is None:
        raise SettingsError(
            f"{settings.precision:.0%} of the captions below a {measure} must be bad, but of no "
            f"{settings.min_flagged} or more of the lowest are so many: of all labelled ones "
            f"{bad / len(bad_N):.0%} are bad. Ask for less, or label more."
        )
    if found.precision.low <= bad / len(bad_N):
        raise SettingsError(
            f"A low {measure} must say more than chance does that a caption is bad, but below "
            f"{found.threshold.value:.4g} are {found.below} captions, and of further ones "
            f"{found.precision.low:.0%} to {found.precision.high:.0%} would be bad; of all "
            f"{bad / len(bad_N):.0%} are. Label more."
        )
    return Measured(
        measure=measure, threshold=found.threshold, method="labels", asked=settings.precision,
        captions=len(bad_N), wrong=bad, flagged=found.below / len(bad_N),
        precision=found.precision, recall=found.recall,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lowest:
    """A threshold below which enough is what was looked for."""

    threshold: Interval
    below: int
    """How many lie below it."""
    precision: Interval
    """Share of those looked for below it; the interval is of ones that had no part in it."""
    recall: Interval
    """Share of those looked for that are below it; the interval as above."""


def lowest(score_N: Floats, wanted_N: Flags, settings: ThresholdSettings) -> Lowest | None:
    """Return the highest threshold below which the share of wanted ones is the precision asked for.

    None where there is no such threshold. What one looks for among the highest scores is among the
    lowest of their negatives.
    """
    order_N = np.argsort(score_N, kind="stable")
    score_N, wanted_N = score_N[order_N], wanted_N[order_N]
    ends_N = np.append(score_N[1:] > score_N[:-1], False)  # never below all of them
    middle_N = np.append((score_N[:-1] + score_N[1:]) / 2, score_N[-1])
    at = int(_places(np.ones((1, len(score_N))), wanted_N, ends_N, settings)[0])
    if at < 0:
        return None
    place_W, precision_W, recall_W = _judged_anew(wanted_N, ends_N, settings)
    hits = int(wanted_N[: at + 1].sum())
    return Lowest(
        threshold=interval(middle_N[at], middle_N[place_W], settings),
        below=at + 1,
        precision=interval(hits / (at + 1), precision_W, settings),
        recall=interval(hits / int(wanted_N.sum()), recall_W, settings),
    )


def _places(
    weight_WN: Floats, bad_N: Flags, ends_N: Flags, settings: ThresholdSettings
) -> NDArray[np.intp]:
    """Return the last caption below the threshold of each draw, -1 where there is none."""
    flagged_WN = weight_WN.cumsum(1)
    hits_WN = (weight_WN * bad_N).cumsum(1)
    fits_WN = ends_N & (flagged_WN >= settings.min_flagged)
    fits_WN &= hits_WN >= settings.precision * flagged_WN
    last_W = fits_WN.shape[1] - 1 - fits_WN[:, ::-1].argmax(1)
    return np.where(fits_WN.any(1), last_W, -1)


def _judged_anew(
    bad_N: Flags, ends_N: Flags, settings: ThresholdSettings
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Return place, precision and recall of each draw; a draw without a threshold has 0 of both.

    The places are only those of draws that have one.
    """
    rng, count = np.random.default_rng(settings.seed), len(bad_N)
    block = max(1, _AT_A_TIME // count)
    places, precisions, recalls = [], [], []
    for start in range(0, settings.draws, block):
        size = min(block, settings.draws - start)
        weight_WN = rng.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)
        place_W = _places(weight_WN, bad_N, ends_N, settings)
        left_WN = weight_WN == 0
        row_W, has_W = np.arange(size), place_W >= 0
        flagged_W = left_WN.cumsum(1)[row_W, place_W]
        hits_W = (left_WN & bad_N).cumsum(1)[row_W, place_W]
        all_bad_W = (left_WN & bad_N).sum(1)
        places.append(place_W[has_W])
        precisions.append(np.where(has_W, hits_W / np.maximum(flagged_W, 1), 0.0))
        recalls.append(np.where(has_W, hits_W / np.maximum(all_bad_W, 1), 0.0))
    return np.concatenate(places), np.concatenate(precisions), np.concatenate(recalls)


def _draws(count: int, settings: ThresholdSettings) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(settings.seed)
    for _ in range(settings.draws):
        yield rng.integers(0, count, count)


def interval(value: float, drawn_W: list[float] | Floats, settings: ThresholdSettings) -> Interval:
    """Return a figure with the interval of what it is when the sample is drawn anew."""
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(np.asarray(drawn_W), [tail, 1 - tail]).tolist()
    return Interval(value=float(value), low=low, high=high)


def _require_finite(measure: str, score_N: Floats) -> None:
    strange = int((~np.isfinite(score_N)).sum())
    if strange:
        raise SettingsError(
            f"Every caption must have a {measure} that is a number, but {strange} of "
            f"{len(score_N):,} have none: caption them again."
        )


def _require_enough(measure: str, count: int, share: float, settings: ThresholdSettings) -> None:
    wanted = int(np.ceil(settings.min_flagged / share))
    if count < wanted:
        raise SettingsError(
            f"For a {measure} at {share:.1%} there must be {wanted:,} different captions, so "
            f"that {settings.min_flagged} lie beyond it, but there are {count:,}. Caption more "
            "images, or choose a larger share."
        )
