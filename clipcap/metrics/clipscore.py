"""Embeddings of images, captions and references in, CLIPScore and RefCLIPScore out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from clipcap.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Vectors = NDArray[np.floating]

WEIGHT: Final = 2.5  # arXiv:2104.08718, equation 1


def clip_score(image_ND: Vectors, caption_ND: Vectors) -> Floats:
    """Return CLIPScore, 2.5 * max(cosine, 0), of each image and its caption, `score_N`.

    Vectors may have any length; one of length 0 gives 0.

    Raises:
        SettingsError: shapes that do not fit, or a number that is none.
    """
    return WEIGHT * _cosine(image_ND, caption_ND)


def ref_clip_score(score_N: Floats, caption_ND: Vectors, references: list[Vectors]) -> Floats:
    """Return RefCLIPScore: the harmonic mean of CLIPScore and the closest reference's cosine.

    Args:
        score_N: CLIPScore of each caption.
        caption_ND: text embeddings of the captions.
        references: for each caption the text embeddings of its references, `reference_RD`.

    Raises:
        SettingsError: shapes that do not fit, no reference, or a number that is none.
    """
    if not len(score_N) == len(caption_ND) == len(references) or not all(map(len, references)):
        raise SettingsError(
            f"Every caption must have a CLIPScore and references, but there are {len(caption_ND)} "
            f"captions, {len(score_N)} scores and {sum(map(bool, map(len, references)))} with "
            "references."
        )
    many_N = np.array([len(reference_RD) for reference_RD in references], np.int64)
    cosine_R = _cosine(np.repeat(caption_ND, many_N, axis=0), np.concatenate(references))
    first_N = np.cumsum(many_N) - many_N
    closest_N = np.maximum.reduceat(cosine_R, first_N)
    sum_N = score_N + closest_N
    out_N = np.zeros(len(score_N))
    return np.asarray(np.divide(2 * score_N * closest_N, sum_N, out=out_N, where=sum_N > 0))


def of_other_images(
    image_ND: Vectors, text_ND: Vectors, same: Sequence[Sequence[str]], *, count: int, seed: int
) -> Floats:
    """Return CLIPScore of each image and the captions of some others, `score_NS`.

    Args:
        image_ND: embeddings of images.
        text_ND: embeddings of their captions.
        same: words for each image; one that shares them may share the caption, and scores NaN.
        count: S, other images for each; at most all others.
        seed: another seed takes other ones.

    Raises:
        SettingsError: shapes that do not fit, or a number that is none.
    """
    rng = np.random.default_rng(seed)
    score_NS = np.full((len(image_ND), min(count, len(image_ND) - 1)), np.nan)
    for at, shift in enumerate(rng.permutation(len(image_ND) - 1)[:count] + 1):
        alike_N = np.zeros(len(image_ND), bool)
        for words in same:
            alike_N |= np.array(words) == np.roll(np.array(words), shift)
        score_N = clip_score(image_ND, np.roll(text_ND, shift, 0))
        score_NS[:, at] = np.where(alike_N, np.nan, score_N)
    return score_NS


def _cosine(left_ND: Vectors, right_ND: Vectors) -> Floats:
    """Return max(cosine, 0), row by row."""
    left_ND, right_ND = np.asarray(left_ND, np.float64), np.asarray(right_ND, np.float64)
    if left_ND.shape != right_ND.shape or left_ND.ndim != 2:
        raise SettingsError(
            f"The embeddings must be two tables of one shape, but are {left_ND.shape} and "
            f"{right_ND.shape}: of one encoder, one row for each caption."
        )
    lengths_N = np.linalg.norm(left_ND, axis=1) * np.linalg.norm(right_ND, axis=1)
    if not np.isfinite(lengths_N).all():
        raise SettingsError("The embeddings must be finite numbers, but some are not: embed again.")
    dot_N = np.einsum("nd,nd->n", left_ND, right_ND)
    out_N = np.zeros(len(dot_N))
    cosine_N = np.divide(dot_N, lengths_N, out=out_N, where=lengths_N > 0)
    return np.asarray(np.maximum(cosine_N, 0))
