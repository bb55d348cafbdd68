"""Words and their spellings in, how far some tokens have come in them out: `only` and `must`.

Both go through the tokens of a caption once, from its start, and know afterwards where it stands: a
`Place` in a tree of spellings. So what may come next depends on what was said and on nothing else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

BEHIND, OPEN = 0, 1
"""The two beginnings of a word: right behind another one, or where it needs no space before it."""
Spellings = Sequence[Sequence[tuple[int, ...]]]
"""Of each word its spellings, each of them tokens."""
_BROKEN: Final = "\ufffd"  # a part of a letter


@dataclass(frozen=True, slots=True)
class Joints:
    """How the tokens of a vocabulary join to a text, each known by its number."""

    goes_on: tuple[bool, ...]
    """Begins with a letter or a digit right behind those of the token before it."""
    opens: tuple[bool, ...]
    """Ends with anything else than a letter or a digit."""
    marks: tuple[int, ...]
    """Those that are punctuation and space alone."""


def joints(behind: Sequence[str]) -> Joints:
    """Return how tokens join, from the text that each of them adds behind a letter."""
    return Joints(
        goes_on=tuple(text[:1] == _BROKEN or _is_letter(text[:1]) for text in behind),
        opens=tuple(bool(text) and not _is_letter(text[-1]) for text in behind),
        marks=tuple(n for n, text in enumerate(behind) if text and all(map(_is_mark, text))),
    )


def _is_letter(sign: str) -> bool:
    return sign.isalnum() or sign in ("_", _BROKEN)


def _is_mark(sign: str) -> bool:
    kind = unicodedata.category(sign)
    return kind == "Zs" or (kind.startswith("P") and not _is_letter(sign))


class Tree:
    """Spellings of words, token by token; the nodes `BEHIND` and `OPEN` are where words begin.

    Attributes:
        next: Of each node the nodes that its tokens lead to.
        ended: Of each node the words that it ends, as bits.
        left: Of each node the words that may still come of it, with the tokens they need.
    """

    def __init__(self, words: Spellings, joints: Joints) -> None:
        """Grow it."""
        self.next: list[dict[int, int]] = [{}, {}]
        self.ended = [0, 0]
        self.left: list[dict[int, int]] = [{}, {}]
        for word, spellings in enumerate(words):
            for tokens in spellings:
                roots = (OPEN,) if joints.goes_on[tokens[0]] else (BEHIND, OPEN)
                for root in roots:
                    self._add(root, word, tokens)

    def _add(self, root: int, word: int, tokens: tuple[int, ...]) -> None:
        node = root
        for at, token in enumerate(tokens):
            self._require(node, word, len(tokens) - at)
            if token not in self.next[node]:
                self.next[node][token] = len(self.next)
                self.next.append({})
                self.ended.append(0)
                self.left.append({})
            node = self.next[node][token]
        self.ended[node] |= 1 << word

    def _require(self, node: int, word: int, tokens: int) -> None:
        self.left[node][word] = min(tokens, self.left[node].get(word, tokens))

    def least(self, node: int) -> int:
        """Return how many tokens a word that is begun needs at least to end; 0: it may end here."""
        return 0 if self.ended[node] else min(self.left[node].values())

    def step(self, nodes: Iterable[int], token: int) -> frozenset[int]:
        """Return the nodes that a token leads to."""
        return frozenset(self.next[node][token] for node in nodes if token in self.next[node])


class Place(NamedTuple):
    """Where a caption stands.

    Attributes:
        nodes: In the middle of, or at the end of, these spellings.
        start: Where in the tree a word may begin; None: not here.
        said: Words that have come and have ended, as bits.
    """

    nodes: frozenset[int]
    start: int | None
    said: int


_BEGUN: Final = Place(frozenset(), OPEN, 0)


class Only:
    """The words that a caption is made of, and of nothing else but punctuation."""

    def __init__(self, words: Spellings, joints: Joints, stops: Sequence[int]) -> None:
        """Take the spellings of the words."""
        self._joints, self._stops, self._marks = joints, tuple(stops), frozenset(joints.marks)
        every = [one for spellings in words for one in spellings]
        self.tree = Tree([every], joints)  # as one word: which of them it is does not matter
        self.longest = max(map(len, every))
        self.tokens = frozenset((*joints.marks, *stops)).union(*self.tree.next)
        """Whatever may come."""

    def place(self, tokens: Sequence[int]) -> Place | None:
        """Return where some tokens lead; None: to what may not be said, or over the stop."""
        place: Place | None = _BEGUN
        for token in tokens:
            if place is None:
                return None
            place = self.step(place, token)
        return place

    def step(self, place: Place, token: int) -> Place | None:
        """Return where one more token leads; None as above."""
        roots = () if place.start is None else (place.start,)
        nodes = self.tree.step((*place.nodes, *roots), token)
        is_mark = place.start is not None and token in self._marks
        if not nodes and not is_mark:
            return None
        may_end = is_mark or any(self.tree.ended[node] for node in nodes)
        start = (OPEN if self._joints.opens[token] else BEHIND) if may_end else None
        return Place(nodes, start, 0)

    def may_come(self, tokens: Sequence[int]) -> bool:
        """Tell whether a caption may be these tokens behind other words."""
        place: Place | None = Place(frozenset(), BEHIND, 0)
        if self._joints.goes_on[tokens[0]]:
            place = _BEGUN
        for token in tokens:
            place = place and self.step(place, token)
        return place is not None and place.start is not None

    def need(self, place: Place) -> int:
        """Return how many tokens the word that is begun needs at least."""
        if place.start is not None:
            return 0
        return min(self.tree.least(node) for node in place.nodes)

    def may_begin(self, start: int, room: int) -> set[int]:
        """Return what may come where a word may begin, with room for so many tokens after it."""
        ends = {token for token in self._stops if start == OPEN or not self._joints.goes_on[token]}
        return ends.union(self._marks, self.may_go_on((start,), room))

    def may_go_on(self, nodes: Iterable[int], room: int) -> set[int]:
        """Return what may come in the middle of words, with room for so many tokens after it."""
        return {
            token
            for node in nodes
            for token, to in self.tree.next[node].items()
            if self.tree.least(to) <= room
        }


class Must:
    """The words that a caption has to have."""

    def __init__(self, words: Spellings, joints: Joints) -> None:
        """Take the spellings of the words."""
        self._joints = joints
        self.count = len(words)
        self.tree = Tree(words, joints)
        self._all = (1 << len(words)) - 1
        self._shortest = [
            self.tree.left[BEHIND].get(word, self.tree.left[OPEN][word])
            for word in range(self.count)
        ]

    def place(self, tokens: Iterable[int]) -> Place:
        """Return where some tokens lead."""
        place = _BEGUN
        for token in tokens:
            place = self.step(place, token)
        return place

    def step(self, place: Place, token: int) -> Place:
        """Return where one more token leads.

        A word that has just come counts, unless letters follow: `cat`, but not `catalogue`.
        """
        said = place.said if self._joints.goes_on[token] else self.said(place)
        nodes = self.tree.step((*place.nodes, place.start or BEHIND), token)
        return Place(nodes, OPEN if self._joints.opens[token] else BEHIND, said)

    def said(self, place: Place) -> int:
        """Return the words that have come, as bits."""
        said = place.said
        for node in place.nodes:
            said |= self.tree.ended[node]
        return said

    def is_met(self, place: Place) -> bool:
        """Tell whether all words have come."""
        return self.said(place) == self._all

    def rank(self, place: Place) -> int:
        """Return how many words have come; one that is begun counts."""
        said = self.said(place)
        is_begun = any(~said >> word & 1 for node in place.nodes for word in self.tree.left[node])
        return said.bit_count() + is_begun

    def may_begin(self, place: Place) -> set[int]:
        """Return the tokens that begin a word that is lacking, or go on with one."""
        said = self.said(place)
        return {
            token
            for node in (*place.nodes, place.start or BEHIND)
            for token, to in self.tree.next[node].items()
            if any(~said >> word & 1 for word in self._of(to))
        }

    def _of(self, node: int) -> list[int]:
        ended = self.tree.ended[node]
        return [*self.tree.left[node], *(n for n in range(self.count) if ended >> n & 1)]

    def most(self, place: Place) -> int:
        """Return how many tokens the lacking words may need, whatever comes next."""
        return sum(self._shortest[word] for word in range(self.count) if ~place.said >> word & 1)

    def need(self, place: Place) -> int:
        """Return how many tokens the words that are lacking need."""
        said = self.said(place)
        lacking = [word for word in range(self.count) if ~said >> word & 1]
        whole = sum(self._shortest[word] for word in lacking)
        return whole - self.begun(place)

    def begun(self, place: Place) -> int:
        """Return how many tokens of a lacking word have come; of none if another one just ended.

        For going on might take that one back again.
        """
        said = self.said(place)
        if said != place.said:
            return 0
        found = [
            self._shortest[word] - tokens
            for node in place.nodes
            for word, tokens in self.tree.left[node].items()
            if ~said >> word & 1
        ]
        return max(0, 0, *found)
