"""Vectors in, where they lie as a summary says it out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from clipcap import tables
from clipcap.summaries import Cloud


def cloud(vector_BD: np.ndarray) -> Cloud:
    """Return the cloud of some vectors of any length."""
    norm_B = np.linalg.norm(vector_BD, axis=1).astype(np.float32)
    unit_BD = (vector_BD / norm_B[:, None]).astype(np.float32)
    width = tables.vector_type(unit_BD.shape[1])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(unit_BD.ravel()), type=width)
    return Cloud.of(pa.table({"embedding": flat, "embedding_norm": norm_B}))
