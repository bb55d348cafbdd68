"""Embeddings of images and of windows of them in, how much of each label is seen where out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from clipcap.labels.scoring import Scorer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.bank import Bank

    Floats = NDArray[np.float32]
    Places = NDArray[np.int64]
    Flags = NDArray[np.bool_]

_AT_ONCE: Final = 1 << 20  # windows times labels of a block: 4 MB


@dataclass(frozen=True, slots=True)
class Heat:
    """Labels of images and their K windows: R rows, in the order of the images and of ranks."""

    image_R: Places
    """Which image, from 0."""
    index_R: Places
    """Which label of the set."""
    rank_R: Places
    """From 1, by `score_R`."""
    score_R: Floats
    """The mean of `whole_R` and `peak_R`."""
    whole_R: Floats
    """Of the image as a whole."""
    peak_R: Floats
    """Of the best window."""
    best_R: Places
    """Which window that is."""
    heat_RK: Floats
    """Of each window."""
    similarity_R: Floats
    """The cosine of label and best window."""
    accepted_R: Flags
    """Whether `score_R` reaches the label's threshold, and is over that of the background."""
    everywhere_R: Flags
    """Whether every window by itself reaches the threshold."""


class Finder:
    """Finds where labels are seen."""

    def __init__(
        self, bank: Bank, *, threshold: float, top_k: int, chosen: Sequence[int] = ()
    ) -> None:
        """Take what gets rows.

        Args:
            bank: the label set.
            threshold: of labels that have none of their own.
            top_k: labels of an image that get a row, beside those that are accepted.
            chosen: labels that get one instead, of every image.
        """
        self.bank = bank
        self._scorer = Scorer(bank, top_k=1, threshold=threshold)
        self._threshold_N = np.where(np.isnan(bank.threshold_N), threshold, bank.threshold_N)
        self._asked_C = np.array(chosen or self._scorer.tree.leaves)
        self._top_k = len(chosen) or top_k

    def find(self, whole_BD: Floats, window_BKD: Floats) -> Heat:
        """Return the rows of some images: their own embeddings, and those of their windows."""
        each = (window_BKD.shape[1] + 1) * len(self.bank.vector_CD)
        size, found = max(1, _AT_ONCE // each), []
        for at in range(0, max(len(whole_BD), 1), size):
            made = self._block(whole_BD[at : at + size], window_BKD[at : at + size])
            found.append(replace(made, image_R=made.image_R + at))
        columns = [[getattr(one, field.name) for one in found] for field in fields(Heat)]
        return Heat(*map(np.concatenate, columns))

    def _block(self, whole_BD: Floats, window_BKD: Floats) -> Heat:
        score_BVC, similarity_BVC = self._scores(whole_BD, window_BKD)
        count, asked_C = self.bank.count, self._asked_C
        whole_BC, heat_BKC = score_BVC[:, 0, asked_C], score_BVC[:, 1:, asked_C]
        peak_BC = heat_BKC.max(axis=1)
        likest_BKC = np.where(  # scores of 1 and of sets of a single label are all the same
            heat_BKC == peak_BC[:, None], similarity_BVC[:, 1:, asked_C], -np.inf
        )
        best_BC = likest_BKC.argmax(axis=1)
        score_BC = (whole_BC + peak_BC) / 2
        none_BC = _background(score_BVC[:, :, count:], best_BC)
        threshold_C = self._threshold_N[asked_C]
        holds_BC = (score_BC >= threshold_C) & (score_BC > none_BC)
        order_BC = np.argsort(-score_BC, axis=1, kind="stable")
        is_row_BC = np.take_along_axis(holds_BC, order_BC, axis=1)
        is_row_BC[:, : self._top_k] = True
        image_R, rank_R = is_row_BC.nonzero()
        place_R = order_BC[image_R, rank_R]
        at = (image_R, place_R)
        heat_RK, best_R = heat_BKC[image_R, :, place_R], best_BC[at]
        return Heat(
            image_R, asked_C[place_R], rank_R + 1, score_BC[at], whole_BC[at], peak_BC[at], best_R,
            heat_RK, similarity_BVC[image_R, best_R + 1, asked_C[place_R]], holds_BC[at],
            (heat_RK >= threshold_C[place_R, None]).all(axis=1),
        )  # fmt: skip

    def _scores(self, whole_BD: Floats, window_BKD: Floats) -> tuple[Floats, Floats]:
        """Return scores and cosines of V = 1 + K pictures of each image: the whole, the windows."""
        picture_BVD = np.concatenate([whole_BD[:, None], window_BKD], axis=1)
        flat = torch.from_numpy(picture_BVD.reshape(-1, picture_BVD.shape[2]))
        logit_RC = self._scorer.logits(flat)
        shape = (*picture_BVD.shape[:2], logit_RC.shape[1])
        similarity_RC = self._scorer.similarities(logit_RC)
        return (
            self._scorer.scores(logit_RC).numpy().reshape(shape),
            similarity_RC.numpy().reshape(shape),
        )


def _background(score_BVG: Floats, best_BC: Places) -> Floats:
    """Return what the score of the background is, each label's best window taken for its own."""
    if not score_BVG.shape[2]:
        return np.full(best_BC.shape, -1.0, np.float32)
    none_BV = score_BVG.max(axis=2)
    there_BC = np.take_along_axis(none_BV[:, 1:], best_BC, axis=1)
    made: Floats = (none_BV[:, :1] + there_BC) / 2
    return made
