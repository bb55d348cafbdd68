"""Words of captions and of their references in, ROUGE-L out: the longest common subsequence.

All references of an image lie behind each other in one long integer, a bit for a word and a spare
bit after each; one addition then takes a word of the caption through all of them (Hyyro, 2004).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.metrics.corpus import Corpus

_BETA: Final = 1.2  # pycocoevalcap's weight of recall


def rouge_l(corpus: Corpus) -> NDArray[np.float64]:
    """Return ROUGE-L of each caption against all references of its image, `rouge_N`, 0 to 1.

    An empty caption has 0, and an empty reference gives none.
    """
    score_N = np.zeros(corpus.count)
    ends = [*corpus.first_N[1:].tolist(), len(corpus.image_R)]
    starts = corpus.first_N.tolist()
    for image, (start, end) in enumerate(zip(starts, ends, strict=True)):
        references = corpus.words_S[corpus.count + start : corpus.count + end]
        score_N[image] = _score(corpus.words_S[image], references)
    return score_N


def _score(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = common_words(caption, references)
    precision = max(common) / max(len(caption), 1)
    recall = max(
        count / max(len(words), 1) for count, words in zip(common, references, strict=True)
    )
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def common_words(caption: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    """Return the length of the longest common subsequence with each reference."""
    places: dict[str, int] = {}
    bit, spare, ends = 1, 0, []
    for words in references:
        for word in words:
            places[word] = places.get(word, 0) | bit
            bit <<= 1
        spare |= bit
        ends.append(bit)
        bit <<= 1
    real = (bit - 1) & ~spare
    unmatched = real
    for word in caption:
        if met := unmatched & places.get(word, 0):
            unmatched = ((unmatched + met) | (unmatched - met)) & real
    counts, start = [], 1
    for end in ends:
        counts.append(((end - start) & ~unmatched).bit_count())
        start = end << 1
    return counts
