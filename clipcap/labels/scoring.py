"""Stored embeddings and a bank in; similarities and scores out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.bank import Bank

    Floats = NDArray[np.float32]


def averaged(embedding_MD: Floats) -> Floats:
    """Return one unit vector: the mean of the unit vectors of M texts, made unit again.

    As open_clip's zero-shot classifier does.
    """
    unit_MD = embedding_MD / np.linalg.norm(embedding_MD, axis=1, keepdims=True)
    mean_D = unit_MD.mean(axis=0)
    unit: Floats = mean_D / np.linalg.norm(mean_D)
    return unit


def whole(embedding_BD: Floats, bank: Bank) -> tuple[Floats, Floats]:
    """Return `similarity_BC` and `score_BC` of every image and label, the background's last.

    For a softmax the same as `CLIPModel`'s `logits_per_image.softmax(-1)`, for a sigmoid with a
    bias as `SiglipModel`'s. A sigmoid without a bias compares each label with the background alone.
    """
    similarity_BC = embedding_BD @ bank.vector_CD.T
    return similarity_BC, scores(similarity_BC * bank.gain_C + bank.shift_C, bank)


def scores(logit_BC: Floats, bank: Bank) -> Floats:
    """Return the probabilities that logits stand for; they may be changed on the way."""
    if bank.activation == "softmax":
        power_BC = np.exp(logit_BC - logit_BC.max(axis=1, keepdims=True))
        found: Floats = power_BC / power_BC.sum(axis=1, keepdims=True)
        return found
    if bank.activation == "contrast":
        none_B: Floats = np.logaddexp.reduce(logit_BC[:, bank.count :], axis=1)
        logit_BC = logit_BC - none_B[:, None]
    score_BC: Floats = np.reciprocal(1 + np.exp(-logit_BC))
    if bank.activation == "contrast":
        score_BC[:, bank.count :] = 1 - score_BC[:, : bank.count].max(axis=1, keepdims=True)
    return score_BC


@dataclass(frozen=True, slots=True)
class Best:
    """The best labels of some images, R rows in the order of the images and of their ranks."""

    image_R: NDArray[np.int32]
    """Which image, from 0."""
    index_R: NDArray[np.int32]
    """Which label of the set."""
    rank_R: NDArray[np.int32]
    """From 1."""
    score_R: Floats
    similarity_R: Floats
    margin_R: Floats
    """How far the score is before that of the next label, or of the best background name."""
    accepted_R: NDArray[np.bool_]


class Scorer:
    """Finds the labels of images that get a row: the best few, and all that are accepted."""

    def __init__(self, bank: Bank, *, top_k: int, threshold: float) -> None:
        """Take the threshold of labels that have none of their own."""
        self.bank = bank
        self._top_k = min(top_k, bank.count)
        self._threshold_N = np.where(np.isnan(bank.threshold_N), threshold, bank.threshold_N)

    def best(self, embedding_BD: Floats) -> Best:
        """Return the rows of some images."""
        bank, count = self.bank, self.bank.count
        similarity_BC, score_BC = whole(embedding_BD, bank)
        background_B = score_BC[:, count:].max(axis=1, initial=0.0)
        score_BN = score_BC[:, :count]
        order_BN = np.argsort(-score_BN, axis=1, kind="stable")
        sorted_BN = np.take_along_axis(score_BN, order_BN, axis=1)
        following_BN = np.concatenate([sorted_BN[:, 1:], background_B[:, None]], axis=1)
        has_row_BN = sorted_BN >= self._threshold_N[order_BN]
        holds_BN = has_row_BN & (sorted_BN > background_B[:, None])
        if not bank.label_set.multi_label:
            holds_BN[:, 1:] = False
        has_row_BN[:, : self._top_k] = True
        image_R, place_R = np.nonzero(has_row_BN)
        index_R = order_BN[image_R, place_R]
        score_R = sorted_BN[image_R, place_R]
        return Best(
            image_R=image_R.astype(np.int32),
            index_R=index_R.astype(np.int32),
            rank_R=(place_R + 1).astype(np.int32),
            score_R=score_R,
            similarity_R=similarity_BC[image_R, index_R],
            margin_R=score_R - following_BN[image_R, place_R],
            accepted_R=holds_BN[image_R, place_R],
        )
