"""A bank in, the same bank with something to compare its labels with out: a background of its own.

How near an image is to any text at all differs more between images than what they show does. What
lies between all labels has the same nearness, and none of their meaning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.bank import Bank

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]

_MANY: Final = 8  # labels whose mean says what is common to all
NONE: Final = "(none of these)"
"""The background name that a fit adds where the truth has such images and the set no background."""


def is_alone(bank: Bank) -> bool:
    """Whether each label stands alone: a softmax over one would always be sure."""
    return bank.activation != "softmax" or has_vector(bank).sum() == 1


def has_vector(bank: Bank) -> Flags:
    """Return which labels and background names have a vector: groups have none."""
    found: Flags = np.any(bank.vector_CD != 0, axis=1)
    return found


def _is_of_cosines(bank: Bank) -> bool:
    """Whether its vectors are those of texts; after another fit they may be of any length."""
    length_C = np.linalg.norm(bank.vector_CD[has_vector(bank)], axis=1)
    return bool(np.all(np.abs(length_C - 1) < 0.01))


def _mean(vector_CD: Floats) -> Floats:
    """Return the unit vector between some."""
    mean_D = vector_CD.mean(axis=0)
    unit: Floats = mean_D / np.linalg.norm(mean_D)
    return unit


def contrasted(bank: Bank) -> Bank:
    """Return a bank of labels alone, each less the background, or less the mean of many labels.

    How near an image is to anything at all then no longer counts.
    """
    count, has_vector_C = bank.count, has_vector(bank)
    rest_CD = bank.vector_CD[count:] if bank.label_set.background else bank.vector_CD[has_vector_C]
    vector_ND = bank.vector_CD[:count].copy()
    is_known = bool(bank.label_set.background) or len(rest_CD) >= _MANY
    if is_known and _is_of_cosines(bank):
        vector_ND[has_vector_C[:count]] -= _mean(rest_CD)
    return replace(
        bank,
        label_set=bank.label_set.model_copy(update={"background": ()}),
        vector_CD=vector_ND,
        gain_C=bank.gain_C[:count],
        shift_C=bank.shift_C[:count],
    )


def anchored(bank: Bank) -> Bank:
    """Return a bank with a background: the mean of the labels' vectors, near to what is none.

    Nothing changes where it has one, or where each label stands alone.
    """
    if bank.label_set.background or is_alone(bank) or not _is_of_cosines(bank):
        return bank
    has_vector_C = has_vector(bank)
    return replace(
        bank,
        label_set=bank.label_set.model_copy(update={"background": (NONE,)}),
        vector_CD=np.concatenate([bank.vector_CD, _mean(bank.vector_CD[has_vector_C])[None]]),
        gain_C=np.append(bank.gain_C, np.float32(np.median(bank.gain_C[has_vector_C]))),
        shift_C=np.append(bank.shift_C, np.float32(np.median(bank.shift_C[has_vector_C]))),
    )
