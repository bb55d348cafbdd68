"""Stored embeddings and a bank in; similarities, scores and the best labels of each image out.

One matrix product per block of images, with the gains in the vectors; a block's logits are read by
the softmax and the search for the best labels while they are near the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from clipcap.labels.tree import ROOT, Tree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.bank import Bank

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]

_AT_ONCE: Final = 1 << 20  # images times labels of a block: 4 MB
_ABOVE: Final = 4.0  # than any score
_FEW: Final = 12  # labels that are looked for one by one


@dataclass(frozen=True, slots=True)
class Best:
    """The best labels of some images: R rows, in the order of the images and of their ranks."""

    image_R: NDArray[np.int64]
    """Which image, from 0."""
    index_R: NDArray[np.int64]
    """Which label of the set."""
    rank_R: NDArray[np.int64]
    """From 1."""
    score_R: Floats
    similarity_R: Floats
    margin_R: Floats
    """How far the score is before that of the next label, or of the best background name."""
    accepted_R: Flags


def whole(embedding_BD: Floats, bank: Bank) -> tuple[Floats, Floats]:
    """Return `similarity_BC` and `score_BC` of every image and label, the background's last.

    For a softmax the same as `CLIPModel`'s `logits_per_image.softmax(-1)`, for a sigmoid with a
    bias as `SiglipModel`'s. A sigmoid without a bias compares each label with the background alone.
    Groups of a taxonomy have what their labels have together.
    """
    scorer = Scorer(bank, top_k=1, threshold=0.0)
    logit_BC = scorer.logits(torch.from_numpy(embedding_BD))
    return scorer.similarities(logit_BC).numpy(), scorer.scores(logit_BC).numpy()


class Scorer:
    """Finds the labels of images that get a row: the best few, and all over their threshold."""

    def __init__(
        self, bank: Bank, *, top_k: int, threshold: float, device: torch.device | str = "cpu"
    ) -> None:
        """Take the threshold of labels that have none of their own."""
        self.bank, self.tree = bank, Tree(bank.label_set.labels)
        self.top_k = min(top_k, len(self.tree.leaves))
        self._device = torch.device(device)
        self._gain_C, self._shift_C = self._moved(bank.gain_C), self._moved(bank.shift_C)
        self._vector_DC = (self._moved(bank.vector_CD) * self._gain_C[:, None]).T.contiguous()
        own_N = self._moved(bank.threshold_N)
        self._threshold_N = torch.where(own_N.isnan(), threshold, own_N)
        lowest = float(self._threshold_N.min())  # scores that add up to 1 cannot all be over it
        self._may_be_more = bank.activation != "softmax" or (self.top_k + 1) * lowest <= 1
        size = max(1, _AT_ONCE // len(bank.vector_CD))
        room = (2, size, len(bank.vector_CD))  # allocated anew it would cost as much as a softmax
        self._logit_BC, self._score_BC = torch.empty(room, device=self._device)

    def _moved(self, numbers: Floats) -> Tensor:
        return torch.tensor(numbers, device=self._device)  # a copy: Arrow's cannot be written to

    def best(self, embedding_BD: Floats) -> Best:
        """Return the rows of some images."""
        find = self._flat if self.tree.is_flat else self._of_tree
        size, found = len(self._logit_BC), []
        for n, part_BD in enumerate(torch.split(torch.from_numpy(embedding_BD), size)):
            rows = find(self.logits(part_BD.to(self._device), self._logit_BC[: len(part_BD)]))
            found.append(replace(rows, image_R=rows.image_R + n * size))
        return _joined(found)

    def logits(self, embedding_BD: Tensor, out_BC: Tensor | None = None) -> Tensor:
        """Return the logits of every image and label, the background's last."""
        return torch.addmm(self._shift_C, embedding_BD, self._vector_DC, out=out_BC)

    def similarities(self, logit_BC: Tensor) -> Tensor:
        """Return the cosines that logits were made from; groups have their best label's."""
        similarity_BC = (logit_BC - self._shift_C) / self._gain_C
        self.tree.add_up(similarity_BC, exclusive=False)
        return similarity_BC

    def scores(self, logit_BC: Tensor, out_BC: Tensor | None = None) -> Tensor:
        """Return the probabilities that logits stand for."""
        count, activation = self.bank.count, self.bank.activation
        if activation == "softmax":
            score_BC = torch.softmax(logit_BC, dim=1, out=out_BC)
        elif activation == "sigmoid":
            score_BC = logit_BC.sigmoid()
        else:
            none_B1 = logit_BC[:, count:].logsumexp(dim=1, keepdim=True)
            score_BC = (logit_BC - none_B1).sigmoid()
            score_BC[:, count:] = 1 - score_BC[:, :count].amax(dim=1, keepdim=True)
        self.tree.add_up(score_BC, exclusive=activation == "softmax")
        return score_BC

    def _flat(self, logit_BC: Tensor) -> Best:
        """Return the rows of a block where no label has a parent; nothing is sorted whole."""
        count = self.bank.count
        score_BC = self.scores(logit_BC, self._score_BC[: len(logit_BC)])
        background_B1 = _best_of(score_BC[:, count:])[:, None]
        index_BK = self._candidates(logit_BC[:, :count], score_BC[:, :count])
        score_BK = score_BC.gather(1, index_BK)
        after_BK = torch.cat([score_BK[:, 1:], background_B1], dim=1)
        has_row_BK = score_BK >= self._threshold_N[index_BK]
        holds_BK = has_row_BK & (score_BK > background_B1)
        if not self.bank.label_set.multi_label:
            holds_BK[:, 1:] = False
        has_row_BK[:, : self.top_k] = True
        if index_BK.shape[1] < count:
            has_row_BK[:, -1] = False  # was looked for as what comes after the others
        logit_BK = logit_BC.gather(1, index_BK)
        similarity_BK = (logit_BK - self._shift_C[index_BK]) / self._gain_C[index_BK]
        return _rows(has_row_BK, index_BK, (score_BK, similarity_BK, score_BK - after_BK, holds_BK))

    def _candidates(self, logit_BN: Tensor, score_BN: Tensor) -> Tensor:
        """Return the places of the best labels, sorted: all that get a row, and the next one."""
        count = self.bank.count
        size = min(self.top_k + 1, count)
        index_BK = _largest(logit_BN, size)
        if not self._may_be_more:
            return index_BK
        over_B = (score_BN >= self._threshold_N).sum(dim=1)
        while size < count:
            sure_BK = index_BK[:, :-1]
            over_BK = score_BN.gather(1, sure_BK) >= self._threshold_N[sure_BK]
            if torch.equal(over_BK.sum(dim=1), over_B):
                break
            size = min(4 * size, count)
            index_BK = _largest(logit_BN, size)
        return index_BK

    def _of_tree(self, logit_BC: Tensor) -> Best:
        """Return the rows of a block of a taxonomy: the answer, the best labels, what they are."""
        count, tree, score_BC = self.bank.count, self.tree, self.scores(logit_BC)
        score_BN, background_B = score_BC[:, :count], _best_of(score_BC[:, count:])
        over_BN = score_BN >= self._threshold_N
        holds_BN = over_BN & (score_BN > background_B[:, None])
        leaf_BN = torch.full_like(score_BN, -1.0)
        leaf_BN[:, tree.leaves] = score_BN[:, tree.leaves]
        has_row_BN = over_BN | (leaf_BN >= leaf_BN.topk(self.top_k, dim=1).values[:, -1:])
        order_BN = score_BN.clone()
        if not self.bank.label_set.multi_label:
            answer_B = tree.answers(score_BN, self._threshold_N, background_B)
            first_B1 = torch.where(answer_B == ROOT, leaf_BN.argmax(dim=1), answer_B)[:, None]
            has_row_BN.scatter_(1, first_B1, value=True)
            order_BN.scatter_(1, first_B1, _ABOVE)
            holds_BN = torch.zeros_like(holds_BN).scatter_(1, first_B1, (answer_B != ROOT)[:, None])
        index_BN = (order_BN - _ABOVE * ~has_row_BN).argsort(dim=1, descending=True, stable=True)
        columns = (
            score_BN,
            self.similarities(logit_BC)[:, :count],
            tree.leads(score_BN, background_B),
        )
        numbers = tuple(one.gather(1, index_BN) for one in (*columns, holds_BN))
        return _rows(has_row_BN.gather(1, index_BN), index_BN, numbers)


def _largest(logit_BN: Tensor, size: int) -> Tensor:
    """Return the places of the largest logits of each image, the largest first.

    A few are found one after the other, each at the speed of memory, and put back: half the time of
    `topk` on a CPU.
    """
    if logit_BN.device.type != "cpu" or size > _FEW:
        return logit_BN.topk(size, dim=1).indices
    all_BN, at_B = logit_BN.numpy(), np.arange(len(logit_BN))
    index_BK = np.empty((len(logit_BN), size), np.int64)
    value_BK = np.empty((len(logit_BN), size), np.float32)
    for k in range(size):
        index_BK[:, k] = all_BN.argmax(axis=1)
        value_BK[:, k] = all_BN[at_B, index_BK[:, k]]
        all_BN[at_B, index_BK[:, k]] = -np.inf
    all_BN[at_B[:, None], index_BK] = value_BK
    return torch.from_numpy(index_BK)


def _best_of(background_BG: Tensor) -> Tensor:
    """Return the best score of the background of each image, 0 where there is no background."""
    if background_BG.shape[1] == 0:
        return background_BG.new_zeros(len(background_BG))
    return background_BG.amax(dim=1)


def _rows(has_row_BK: Tensor, index_BK: Tensor, numbers: tuple[Tensor, ...]) -> Best:
    """Return the rows that there shall be; the labels of each image are in the order of ranks."""
    image_R, place_R = has_row_BK.nonzero(as_tuple=True)
    chosen = (index_BK, *numbers)
    columns = [one[image_R, place_R].numpy(force=True) for one in chosen]
    return Best(image_R.numpy(force=True), columns[0], place_R.numpy(force=True) + 1, *columns[1:])


def _joined(found: Sequence[Best]) -> Best:
    columns = [[getattr(one, field.name) for one in found] for field in fields(Best)]
    return Best(*map(np.concatenate, columns))
