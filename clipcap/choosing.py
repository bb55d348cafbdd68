"""Embeddings and candidate texts in, how well each candidate fits its image out.

By CLIP: the softmax of cosines at the model's own temperature. By the language model: how much
likelier the image makes a text, log p(text | image) - log p(text), whose softmax is by Bayes' rule
the probability that the image belongs to the text. p(text) is the mean of p(text | image) over some
typical images; without it what is always likely wins, whatever the image shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from clipcap import likelihood
from clipcap.likelihood import Likelihood
from clipcap.metrics.clipscore import WEIGHT
from clipcap.tries import Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.captioner import Captioner
    from clipcap.encoders import Encoder

    Floats = NDArray[np.float64]

_TEXTS: Final = 4_096  # whose log p(text) is found at a time


@dataclass(frozen=True, slots=True)
class Images:
    """B stored embeddings."""

    embedding_BD: NDArray[np.float32]
    """L2-normalised."""
    norm_B: NDArray[np.float32]
    """Their lengths before that."""

    def __len__(self) -> int:
        return len(self.embedding_BD)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well the C candidates of one image fit it; None: it was not asked for."""

    score_C: Floats
    """Probabilities: they sum to 1."""
    clip_score_C: Floats | None = None
    """2.5 * max(cosine, 0)."""
    likelihood: Likelihood | None = None
    prior_C: Floats | None = None
    """log p of each candidate's tokens for a typical image, in nats."""


class ByClip:
    """Scores candidates by the encoder's text side; each text is encoded once."""

    def __init__(self, encoder: Encoder, scale: float) -> None:
        """Take an encoder and its logit scale."""
        self._encoder, self.scale = encoder, scale
        self._kept: tuple[Sequence[str], NDArray[np.float32]] | None = None

    def cosines(self, images: Images, texts: Sequence[Sequence[str]]) -> list[Floats]:
        """Return the cosine of each image and its candidates; the same list is encoded once."""
        image_BD = _unit(images.embedding_BD)
        if texts and all(texts_C is texts[0] for texts_C in texts):
            if self._kept is None or self._kept[0] is not texts[0]:
                self._kept = (texts[0], self._encoded(texts[0]))
            return list((image_BD @ self._kept[1].T).astype(np.float64))
        different = list(dict.fromkeys(text for texts_C in texts for text in texts_C))
        place = {text: n for n, text in enumerate(different)}
        text_ND = self._encoded(different)
        rows = zip(image_BD, texts, strict=True)
        return [
            (text_ND[[place[text] for text in texts_C]] @ one_D).astype(np.float64)
            for one_D, texts_C in rows
        ]

    def log_p(self, cosine_C: Floats) -> Floats:
        """Return the logarithm of each candidate's probability."""
        return _log_softmax(self.scale * cosine_C)

    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return _unit(self._encoder.encode_texts(list(texts)).numpy())


class ByLikelihood:
    """Scores candidates by a captioner's language model."""

    def __init__(
        self, captioner: Captioner, texts: Sequence[str], typical: Images | None, *, ends: bool
    ) -> None:
        """Look at every text that is to be scored, before any image is.

        Args:
            captioner: mapper and language model.
            texts: all candidates.
            typical: images to tell how likely a text is whatever the image; None: that is not
                taken into account.
            ends: whether the stop token counts.

        Raises:
            SettingsError: a text that the language model cannot read.
        """
        self._captioner, self._typical = captioner, typical
        tokens = likelihood.tokenised(captioner, texts, ends=ends)
        self._tokens = dict(zip(texts, tokens, strict=True))
        self._kept: tuple[Sequence[str], list[Tokens], Floats | None] | None = None

    def of(
        self, images: Images, texts: Sequence[Sequence[str]]
    ) -> list[tuple[Likelihood, Floats | None]]:
        """Return what the language model says of each image's candidates, and their log p(text)."""
        if texts and all(texts_C is texts[0] for texts_C in texts):
            if self._kept is None or self._kept[0] is not texts[0]:
                tokens_C = [self._tokens[text] for text in texts[0]]
                self._kept = (texts[0], tokens_C, self._prior(tokens_C))
            _, tokens_C, prior_C = self._kept
            return [(one, prior_C) for one in self._read(images, [tokens_C] * len(images))]
        different = list({self._tokens[text]: None for texts_C in texts for text in texts_C})
        prior_N = self._prior(different)
        place = {tokens: n for n, tokens in enumerate(different)}
        asked = [[self._tokens[text] for text in texts_C] for texts_C in texts]
        priors = [
            None if prior_N is None else prior_N[[place[tokens] for tokens in tokens_C]]
            for tokens_C in asked
        ]
        return list(zip(self._read(images, asked), priors, strict=True))

    def log_p(self, one: Likelihood, prior_C: Floats | None) -> Floats:
        """Return the logarithm of each candidate's probability."""
        return _log_softmax(one.sum_C - (0 if prior_C is None else prior_C))

    def _prior(self, tokens_C: list[Tokens]) -> Floats | None:
        if self._typical is None:
            return None
        parts = []
        for at in range(0, len(tokens_C), _TEXTS):
            part = tokens_C[at : at + _TEXTS]
            found = self._read(self._typical, [part] * len(self._typical))
            sum_NC = np.stack([one.sum_C for one in found])
            parts.append(np.logaddexp.reduce(sum_NC, axis=0) - np.log(len(found)))
        return np.concatenate(parts) if parts else np.zeros(0)

    def _read(self, images: Images, tokens: Sequence[Sequence[Tokens]]) -> list[Likelihood]:
        return likelihood.of_images(
            self._captioner,
            torch.tensor(images.embedding_BD),
            torch.tensor(images.norm_B),
            tokens,
        )


def fits(
    images: Images,
    texts: Sequence[Sequence[str]],
    clip: ByClip | None,
    language: ByLikelihood | None,
) -> list[Fit]:
    """Return how well each image's candidates fit it, by one judge or both.

    With both a candidate's probability is the product of theirs, made to sum to 1.

    Args:
        images: B stored embeddings.
        texts: the candidates of each, at least one; the very same list for all is the fastest.
        clip: the encoder's text side.
        language: the captioner's language model.
    """
    cosines = clip.cosines(images, texts) if clip else [None] * len(texts)
    said = language.of(images, texts) if language else [None] * len(texts)
    return [
        _fit(cosine_C, one, clip, language) for cosine_C, one in zip(cosines, said, strict=True)
    ]


def _fit(
    cosine_C: Floats | None,
    said: tuple[Likelihood, Floats | None] | None,
    clip: ByClip | None,
    language: ByLikelihood | None,
) -> Fit:
    log_p: list[Floats] = []
    clip_score_C, one, prior_C = None, None, None
    if clip is not None and cosine_C is not None:
        log_p.append(clip.log_p(cosine_C))
        clip_score_C = WEIGHT * np.maximum(cosine_C, 0)
    if language is not None and said is not None:
        one, prior_C = said
        log_p.append(language.log_p(one, prior_C))
    return Fit(np.exp(_log_softmax(np.sum(log_p, axis=0))), clip_score_C, one, prior_C)


def _log_softmax(evidence_C: Floats) -> Floats:
    normalised: Floats = evidence_C - np.logaddexp.reduce(evidence_C)
    return normalised


def _unit(vector_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of length 1; what is stored was rounded, so its length is only nearly that."""
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    unit_ND = vector_ND / np.maximum(length_N1, np.finfo(np.float32).tiny)
    return np.asarray(unit_ND, np.float32)
