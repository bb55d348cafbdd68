"""Labels with parents in; probabilities that add up, and an answer that backs off, out.

A label that is the parent of others is a group: it has no text of its own, and its score is what
its children have together. Where labels exclude each other that is the sum, so that the scores add
up at every level; else it is the best of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from clipcap.labels.sets import Label

ROOT: Final = -1


class Tree:
    """The parents of N labels."""

    def __init__(self, labels: Sequence[Label]) -> None:
        """Take labels whose parents are among them and make no circle."""
        self.is_flat = not any(label.parent for label in labels)
        self.parent_N = [ROOT] * len(labels)
        if not self.is_flat:
            place = {label.name: n for n, label in enumerate(labels)}
            self.parent_N = [place.get(label.parent, ROOT) for label in labels]
        self.children: dict[int, list[int]] = {ROOT: []}
        for n, parent in enumerate(self.parent_N):
            self.children.setdefault(parent, []).append(n)
        self.leaves = [n for n in range(len(labels)) if n not in self.children]
        groups = [group for group in self.children if group != ROOT]
        self._upwards = sorted(groups, key=lambda group: len(self.path(group)), reverse=True)

    def path(self, n: int) -> list[int]:
        """Return a label and what it is a kind of, the most general last."""
        found = []
        while n != ROOT:
            found.append(n)
            n = self.parent_N[n]
        return found

    def add_up(self, score_BN: Tensor, *, exclusive: bool) -> None:
        """Write the scores of groups in place: the sum of their children's, or the best."""
        for group in self._upwards:
            below_BG = score_BN[:, self.children[group]]
            score_BN[:, group] = below_BG.sum(dim=1) if exclusive else below_BG.amax(dim=1)

    def leads(self, score_BN: Tensor, background_B: Tensor) -> Tensor:
        """Return how far each label is before the best other child of its parent, as margin_BN.

        The most general labels compete with the background, too.
        """
        margin_BN = torch.empty_like(score_BN)
        for parent, children in self.children.items():
            below_BG = score_BN[:, children]
            outside_B = background_B if parent == ROOT else torch.zeros_like(background_B)
            two_B2 = torch.cat([below_BG, outside_B[:, None]], dim=1).topk(2, dim=1).values
            is_first_BG = below_BG == two_B2[:, :1]
            margin_BN[:, children] = below_BG - torch.where(
                is_first_BG, two_B2[:, 1:], two_B2[:, :1]
            )
        return margin_BN

    def answers(self, score_BN: Tensor, threshold_N: Tensor, background_B: Tensor) -> Tensor:
        """Return the most special label that is sure for each image, ROOT where none is.

        From the top the best child is followed for as long as it reaches its threshold.
        """
        answer_B = torch.full_like(background_B, ROOT, dtype=torch.long)
        goes_on_B = torch.ones_like(background_B, dtype=torch.bool)
        while goes_on_B.any():
            next_B = answer_B.clone()
            for parent, children in self.children.items():
                here_B = goes_on_B & (answer_B == parent)
                best_H = score_BN[here_B][:, children].argmax(dim=1)
                next_B[here_B] = torch.tensor(children, device=next_B.device)[best_H]
            score_B = score_BN.gather(1, next_B.clamp(min=0)[:, None])[:, 0]
            goes_on_B = next_B != answer_B
            goes_on_B &= (score_B >= threshold_N[next_B]) & (score_B > background_B)
            answer_B = torch.where(goes_on_B, next_B, answer_B)
        return answer_B
