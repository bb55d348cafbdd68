"""A truth and a taxonomy in, whether a label holds of an image out, for many at a time.

A label holds of an image that has it or a kind of it: a group is true where one of its labels is.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clipcap.labels.tree import ROOT, Tree
from clipcap.labels.truth import Truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]
    Places = NDArray[np.int64]


class Pairs:
    """Image and label, as numbers, each pair once; sorted by image, then by label."""

    def __init__(self, image_T: Places, label_T: Places, count: int) -> None:
        """Take pairs in any order; `count` is how many labels there are."""
        self._count = count
        self._code_T = np.unique(image_T * count + label_T)
        self.image_T, self.label_T = self._code_T // count, self._code_T % count

    def hold(self, image_X: Places, label_X: Places) -> Flags:
        """Tell of some pairs whether they are among these; a label of -1 never is."""
        code_X = image_X * self._count + label_X
        place_X = np.searchsorted(self._code_T, code_X)
        found_X = np.append(self._code_T, -1)[place_X] == code_X
        held: Flags = found_X & (label_X >= 0)
        return held

    def of(self, keep_I: Flags) -> Pairs:
        """Return those of some images, by a flag of every image."""
        keep_T = keep_I[self.image_T]
        return Pairs(self.image_T[keep_T], self.label_T[keep_T], self._count)

    @cached_property
    def by_label(self) -> dict[int, Places]:
        """The images of each label that has any."""
        order_T = np.argsort(self.label_T, kind="stable")
        label_L, start_L = np.unique(self.label_T[order_T], return_index=True)
        parts = np.split(self.image_T[order_T], start_L[1:]) if len(label_L) else []
        return dict(zip(label_L.tolist(), parts, strict=True))


class Facts:
    """What is true of I images, by their places in a truth."""

    def __init__(self, truth: Truth, tree: Tree) -> None:
        """Take the labels that people gave, and what these are kinds of."""
        self.tree, self.count = tree, len(tree.parent_N)
        self.images = len(truth.image_ids)
        self._parent_N = np.array(tree.parent_N, np.int64)
        many_I = np.fromiter((len(one) for one in truth.labels_N), np.int64, self.images)
        label_T = np.fromiter((n for one in truth.labels_N for n in one), np.int64, many_I.sum())
        self.none_I: Flags = many_I == 0
        """Images that have none of the labels."""
        self.told = self._pairs(np.repeat(np.arange(self.images), many_I), label_T)
        """As people said it."""
        images, labels = [self.told.image_T], [self.told.label_T]
        while len(labels[-1]):
            above_T = self._parent_N[labels[-1]]
            images.append(images[-1][above_T != ROOT])
            labels.append(above_T[above_T != ROOT])
        self.true = self._pairs(np.concatenate(images), np.concatenate(labels))
        """With all that it is a kind of."""

    def _pairs(self, image_T: Places, label_T: Places) -> Pairs:
        return Pairs(image_T, label_T, self.count)

    def agree(self, image_X: Places, label_X: Places) -> Flags:
        """Tell of pairs whether nothing speaks against them: a kind of what was said agrees too."""
        found_X = self.true.hold(image_X, label_X)
        above_X = label_X
        while (above_X != ROOT).any():
            found_X |= self.told.hold(image_X, above_X)
            above_X = np.where(above_X == ROOT, ROOT, self._parent_N[above_X])
        return found_X

    def unsure(self, label: int) -> Places:
        """Return images of which only something more general is known than this label."""
        by_label = self.told.by_label
        above = [by_label[n] for n in self.tree.path(label)[1:] if n in by_label]
        if not above:
            return np.array([], np.int64)
        known = self.true.by_label.get(label, np.array([], np.int64))
        return np.setdiff1d(np.concatenate(above), known)

    @cached_property
    def cuts(self) -> list[Places]:
        """Labels that exclude each other and cover all, from the most general to the leaves."""
        depth_N = np.array([len(self.tree.path(n)) for n in range(self.count)])
        is_leaf_N = np.isin(np.arange(self.count), self.tree.leaves)
        return [
            np.flatnonzero((depth_N == depth) | (is_leaf_N & (depth_N < depth)))
            for depth in range(1, int(depth_N.max()) + 1)
        ]

    def at(self, cut_K: Places) -> Pairs:
        """Return what is true in the words of a cut; nothing of what is told more generally."""
        keep_T = np.isin(self.true.label_T, cut_K)
        return self._pairs(self.true.image_T[keep_T], self.true.label_T[keep_T])
