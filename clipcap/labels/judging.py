"""A bank and what is true in, embeddings block by block; what is needed to judge the bank out.

Of each image a few numbers are kept. What ranks images by label needs the scores of every image and
label that somebody named: 4 bytes each, in memory up to 256 MiB, then in a file below `TMPDIR`; of
more than 8 GiB no ranking is made.
"""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from clipcap.errors import StorageError
from clipcap.labels.facts import Facts
from clipcap.labels.scoring import Scorer
from clipcap.labels.truth import Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.bank import Bank

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]
    Places = NDArray[np.int64]

TOP: Final = 5
IN_MEMORY: Final = 2**28
MOST_BYTES: Final = 2**33
_AT_ONCE: Final = 1 << 22  # images times labels of a block: 16 MB


class Judge:
    """Looks at embeddings; I images by their places in the truth, N labels, C with background."""

    def __init__(self, bank: Bank, truth: Truth, *, threshold: float) -> None:
        """Take what is judged; `threshold` is that of labels that have none of their own."""
        self.scorer = Scorer(bank, top_k=1, threshold=threshold)
        self.facts = Facts(truth, self.scorer.tree)
        self.bank, images = bank, self.facts.images
        self.multi_label = bank.label_set.multi_label
        top = min(TOP, len(self.scorer.tree.leaves))
        self.seen_I: Flags = np.zeros(images, np.bool_)
        self.top_IK: Places = np.full((images, top), -1, np.int64)
        """The best labels that are no groups."""
        self.score_IK: Floats = np.zeros((images, top), np.float32)
        self.best_LI: Places = np.full((len(self.facts.cuts), images), -1, np.int64)
        """The best label of each cut of the taxonomy; that of the leaves is the best of all."""
        self.answer_I: Places = np.full(images, -1, np.int64)
        """The best accepted label; -1: none of these."""
        self.answer_score_I: Floats = np.zeros(images, np.float32)
        self.wrong_I: Places = np.full(images, -1, np.int64)
        """The best accepted label that is wrong; -1: none."""
        self.wrong_score_I: Floats = np.zeros(images, np.float32)
        self.given_N: Places = np.zeros(bank.count, np.int64)
        """Images that each label was accepted of."""
        self.hits_N: Places = np.zeros(bank.count, np.int64)
        """Those of which it was right."""
        self.ranked_K: Places = np.unique(self.facts.true.label_T)
        """Labels of which `score_KI` has the scores."""
        self.score_KI = _matrix(len(self.ranked_K), images)

    def look(self, place_B: Places, embedding_BD: Floats) -> None:
        """Look at images, each once; `place_B` are their places in the truth."""
        size = max(1, _AT_ONCE // len(self.bank.vector_CD))
        for at in range(0, len(place_B), size):
            self._look(place_B[at : at + size], embedding_BD[at : at + size])

    def _look(self, place_B: Places, embedding_BD: Floats) -> None:
        scorer = self.scorer
        score_BC = scorer.scores(scorer.logits(torch.from_numpy(embedding_BD)))
        self.seen_I[place_B] = True
        *groups, leaves_K = self.facts.cuts
        leaf_BK = score_BC[:, torch.from_numpy(leaves_K)]
        top = leaf_BK.topk(self.top_IK.shape[1], dim=1)
        self.top_IK[place_B], self.score_IK[place_B] = leaves_K[top.indices.numpy()], top.values
        for at, cut_K in enumerate(groups):
            best_B = score_BC[:, torch.from_numpy(cut_K)].argmax(dim=1)
            self.best_LI[at, place_B] = cut_K[best_B.numpy()]
        self.best_LI[-1, place_B] = self.top_IK[place_B, 0]
        if self.score_KI is not None:
            ranked_BK = score_BC[:, torch.from_numpy(self.ranked_K)]
            self.score_KI[:, place_B] = ranked_BK.T.numpy()
        self._accept(place_B, embedding_BD)

    def _accept(self, place_B: Places, embedding_BD: Floats) -> None:
        """Take the labels that the label stage would accept."""
        found = self.scorer.best(embedding_BD)
        image_R = place_B[found.image_R[found.accepted_R]]
        label_R, score_R = found.index_R[found.accepted_R], found.score_R[found.accepted_R]
        hold = self.facts.true.hold if self.multi_label else self.facts.agree
        right_R = hold(image_R, label_R)
        self.given_N += np.bincount(label_R, minlength=self.bank.count)
        self.hits_N += np.bincount(label_R[right_R], minlength=self.bank.count)
        for flags_R, label_I, score_I in (
            (np.ones_like(right_R), self.answer_I, self.answer_score_I),
            (~right_R, self.wrong_I, self.wrong_score_I),
        ):
            best_I, first_R = np.unique(image_R[flags_R], return_index=True)  # in order of ranks
            label_I[best_I] = label_R[flags_R][first_R]
            score_I[best_I] = score_R[flags_R][first_R]


def _matrix(labels: int, images: int) -> Floats | None:
    """Return room for the scores of images by label, or None where that would be too much."""
    size = 4 * labels * images
    if size > MOST_BYTES:
        return None
    if size <= IN_MEMORY:
        return np.zeros((labels, images), np.float32)
    with tempfile.TemporaryFile(prefix="clipcap-scores-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk ends the process
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StorageError(
                f"The scores of {images:,} images and {labels:,} labels need "
                f"{size / 1e9:.1f} GB below {tempfile.gettempdir()}, which has less. Set TMPDIR "
                "to a folder with room, or give a truth of fewer images."
            ) from error
        return np.memmap(file, np.float32, mode="r+", shape=(labels, images))
