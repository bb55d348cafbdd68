"""Counted n-grams in, BLEU, CIDEr-D and distinct-n out: the numbers of pycocoevalcap.

One pass over the n-grams of 1 to 4 words gives all of them; nothing loops over images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from clipcap.metrics.corpus import Corpus, Counted, ngrams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Numbers = NDArray[np.int64]

ORDERS: Final = 4
DISTINCT_ORDERS: Final = 2
_SIGMA: Final = 6.0  # of CIDEr-D's penalty for another length than the reference's
_SCALE: Final = 10.0  # CIDEr counts to ten
_TINY: Final = 1e-15  # what bleu_scorer adds above and below the line, lest it divide by 0
_SMALL: Final = 1e-9


@dataclass(frozen=True, slots=True)
class BleuCounts:
    """What BLEU is made of, for N images; sums of rows give the BLEU of any set of images."""

    matched_NK: Numbers
    """N-grams of 1 to 4 words that a reference has too, each as often at most as it has them."""
    words_N: Numbers
    reference_words_N: Numbers
    """Length of the reference that is closest in length; the shorter one of two as close."""

    def per_image(self) -> Floats:
        """Return BLEU-1 to BLEU-4 of each image by itself, `bleu_NK`."""
        words_N1 = self.words_N[:, None]
        guessed_NK = np.maximum(words_N1 - np.arange(ORDERS), 0)
        return _bleu(self.matched_NK, guessed_NK, self.words_N, self.reference_words_N)

    def whole(self, weight_WN: Floats | None = None) -> Floats:
        """Return BLEU-1 to BLEU-4 of all images as one text, `bleu_WK`.

        Args:
            weight_WN: how often each image counts, in each of W sets; once in one set if left out.
        """
        if weight_WN is None:
            weight_WN = np.ones((1, len(self.words_N)))
        guessed_NK = np.maximum(self.words_N[:, None] - np.arange(ORDERS), 0)
        return _bleu(
            weight_WN @ self.matched_NK,
            weight_WN @ guessed_NK,
            weight_WN @ self.words_N,
            weight_WN @ self.reference_words_N,
        )


def _bleu(
    matched_NK: Numbers | Floats,
    guessed_NK: Numbers | Floats,
    words_N: Numbers | Floats,
    reference_words_N: Numbers | Floats,
) -> Floats:
    precision_NK = (matched_NK + _TINY) / (guessed_NK + _SMALL)
    mean_NK = np.cumprod(precision_NK, axis=1) ** (1 / np.arange(1, ORDERS + 1))
    ratio_N = (words_N + _TINY) / (reference_words_N + _SMALL)
    return np.asarray(mean_NK * np.exp(np.minimum(1 - 1 / ratio_N, 0))[:, None])


@dataclass(frozen=True, slots=True)
class NgramScores:
    """What n-grams say of N captions."""

    bleu: BleuCounts
    cider_N: Floats
    """CIDEr-D, 0 to 10; the words' weights come from the references of these very images."""
    distinct_K: Floats
    """Different n-grams of all captions, as a share of all of them, for 1 and 2 words."""


def score(corpus: Corpus) -> NgramScores:
    """Return BLEU, CIDEr-D and distinct-n of the captions of a corpus."""
    count, image_R = corpus.count, corpus.image_R
    similar_R = np.zeros(len(image_R))
    matched_NK = np.zeros((count, ORDERS), np.int64)
    distinct_K = np.zeros(DISTINCT_ORDERS)
    for k, counted in enumerate(ngrams(corpus, ORDERS)):
        met = _meet(corpus, counted)
        np.maximum.at(met.most_C, met.hit_M, met.count_M)
        clipped_C = np.minimum(met.most_C, counted.count_E[: met.split])
        sentence_C = counted.sentence_E[: met.split]
        matched_NK[:, k] = np.bincount(sentence_C, clipped_C, count)[:count]
        similar_R += _similar(corpus, counted, met)
        if k < DISTINCT_ORDERS:
            distinct_K[k] = _distinct(counted, met.split)
    delta_R = (_bigrams(corpus.length_S[:count])[image_R] - _bigrams(corpus.length_S[count:])) ** 2
    similar_R *= np.exp(-delta_R / (2 * _SIGMA**2)) / ORDERS
    many_N = np.bincount(image_R, minlength=count)
    cider_N = _SCALE * np.bincount(image_R, similar_R, count) / many_N
    bleu = BleuCounts(matched_NK, corpus.length_S[:count], _closest(corpus))
    return NgramScores(bleu, cider_N, distinct_K)


def _distinct(counted: Counted, split: int) -> float:
    """Return different n-grams of the captions, the entries before `split`, as a share of all."""
    said = int(counted.count_E[:split].sum())
    return np.count_nonzero(np.bincount(counted.kind_E[:split])) / max(said, 1)


@dataclass(frozen=True, slots=True)
class _Met:
    """Which of the M entries of references meet which of the C entries of captions."""

    split: int
    """C: the entries of captions come first, those of references after them."""
    hit_M: Numbers
    """The caption's entry."""
    entry_M: Numbers
    """The reference's entry."""
    count_M: Numbers
    most_C: Numbers
    """Room for how often the reference that has it most has it."""
    image_count_U: Numbers
    """Images of which a reference has the n-gram."""


def _meet(corpus: Corpus, counted: Counted) -> _Met:
    split = int(np.searchsorted(counted.sentence_E, corpus.count))
    place_E = corpus.image_S[counted.sentence_E] * max(counted.kinds, 1) + counted.kind_E
    place_C, place_P = place_E[:split], place_E[split:]
    sorted_P = np.sort(place_P)  # np.unique without counts hashes, which is five times slower
    of_image = sorted_P[np.diff(sorted_P, prepend=-1) != 0] % max(counted.kinds, 1)
    at_P = np.searchsorted(place_C, place_P)
    is_hit_P = np.zeros(len(place_P), np.bool_)
    inside_P = at_P < split
    is_hit_P[inside_P] = place_C[at_P[inside_P]] == place_P[inside_P]
    entry_M = np.flatnonzero(is_hit_P) + split
    return _Met(
        split=split,
        hit_M=at_P[is_hit_P],
        entry_M=entry_M,
        count_M=counted.count_E[entry_M],
        most_C=np.zeros(split, np.int64),
        image_count_U=np.bincount(of_image, minlength=counted.kinds),
    )


def _similar(corpus: Corpus, counted: Counted, met: _Met) -> Floats:
    """Return the clipped cosine of each reference with its caption, by one order of n-grams."""
    idf_U = np.log(corpus.count) - np.log(np.maximum(met.image_count_U, 1))
    weight_E = counted.count_E * idf_U[counted.kind_E]
    norm_S = np.sqrt(np.bincount(counted.sentence_E, weight_E**2, len(corpus.length_S)))
    theirs_M = weight_E[met.entry_M]
    product_M = np.minimum(weight_E[met.hit_M], theirs_M) * theirs_M
    sentence_M = counted.sentence_E[met.entry_M] - corpus.count
    dot_R = np.bincount(sentence_M, product_M, len(corpus.image_R))
    norm_R = norm_S[: corpus.count][corpus.image_R] * norm_S[corpus.count :]
    cosine_R = np.zeros(len(norm_R))
    return np.asarray(np.divide(dot_R, norm_R, out=cosine_R, where=norm_R != 0))


def _bigrams(length_S: Numbers) -> Numbers:
    """Return what CIDEr-D takes for a length: the pairs of neighbouring words."""
    return np.maximum(length_S - 1, 0)


def _closest(corpus: Corpus) -> Numbers:
    length_R = corpus.length_S[corpus.count :]
    away_R = np.abs(length_R - corpus.length_S[: corpus.count][corpus.image_R])
    longest = int(length_R.max(initial=0)) + 1
    return np.asarray(np.minimum.reduceat(away_R * longest + length_R, corpus.first_N) % longest)
