"""Captions and the embeddings of their photographs in, a text encoder of the same space out.

OpenAI's text encoder is not in the data, so a linear map stands in for it: from which words a
caption has to where its photograph lies, by ridge regression. Vectors are centred: cosines tell
what is particular to a photograph. It is a stand-in, and scores by it are not CLIPScore's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

OFTEN = 3
PENALTY = 30.0


class TextTower:
    """A linear map from words to embeddings."""

    def __init__(self, embedding_ND: Floats, captions: Sequence[Sequence[str]]) -> None:
        """Fit it to photographs and their captions (lower case, without punctuation)."""
        pairs = [(n, text) for n, texts in enumerate(captions) for text in texts]
        count = Counter(word for _, text in pairs for word in set(text.split()))
        often = [word for word, times in count.items() if times >= OFTEN]
        self._place = {word: place for place, word in enumerate(often)}
        has_SW = self._words([text for _, text in pairs])
        target_SD = embedding_ND[[n for n, _ in pairs]]
        self.mean_W, self.mean_D = has_SW.mean(0), target_SD.mean(0)
        centred_SW = has_SW - self.mean_W
        square_WW = centred_SW.T @ centred_SW + PENALTY * np.eye(len(often))
        self._map_WD = np.linalg.solve(square_WW, centred_SW.T @ (target_SD - self.mean_D))
        self.residual_SD = target_SD - self.mean_D - self.centred([text for _, text in pairs])

    def centred(self, texts: Sequence[str]) -> Floats:
        """Return where photographs with such captions lie, from the mean of all photographs."""
        found: Floats = (self._words(texts) - self.mean_W) @ self._map_WD
        return found

    def cosine(self, embedding_ND: Floats, texts: Sequence[str]) -> Floats:
        """Return the cosine of each photograph and its text, both from the mean."""
        image_ND, text_ND = embedding_ND - self.mean_D, self.centred(texts)
        length_N = np.linalg.norm(image_ND, axis=1) * np.linalg.norm(text_ND, axis=1)
        found: Floats = (image_ND * text_ND).sum(1) / np.maximum(length_N, 1e-12)
        return found

    def stand_ins(self, texts: Sequence[str], *, seed: int) -> Floats:
        """Return embeddings of photographs that might have had such captions.

        What the words do not tell is what they did not tell of a photograph drawn at random.
        """
        drawn = np.random.default_rng(seed).integers(len(self.residual_SD), size=len(texts))
        found: Floats = self.mean_D + self.centred(texts) + self.residual_SD[drawn]
        return found

    def _words(self, texts: Sequence[str]) -> Floats:
        has_SW = np.zeros((len(texts), len(self._place)))
        for row, text in enumerate(texts):
            for word in text.split():
                if (place := self._place.get(word)) is not None:
                    has_SW[row, place] = 1.0
        return has_SW
