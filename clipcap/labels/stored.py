"""The table of a fitted label set in, its words and numbers out; what is damaged is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from clipcap import tables
from clipcap.errors import SettingsError
from clipcap.labels import sets
from clipcap.labels.sets import LabelSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


def parts(table: pa.Table, url: str) -> dict[str, Any]:
    """Return the fields of a bank that its footer and columns hold, but for the activation.

    Raises:
        SettingsError: something is missing, or no number; parents make a circle.
    """
    metadata = tables.metadata(table)
    try:
        label_set = sets.of_fitted(metadata["label_set"])
        if not pa.types.is_fixed_size_list(table.schema.field("embedding").type):
            raise pa.ArrowTypeError("`embedding` must be a column of vectors of one length")
        vector_CD = tables.vectors(table)
        gain_C, shift_C, threshold_C = (
            np.array(table[name].to_numpy(), dtype=np.float32)
            for name in ("gain", "shift", "threshold")
        )
        threshold_N = threshold_C[: len(label_set.labels)]
        _require_whole(table["name"].to_pylist(), label_set)
        _require_numbers(vector_CD, gain_C, shift_C, threshold_N)
        json.loads(metadata["fit"] or "{}")
        told = {name: metadata[name] for name in ("model_id", "model_sha256", "fit")}
    except (KeyError, ValueError, pa.ArrowException) as error:
        raise SettingsError(
            f"The fitted label set {url} must be whole, but is damaged: {error}. Fit or learn it "
            "again."
        ) from error
    return {
        "label_set": label_set,
        "vector_CD": vector_CD,
        "gain_C": gain_C,
        "shift_C": shift_C,
        "threshold_N": threshold_N,
        **told,
    }


def _require_whole(names: list[str], label_set: LabelSet) -> None:
    wanted = [*label_set.names, *label_set.background]
    if names != wanted:
        raise ValueError(
            f"there must be a row for each of its {len(wanted):,} names in their order, but there "
            f"are {len(names):,} rows, or others"
        )


def _require_numbers(
    vector_CD: Floats, gain_C: Floats, shift_C: Floats, threshold_N: Floats
) -> None:
    is_usable = np.isfinite(vector_CD).all() and np.isfinite(gain_C).all()
    if not is_usable or not np.all(shift_C < np.inf):  # minus infinity: a group
        raise ValueError("vectors, gains and shifts must be numbers, but some are not")
    if not np.all(np.isnan(threshold_N) | ((threshold_N >= 0) & (threshold_N <= 1))):
        raise ValueError("a threshold must be from 0 to 1, but one is not")
