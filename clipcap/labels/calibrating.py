"""Logits and what people say is true in, what makes scores mean what they say out, and how well.

A score of 0.9 should be right 9 times of 10. `temperature` is for labels that exclude each other,
`platt` for labels that each stand alone, `error_interval` says by how much scores miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from clipcap import thresholds
from clipcap.labels.measuring import BINS
from clipcap.labels.normalising import Affine, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.thresholds import Interval, ThresholdSettings

    Floats = NDArray[np.floating[Any]]
    Flags = NDArray[np.bool_]

_WIDEST: Final = float(np.log(100))  # a temperature is within so much of the model's own
_SHORT: Final = {"maxiter": 40}
_LEAST: Final = 1e-12
_STEEPNESS, _SHIFT = 0.5, 1.0  # how far, as standard deviations, a label may go from all others


def sigmoid(logit_NC: Floats) -> Floats:
    """Return the probability of each label alone."""
    found: Floats = expit(logit_NC)
    return found


def error_interval(score_NL: Floats, right_NL: Flags, settings: ThresholdSettings) -> Interval:
    """Return the expected calibration error: how far scores are from shares of right ones.

    As `measuring.calibration_error` has it. The interval is of images drawn anew, with all their
    labels, less what drawing adds: an error of few images is too large in the mean.
    """
    count, labels = score_NL.shape
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    place_NL = np.searchsorted(edges, score_NL, "left") + np.arange(count)[:, None] * BINS
    gap_P = np.bincount(place_NL.ravel(), (score_NL - right_NL).ravel(), count * BINS)
    gap_NK = gap_P.reshape(count, BINS)
    rng, even_N = np.random.default_rng(settings.seed), np.full(count, 1 / count)
    drawn = [rng.multinomial(count, even_N) @ gap_NK for _ in range(settings.draws)]
    drawn_W = np.abs(np.array(drawn)).sum(axis=1) / (count * labels)
    value = float(np.abs(gap_NK.sum(axis=0)).sum() / (count * labels))
    drawn_W = np.maximum(drawn_W - np.median(drawn_W) + value, 0)
    return thresholds.interval(value, drawn_W, settings)


def temperature(logit_NC: Floats, true_NC: Flags, background: int) -> Affine:
    """Return one factor for all labels and one shift for the background, the last columns.

    The shift by the likelihood of what is true (an image of several labels shows one of them); the
    factor then so that the best score says how often it is right, which for images of several
    labels is more often than by chance.

    Args:
        logit_NC: of labels, then of background names.
        true_NC: what is right; the background's for an image that shows none of the labels.
        background: how many of the columns are background, 0 or more.
    """
    count = logit_NC.shape[1]
    is_background_C = (np.arange(count) >= count - background).astype(np.float32)
    shift = 0.0
    if background and true_NC[:, -1].any() and not true_NC[:, -1].all():
        shift = _shift(logit_NC, true_NC, is_background_C)
    moved_NC = logit_NC + shift * is_background_C
    right_N = true_NC[np.arange(len(true_NC)), moved_NC.argmax(axis=1)]
    target_N = _softened(right_N)

    def loss(log_factor: float) -> float:
        best_N = softmax(moved_NC * np.float32(np.exp(log_factor))).max(axis=1).astype(np.float64)
        missed_N = target_N * np.log(best_N + _LEAST) + (1 - target_N) * np.log1p(_LEAST - best_N)
        return float(-missed_N.mean())

    found = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded")
    factor = np.float32(np.exp(found.x))
    return Affine(np.full(count, factor, np.float32), factor * np.float32(shift) * is_background_C)


def _shift(logit_NC: Floats, true_NC: Flags, is_background_C: Floats) -> float:
    """Return what is added to the background's logits, found with a factor for all."""

    def loss(place: Floats) -> float:
        log_factor, shift = np.clip(place[0], -_WIDEST, _WIDEST), place[1]
        score_NC = softmax((logit_NC + shift * is_background_C) * np.exp(log_factor))
        true_N = np.where(true_NC, score_NC, 0).sum(axis=1)
        alike = (log_factor / _WIDEST) ** 2 / len(logit_NC)  # where all is told apart, no factor
        return float(-np.log(true_N + _LEAST).mean() + alike)

    starts = [np.median(logit_NC[:, is_background_C == 0].max(axis=1)), 0.0]
    starts[0] -= np.median(logit_NC[:, is_background_C > 0].max(axis=1))
    tries = [minimize(loss, [0.0, at], method="Nelder-Mead", options=_SHORT) for at in starts]
    return float(min(tries, key=lambda one: one.fun).x[1])


def platt(logit_NC: Floats, true_NC: Flags) -> Affine:
    """Return factor and shift of each label, for a sigmoid: Platt scaling with few of each.

    Fitted to all labels together first; each then moves from that only as far as its own images
    say, so that a label of which nothing is known has that of all. The logits must be comparable,
    as `normalising.percentiles` makes them.
    """
    start = _sigmoid(logit_NC.ravel(), true_NC.ravel(), np.zeros(2), trust=1e-3)
    found_C2 = [
        _sigmoid(logit_NC[:, c], true_NC[:, c], start, trust=1.0) for c in range(true_NC.shape[1])
    ]
    place_C2 = np.array(found_C2, dtype=np.float32)
    return Affine(np.exp(place_C2[:, 0]), place_C2[:, 1])


def _sigmoid(logit_N: Floats, true_N: Flags, start: Floats, *, trust: float) -> Floats:
    """Return log of the factor, and shift, by likelihood; `trust`: how heavy the start is."""
    target_N = _softened(true_N)

    def loss(place: Floats) -> tuple[float, Floats]:
        factor = np.exp(np.clip(place[0], -_WIDEST, _WIDEST))
        value_N = logit_N * factor + place[1]
        away = (place - start) / (_STEEPNESS, _SHIFT)
        total = np.sum(np.logaddexp(0, value_N) - target_N * value_N) + trust * away @ away / 2
        missed_N = expit(value_N) - target_N
        slope = np.array([missed_N @ logit_N * factor, missed_N.sum()])
        return float(total), slope + trust * away / (_STEEPNESS, _SHIFT)

    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return found


def _softened(right_N: Flags) -> NDArray[np.float64]:
    """Return Platt's targets: as if one more of each kind had been seen."""
    right = int(right_N.sum())
    high, low = (right + 1) / (right + 2), 1 / (len(right_N) - right + 2)
    return np.where(right_N, high, low)
