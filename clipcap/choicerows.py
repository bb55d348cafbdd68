"""Candidates and how well each fits its image in, rows of the best ones out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from clipcap import tables

if TYPE_CHECKING:
    from clipcap.choosing import Fit

_TEXT: Final = ("image_id", "key", "content_sha256", "candidate")
_OF_LANGUAGE: Final = ("logprob_sum", "logprob_mean", "logprob_typical")
SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXT),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("candidate_index", "rank")),
        pa.field("score", pa.float32(), nullable=False),
        *(pa.field(name, pa.float32()) for name in ("margin", "clip_score", *_OF_LANGUAGE)),
        pa.field("token_count", pa.int32()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("captioner_id", pa.string()),
        pa.field("candidates_sha256", pa.string(), nullable=False),
        pa.field("created_at", tables.TIME, nullable=False),
    ]
)


def rows(
    images: Sequence[Mapping[str, Any]],
    texts: Sequence[Sequence[str]],
    fits: Sequence[Fit],
    top_k: int,
) -> pa.Table:
    """Return the best candidates of each image, best first.

    Args:
        images: what the rows say of each image: the columns that are not of a candidate.
        texts: the candidates of each.
        fits: how well they fit.
        top_k: rows of an image.
    """
    now = datetime.now(UTC)
    made: list[dict[str, Any]] = []
    for image, texts_C, fit in zip(images, texts, fits, strict=True):
        order_C = np.argsort(-fit.score_C, kind="stable")
        best = order_C[:top_k]
        following_C = [*fit.score_C[order_C[1 : top_k + 1]], None]
        for rank, (index, following) in enumerate(zip(best, following_C, strict=False), start=1):
            score = float(fit.score_C[index])
            made.append(
                {
                    **image,
                    "candidate": texts_C[index],
                    "candidate_index": int(index),
                    "rank": rank,
                    "score": score,
                    "margin": None if following is None else score - float(following),
                    "created_at": now,
                    **_measured(fit, int(index)),
                }
            )
    return tables.from_rows(made, SCHEMA)


def _measured(fit: Fit, index: int) -> dict[str, Any]:
    """Return what was measured of one candidate."""
    found: dict[str, Any] = {}
    if fit.clip_score_C is not None:
        found["clip_score"] = float(fit.clip_score_C[index])
    if fit.likelihood is not None:
        found["logprob_sum"] = float(fit.likelihood.sum_C[index])
        found["logprob_mean"] = float(fit.likelihood.mean_C[index])
        found["token_count"] = int(fit.likelihood.count_C[index])
    if fit.prior_C is not None:
        found["logprob_typical"] = float(fit.prior_C[index])
    return found
