"""Prefixes in, what a search finds for each out: images take turns in the slots of a tree.

An image that is done leaves its slot to the next one, so a batch never waits for its slowest
caption. Images do not influence each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from clipcap import alive
from clipcap.trees import Tree

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Search(Protocol[R_co]):
    """A way to go on from logits; it has the same images in the same order as its tree.

    Attributes:
        token_NK: What each beam goes on with.
        source_NK: Which beam of the step before it goes on from.
    """

    token_NK: Tensor
    source_NK: Tensor

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Begin with some more images: choose the first tokens of their beams."""

    def extend(self, logits_NKV: Tensor) -> None:
        """Choose the next tokens."""

    def done(self) -> list[bool]:
        """Tell of each image whether nothing more is to be read for it."""

    def result(self, slot: int) -> R_co:
        """Return what was found for an image that is done."""

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these images, in this order."""


def run(tree: Tree, search: Search[R], prefix_NPE: Tensor, *, slots: int) -> list[R]:
    """Search for all images, at most `slots` of them at a time; return the results in order."""
    found: dict[int, R] = {}
    active: list[int] = []
    waiting = 0  # the first image that has not joined yet
    few = max(1, slots // 4)  # reading one prefix costs nearly as much as reading several
    while len(found) < len(prefix_NPE):
        room, rest = slots - len(active), len(prefix_NPE) - waiting
        if rest and (not active or (tree.can_join and room >= min(few, rest))):
            images = range(waiting, waiting + min(room, rest))
            search.join(images, tree.join(prefix_NPE[images.start : images.stop]))
            active += images
            waiting = images.stop
        else:
            search.extend(tree.advance(search.token_NK, search.source_NK))
        alive.beat()
        done = search.done()
        if any(done):
            found |= {active[n]: search.result(n) for n, is_done in enumerate(done) if is_done}
            kept = _kept(done)
            tree.keep(kept)
            search.keep(kept)
            active = [active[slot] for slot in kept]
    return [found[image] for image in range(len(prefix_NPE))]


def _kept(done: Sequence[bool]) -> list[int]:
    """Return the slots that are not done, the last of them in the holes: few have to move."""
    left = [slot for slot, is_done in enumerate(done) if not is_done]
    last = [slot for slot in left if slot >= len(left)]
    return [last.pop() if done[slot] else slot for slot in range(len(left))]
