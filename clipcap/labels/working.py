"""A bank in, the part of it that a fit changes out: its columns that have a vector of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from clipcap.labels import anchors, calibrating, normalising
from clipcap.labels.tree import ROOT, Tree

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from clipcap.labels.bank import Bank
    from clipcap.labels.fits import FitSettings
    from clipcap.labels.normalising import Affine

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Work:
    """What a fit works on: the columns that have a vector of their own."""

    bank: Bank
    at_C: NDArray[np.intp]
    """Which of the bank's columns; labels, then background."""
    background: int | None
    """How many of them are background; None: each label stands alone, in a sigmoid."""

    def logits(self, embedding_ND: Floats) -> Floats:
        """Return the logits of images, as the bank came."""
        bank, at_C = self.bank, self.at_C
        logit_NC = embedding_ND @ bank.vector_CD[at_C].T
        logit_NC *= bank.gain_C[at_C]
        logit_NC += bank.shift_C[at_C]
        return logit_NC

    def scores(self, logit_NC: Floats) -> Floats:
        """Return what logits mean after the fit."""
        if self.background is None:
            return calibrating.sigmoid(logit_NC)
        return normalising.softmax(logit_NC)

    def whole(self, score_NC: Floats) -> tuple[Tensor, Tensor]:
        """Return the scores of all labels, groups among them, and the best of the background."""
        bank, label_C = self.bank, self.at_C < self.bank.count
        score_NL = torch.zeros(len(score_NC), bank.count)
        score_NL[:, self.at_C[label_C]] = torch.from_numpy(score_NC[:, label_C])
        Tree(bank.label_set.labels).add_up(score_NL, exclusive=self.background is not None)
        rest_NB = score_NC[:, ~label_C]
        return score_NL, torch.from_numpy(rest_NB.max(axis=1, initial=0.0))

    def tops(self, score_NC: Floats) -> Floats:
        """Return the scores of the most general labels, then of the background."""
        roots = Tree(self.bank.label_set.labels).children[ROOT]
        rest_NB = score_NC[:, self.at_C >= self.bank.count]
        return np.hstack([self.whole(score_NC)[0][:, roots].numpy(), rest_NB])

    def labelled(self, score_NC: Floats, threshold_N: Floats) -> Flags:
        """Return which images the label stage would give a label."""
        score_NL, background_N = self.whole(score_NC)
        limit_N = torch.from_numpy(threshold_N)
        if self.bank.label_set.multi_label:
            over_NL = (score_NL >= limit_N) & (score_NL > background_N[:, None])
            return over_NL.any(dim=1).numpy()
        tree = Tree(self.bank.label_set.labels)
        return (tree.answers(score_NL, limit_N, background_N) != ROOT).numpy()

    def calibrated(self, logit_NC: Floats, true_NC: Flags) -> Affine:
        """Return what makes scores of logits mean what they say."""
        if self.background is None:
            return calibrating.platt(logit_NC, true_NC)
        return calibrating.temperature(logit_NC, true_NC, self.background)

    def held_out(
        self, logit_NC: Floats, true_NC: Flags, change: Affine, settings: FitSettings
    ) -> Floats:
        """Return the score of each image by a fit to the images of other folds."""
        logit_NC, score_NC = change(logit_NC), np.empty_like(logit_NC)
        rng = np.random.default_rng(settings.thresholds.seed)
        fold_N = rng.permutation(len(logit_NC)) % settings.folds
        for fold in range(settings.folds):
            own_N = fold_N == fold
            fitted = self.calibrated(logit_NC[~own_N], true_NC[~own_N])
            score_NC[own_N] = self.scores(fitted(logit_NC[own_N]))
        return score_NC


def begin(bank: Bank) -> Work:
    """Return the columns to fit: groups have no vector, and labels alone need no background."""
    is_alone = anchors.is_alone(bank)
    if is_alone:
        bank = anchors.contrasted(bank)
    at_C = np.flatnonzero(anchors.has_vector(bank))
    return Work(bank, at_C, None if is_alone else int((at_C >= bank.count).sum()))
