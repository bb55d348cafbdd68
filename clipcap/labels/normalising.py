"""Logits of a collection in, what makes its unequal labels comparable out: no truth is needed.

Some labels are near to every image, so the best of all logits is a poor choice. What a label has
for images that show something else is its level, and only what is above the level says something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from clipcap.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

FEWEST: Final = 50
"""Images below which a collection says nothing of its labels."""
_ROUNDS: Final = 100
_MOVED: Final = 1e-3  # of a logit; levels that move less stay where they are
_UNIFORM: Final = 1.0  # as heavy as the collection: no share of a label falls below half its due
_NORMAL: Final = 1.702  # sigmoid(1.702 z) is the normal distribution, to 0.01


@dataclass(frozen=True, slots=True)
class Affine:
    """What logits become: `logit * factor_C + offset_C`, for each label and background name."""

    factor_C: Floats
    offset_C: Floats

    def __call__(self, logit_NC: Floats) -> Floats:
        """Return the logits changed."""
        made: Floats = logit_NC * self.factor_C + self.offset_C
        return made

    def then(self, later: Affine) -> Affine:
        """Return both as one."""
        return Affine(
            factor_C=self.factor_C * later.factor_C,
            offset_C=self.offset_C * later.factor_C + later.offset_C,
        )


def same(count: int) -> Affine:
    """Return what changes nothing."""
    return Affine(np.ones(count, np.float32), np.zeros(count, np.float32))


def levels(logit_NC: Floats) -> Affine:
    """Return what takes its level from each label and adds the log of how often it is shown.

    For labels that exclude each other. The level is the mean over images that show something else,
    the frequency the mean probability, halfway to that of all labels alike; which image shows what
    is guessed by these very numbers, in turns, from the medians on. So a label that most images
    show keeps its level. The model's own temperature stays.

    Raises:
        SettingsError: too few images, a logit that is no number, or a label that is always alike.
    """
    require_usable(logit_NC, FEWEST)
    level_C = np.median(logit_NC, axis=0)
    count = len(level_C)
    log_share_C = np.zeros(count, np.float32)
    for _ in range(_ROUNDS):
        guess_NC = softmax(logit_NC + (log_share_C - level_C))
        share_C = (guess_NC.mean(0) + _UNIFORM / count) / (1 + _UNIFORM)
        before_C, log_share_C = level_C - log_share_C, np.log(share_C)
        np.subtract(1, guess_NC, out=guess_NC)
        weight_C = np.maximum(guess_NC.sum(0), np.finfo(np.float32).tiny)
        level_C = np.einsum("nc,nc->c", guess_NC, logit_NC) / weight_C
        if np.abs(level_C - log_share_C - before_C).max() < _MOVED:
            break
    return Affine(np.ones(count, np.float32), (log_share_C - level_C).astype(np.float32))


def percentiles(logit_NC: Floats, *, fewest: int = FEWEST) -> Affine:
    """Return what makes the sigmoid of a label the share of the other images that have less of it.

    For labels each of which stands alone. Median and spread of the lower half, which images that
    show the label do not move unless most do; the distribution below is taken for normal.

    Raises:
        SettingsError: as `levels`.
    """
    require_usable(logit_NC, fewest)
    middle_C, low_C = np.quantile(logit_NC, (0.5, 0.1587), axis=0)
    spread_C = middle_C - low_C
    if not np.all(spread_C > 0):
        spread_C = np.where(spread_C > 0, spread_C, logit_NC.std(axis=0))
    factor_C = (_NORMAL / spread_C).astype(np.float32)
    return Affine(factor_C, (-middle_C * factor_C).astype(np.float32))


def softmax(logit_NC: Floats) -> Floats:
    """Return probabilities over the labels."""
    power_NC = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    power_NC /= power_NC.sum(axis=1, keepdims=True)
    found: Floats = power_NC
    return found


def require_usable(logit_NC: Floats, fewest: int) -> None:
    """Do nothing where logits can be fitted to.

    Raises:
        SettingsError: too few images, a logit that is no number, or a label that is always alike.
    """
    if len(logit_NC) < fewest:
        raise SettingsError(
            f"To fit a label set there must be {fewest} images or more, but there are "
            f"{len(logit_NC)}."
        )
    strange_N = ~np.isfinite(logit_NC).all(axis=1)
    if strange_N.any():
        raise SettingsError(
            f"The similarity of every image and label must be a number, but {strange_N.sum():,} of "
            f"{len(logit_NC):,} images have one that is none. Embed them again."
        )
    alike_C = np.ptp(logit_NC, axis=0) <= np.abs(logit_NC).max(axis=0) * 1e-6
    if alike_C.any():
        raise SettingsError(
            "The similarity of a label must differ between images, but that of "
            f"{alike_C.sum():,} of {len(alike_C):,} labels (the first is number "
            f"{int(alike_C.argmax()) + 1}) is the same for all {len(logit_NC):,}. Are the "
            "embeddings those of different images?"
        )
