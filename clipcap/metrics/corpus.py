"""Captions and their references in, words as numbers out, and the n-grams of each counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipcap.errors import SettingsError
from clipcap.metrics.tokenizer import tokenize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """N captions, then their R references in order, as S = N + R sentences of T words in all."""

    words_S: Sequence[Sequence[str]]
    word_T: Numbers
    """Each word as the number of its spelling."""
    sentence_T: Numbers
    length_S: Numbers
    image_S: Numbers
    """Which of the N images a sentence belongs to; sentence i < N is the caption of image i."""
    count: int
    """N."""
    first_N: Numbers
    """Where the references of an image begin, counted from the first reference."""

    @property
    def image_R(self) -> Numbers:
        """Which image a reference belongs to."""
        return self.image_S[self.count :]


@dataclass(frozen=True, slots=True)
class Counted:
    """N-grams of one order, and how often each is in each sentence: E entries, by sentence."""

    kinds: int
    """Different n-grams; `kind_E` is below it."""
    sentence_E: Numbers
    kind_E: Numbers
    count_E: Numbers


def encode(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """Return the words of N captions and of the references of each.

    Raises:
        SettingsError: there is no caption, or one without a reference.
    """
    _require_references(captions, references)
    words_S = [tokenize(text) for text in captions]
    words_S += [tokenize(text) for texts in references for text in texts]
    length_S = np.fromiter(map(len, words_S), np.int64, len(words_S))
    known: dict[str, int] = {}
    numbers = (known.setdefault(word, len(known)) for words in words_S for word in words)
    count = len(captions)
    many_N = np.fromiter(map(len, references), np.int64, count)
    return Corpus(
        words_S=words_S,
        word_T=np.fromiter(numbers, np.int64, int(length_S.sum())),
        sentence_T=np.repeat(np.arange(len(words_S)), length_S),
        length_S=length_S,
        image_S=np.concatenate([np.arange(count), np.repeat(np.arange(count), many_N)]),
        count=count,
        first_N=np.cumsum(many_N) - many_N,
    )


def _require_references(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not captions:
        raise SettingsError("There must be at least one caption to judge, but there is none.")
    if len(captions) != len(references):
        raise SettingsError(
            f"There must be references for each of the {len(captions)} captions, but there are "
            f"{len(references)} lists of them."
        )
    if (bare := next((at for at, texts in enumerate(references) if not texts), None)) is not None:
        raise SettingsError(
            f"Every caption must have at least one reference, but the one at {bare} has none."
        )


def ngrams(corpus: Corpus, most: int) -> Iterator[Counted]:
    """Yield the n-grams of 1, 2 ... `most` words."""
    vocabulary = int(corpus.word_T.max(initial=-1)) + 1
    end_T = np.cumsum(corpus.length_S)[corpus.sentence_T]
    at_T = np.arange(len(corpus.word_T))
    kind_T, kinds = corpus.word_T, vocabulary
    for order in range(1, most + 1):
        if order > 1:
            inside = at_T + order <= end_T[at_T]
            at_T = at_T[inside]
            longer_T = kind_T[inside] * vocabulary + corpus.word_T[at_T + order - 1]
            names, kind_T = np.unique(longer_T, return_inverse=True)
            kinds = len(names)
        pairs, count_E = np.unique(
            corpus.sentence_T[at_T] * max(kinds, 1) + kind_T, return_counts=True
        )
        sentence_E, kind_E = np.divmod(pairs, max(kinds, 1))
        yield Counted(kinds, sentence_E, kind_E, count_E)
