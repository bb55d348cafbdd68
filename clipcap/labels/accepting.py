"""Scores, and perhaps what is true, in; the thresholds from which labels are accepted out.

An image none of whose labels is accepted shows none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from pydantic import Field

from clipcap import thresholds
from clipcap.errors import SettingsError
from clipcap.settings import Settings
from clipcap.thresholds import Interval, ThresholdSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]

_BACKGROUND: Final = -1.0  # the score of a label where a background name has a better one
_PAIRS: Final = 20_000  # of image and label, the best ones, where labels stand alone
_PLACES: Final = 512  # thresholds that are tried for each label
_TRUST: Final = 20.0  # a label's own precision counts as much as that of all when it has so many


class Accepting(Settings):
    """From which score on labels are accepted, by which rule, and what that was worth."""

    rule: Literal["share", "precision", "none", "own"]
    """A share of the images gets no label; a precision is kept; what tells best which images show
    none of these; or the thresholds that the label set has."""
    asked: float | None = None
    """The share, or the precision."""
    threshold: Interval | None = None
    """Of all labels together."""
    own_thresholds: int = 0
    """Labels that have another one, by what is known of them."""
    coverage: float | None = Field(default=None, allow_inf_nan=False)
    """Share of the images that get a label."""
    precision: Interval | None = None
    """Share of right ones among accepted labels, with the threshold of all."""
    recall: Interval | None = None
    """Share of the right ones that are accepted, with the threshold of all."""
    none_precision: float | None = None
    """Share of the images without a label that show none of these."""
    none_recall: float | None = None
    """Share of the images that show none of these that get no label."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """Labels that may be accepted: the best of each image, or all where each stands alone."""

    score_P: Floats
    label_P: NDArray[np.intp]
    image_P: NDArray[np.intp]
    right_P: Flags


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of images that had no part in the fit, and what is right; background names last."""

    score_NC: Floats
    """Of labels that are no groups."""
    top_NT: Floats
    """Of the most general labels, where an answer begins; without a taxonomy the same."""
    true_NC: Flags
    background: int | None
    """How many of both are background; None: each label stands alone."""

    @property
    def is_none_N(self) -> Flags:
        """Which images show none of the labels. Made anew."""
        count = self.true_NC.shape[1] - (self.background or 0)
        found: Flags = np.logical_not(self.true_NC[:, :count].any(axis=1))
        return found


def by_share(top_NT: Floats, share: float, *, background: int) -> Accepting:
    """Return the threshold below which the best labels of a share of the images are.

    Of the most general ones: where a group is sure enough, an image has a label.
    """
    best_N = _best(top_NT, background)
    width = 2 * np.sqrt(share * (1 - share) / len(best_N))
    ends = np.clip([share, share - width, share + width], 0, 1)
    least = _least(best_N)
    value, low, high = (float(max(one, least)) for one in np.quantile(best_N, ends))
    return Accepting(
        rule="share",
        asked=share,
        threshold=Interval(value=value, low=low, high=high),
        coverage=float(np.mean(best_N >= value)),
    )


def by_truth(
    scored: Scored, precision: float | None, settings: ThresholdSettings
) -> tuple[Accepting, Floats | None]:
    """Return thresholds, and that of each label: None where the label set's own remain.

    Args:
        scored: scores and what is right.
        precision: the wanted share of right ones among accepted labels.
        settings: how a threshold is chosen.

    Raises:
        SettingsError: no threshold has that precision.
    """
    score_NC, background, is_none_N = scored.score_NC, scored.background, scored.is_none_N
    count = score_NC.shape[1] - (background or 0)
    if precision is not None:
        answers = _answers(score_NC, scored.true_NC, background)
        found = _precise(answers, precision, settings)
        least = 0.0 if background is None else _least(_best(score_NC, background))
        value = found.threshold.value if found.threshold else least
        threshold_C = np.maximum(_own(answers, precision, value, count), least)
        own = int(np.sum(np.abs(threshold_C - value) > 1e-6))
        return found.model_copy(update={"own_thresholds": own}), threshold_C
    if is_none_N.sum() < settings.min_each:
        return Accepting(rule="own"), None
    best_N = _best(scored.top_NT, background or 0)
    least = 0.0 if background is None else _least(best_N)
    shared = _parting(best_N, is_none_N, settings)
    return Accepting(rule="none", threshold=shared), np.full(
        count, max(shared.value, least), np.float32
    )


def judged(found: Accepting, has_N: Flags, is_none_N: Flags) -> Accepting:
    """Return thresholds with what they were worth, by which images got a label."""
    hits, told = int((~has_N & is_none_N).sum()), {"coverage": float(has_N.mean())}
    if is_none_N.any():
        told["none_recall"] = hits / int(is_none_N.sum())
        told["none_precision"] = hits / max(int((~has_N).sum()), 1)
    return found.model_copy(update=told)


def _least(best_N: Floats) -> float:
    """Return the threshold of which all best labels are accepted, and few others."""
    return float(np.min(best_N, where=best_N > _BACKGROUND, initial=1.0))


def _best(score_NC: Floats, background: int) -> Floats:
    """Return the score of each image's best label."""
    count = score_NC.shape[1] - background
    best_N: Floats = score_NC[:, :count].max(axis=1)
    if background:
        best_N = np.where(best_N > score_NC[:, count:].max(axis=1), best_N, _BACKGROUND)
    return best_N


def _answers(score_NC: Floats, true_NC: Flags, background: int | None) -> _Answers:
    if background is None:
        most = min(_PAIRS, score_NC.size)  # those of lower scores are far from any threshold
        pair_P = np.argpartition(-score_NC, most - 1, axis=None)[:most]
        image_P, label_P = np.unravel_index(np.sort(pair_P), score_NC.shape)
        return _Answers(score_NC[image_P, label_P], label_P, image_P, true_NC[image_P, label_P])
    count = score_NC.shape[1] - background
    image_P = np.flatnonzero(_best(score_NC, background) > _BACKGROUND)
    label_P = score_NC[image_P, :count].argmax(axis=1)
    right_P = true_NC[image_P, label_P]
    return _Answers(score_NC[image_P, label_P], label_P, image_P, right_P)


def _precise(answers: _Answers, precision: float, settings: ThresholdSettings) -> Accepting:
    right = int(answers.right_P.sum())
    share = right / max(len(answers.right_P), 1)
    if share >= precision:  # all may be accepted
        return Accepting(rule="precision", asked=precision, threshold=None)
    wanted = settings.model_copy(update={"precision": precision})
    found = None
    if right >= settings.min_each:
        minus_P = -answers.score_P.astype(np.float64)
        found = thresholds.lowest(minus_P, answers.right_P, wanted)
    if found is None:
        raise SettingsError(
            f"{precision:.0%} of the labels over a threshold must be right, but of no "
            f"{settings.min_flagged} or more of the best are so many: of all "
            f"{len(answers.right_P):,} {share:.0%} are. Ask for less, or label more images."
        )
    at = found.threshold
    return Accepting(
        rule="precision",
        asked=precision,
        threshold=Interval(value=-at.value, low=-at.high, high=-at.low),
        precision=found.precision,
        recall=found.recall,
    )


def _own(answers: _Answers, precision: float, shared: float, count: int) -> Floats:
    """Return the threshold of each label: the lowest that keeps the precision by what is known.

    What is known of few images of a label is filled up with what holds for all labels.
    """
    place_T = np.unique(np.quantile(answers.score_P, np.linspace(0, 1, _PLACES)))
    place_T = np.unique(np.append(place_T, shared))
    all_T, right_T = _over(answers.score_P, answers.right_P, place_T)
    usual_T = np.maximum(right_T / np.maximum(all_T, 1), (place_T >= shared) * precision)
    found_C = np.full(count, shared, np.float32)
    for c in np.unique(answers.label_P).tolist():
        of_P = answers.label_P == c
        many_T, good_T = _over(answers.score_P[of_P], answers.right_P[of_P], place_T)
        known_T = (good_T + _TRUST * usual_T) / (many_T + _TRUST)
        fits_T = known_T >= precision - 1e-9
        found_C[c] = place_T[fits_T.argmax()] if fits_T.any() else 1.0
    return found_C


def _over(score_P: Floats, right_P: Flags, place_T: Floats) -> tuple[Floats, Floats]:
    """Return how many scores reach each place, and how many of them are right."""
    order_P = np.argsort(score_P)
    first_T = np.searchsorted(score_P[order_P], place_T)
    left_P = np.append(right_P[order_P][::-1].cumsum()[::-1], 0)
    return (len(score_P) - first_T).astype(np.float32), left_P[first_T].astype(np.float32)


def _parting(best_N: Floats, is_none_N: Flags, settings: ThresholdSettings) -> Interval:
    """Return the threshold with the best F1 of the images below it that show none of these."""
    order_N = np.argsort(best_N, kind="stable")
    score_N, none_N = best_N[order_N].astype(np.float64), is_none_N[order_N].astype(np.float64)
    ends_N = np.append(score_N[1:] > score_N[:-1], True)
    middle_N = np.append((score_N[:-1] + score_N[1:]) / 2, 1.0).clip(0, 1)
    rng, whole_N = np.random.default_rng(settings.seed), np.ones(len(score_N))

    def place(weight_N: NDArray[Any]) -> int:
        hits_N = (weight_N * none_N).cumsum()
        f1_N = 2 * hits_N / (weight_N.cumsum() + hits_N[-1] + 1e-9)
        return int(np.where(ends_N, f1_N, -1).argmax())

    even_N = whole_N / len(whole_N)
    drawn = [
        float(middle_N[place(rng.multinomial(len(whole_N), even_N))]) for _ in range(settings.draws)
    ]
    return thresholds.interval(float(middle_N[place(whole_N)]), drawn, settings)
