"""Images and how probable each answer to a question is in, rows of the best answers out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from clipcap import tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.asking import Answered
    from clipcap.statements import Question

_NAMES: Final = ("image_id", "key", "content_sha256", "question", "answer")
_PLACES: Final = ("question_index", "answer_index", "rank")
_NUMBERS: Final = ("score", "margin", "makes_sense")
SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _NAMES),
        *(pa.field(name, pa.int32(), nullable=False) for name in _PLACES),
        *(pa.field(name, pa.float32(), nullable=False) for name in _NUMBERS),
        pa.field("accepted", pa.bool_(), nullable=False),
        *(pa.field(name, pa.float32()) for name in ("clip_score", "logprob")),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("captioner_id", pa.string()),
        pa.field("created_at", tables.TIME, nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Judge:
    """What makes an answer accepted, and how many are told."""

    threshold: float
    top_k: int
    captioner_id: str | None
    """Who compared the answers beside CLIP."""


def rows(images: pa.Table, asked: tuple[int, Question], found: Answered, judge: Judge) -> pa.Table:
    """Return the best answers of each image to a question, best first.

    The first is accepted where its score reaches the threshold and that of no answer is lower.

    Args:
        images: rows of B embeddings.
        asked: the question and its place among the others.
        found: what the images answer.
        judge: how it is judged.
    """
    place, question = asked
    score_BA = found.score_BA
    top_k = min(judge.top_k, score_BA.shape[1])
    order_BA = np.argsort(-score_BA, axis=1, kind="stable")
    sorted_BA = np.take_along_axis(score_BA, order_BA, axis=1)
    none_B1 = np.maximum(1 - score_BA.sum(axis=1, keepdims=True), 0)
    after_BA = np.hstack([sorted_BA[:, 1:], np.zeros_like(none_B1)])
    margin_BA = sorted_BA - np.maximum(after_BA, none_B1)
    accepted_BA = (sorted_BA >= judge.threshold) & (sorted_BA > none_B1)
    accepted_BA[:, 1:] = False
    answer_BK = order_BA[:, :top_k]
    image_R = pa.array(np.repeat(np.arange(len(score_BA)), top_k))
    columns: dict[str, Any] = {
        name: images[name].combine_chunks().take(image_R)
        for name in ("image_id", "key", "content_sha256", "model_id")
    }
    columns |= {
        "answer": pa.array(question.answers).take(pa.array(answer_BK.ravel())),
        "answer_index": answer_BK.ravel(),
        "rank": np.tile(np.arange(1, top_k + 1), len(score_BA)),
        "score": sorted_BA[:, :top_k].ravel(),
        "margin": margin_BA[:, :top_k].ravel(),
        "makes_sense": np.repeat(found.makes_sense_B, top_k),
        "accepted": accepted_BA[:, :top_k].ravel(),
        "clip_score": _taken(found.clip_score_BA, answer_BK),
    }
    if found.logprob_BA is not None:
        columns["logprob"] = _taken(found.logprob_BA, answer_BK)
    same = {
        "question": question.text,
        "question_index": place,
        "captioner_id": None if found.logprob_BA is None else judge.captioner_id,
        "created_at": datetime.now(UTC),
    }
    return tables.from_columns(columns, same, SCHEMA)


def _taken(number_BA: NDArray[np.float64], answer_BK: NDArray[np.intp]) -> pa.Array:
    """Return the numbers of some answers; null of those that have none."""
    return pa.array(np.take_along_axis(number_BA, answer_BK, axis=1).ravel(), from_pandas=True)
