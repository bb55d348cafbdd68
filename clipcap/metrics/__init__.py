"""Captions and what people wrote for the same images in, the COCO metrics out, without Java.

Equal to pycocoevalcap's numbers, its tokenizer included; each figure has a signature that says
with which tokenizer, which version and which references it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import clipcap
from clipcap.metrics import corpus, ngram_scores, rouge, tokenizer
from clipcap.metrics.ngram_scores import DISTINCT_ORDERS, ORDERS, BleuCounts
from clipcap.settings import digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BLEU: Final = tuple(f"bleu_{order}" for order in range(1, ORDERS + 1))
DISTINCT: Final = tuple(f"distinct_{order}" for order in range(1, DISTINCT_ORDERS + 1))
TEXT_METRICS: Final = (*BLEU, "rouge_l", "cider_d", *DISTINCT)
ONE_IMAGE: Final = (
    "CIDEr-D weighs words by how few images they are said of, so it needs at least two images"
)
_SHOWN: Final = 12  # characters of a digest


@dataclass(frozen=True, slots=True)
class TextScores:
    """What the words of N captions are worth, over all of them and one by one."""

    figures: dict[str, float | None]
    """Each of `TEXT_METRICS` over all captions; None where it cannot be computed."""
    bleu: BleuCounts
    bleu_NK: Floats
    """BLEU-1 to BLEU-4 of each caption; their mean is not the figure, which is of one long text."""
    rouge_N: Floats
    cider_N: Floats
    references: str
    """Digest of the references, in the order of the captions."""

    @property
    def images(self) -> int:
        """N."""
        return len(self.rouge_N)

    def signature(self, metric: str) -> str:
        """Return what a figure must be told with, to be compared with another one."""
        return f"{metric}|{self.common_signature}"

    @property
    def common_signature(self) -> str:
        """Return what the signatures of all figures have in common."""
        return (
            f"images:{self.images}|references:{self.references[:_SHOWN]}|"
            f"tokenizer:{tokenizer.NAME}/{tokenizer.VERSION}|clipcap:{clipcap.__version__}"
        )


def score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """Return BLEU-1 to 4, ROUGE-L, CIDEr-D and distinct-1 and 2 of N captions.

    An empty caption counts, and has 0. With one image CIDEr-D is None: every word would weigh 0.

    Args:
        captions: one of each image.
        references: of each image at least one.

    Raises:
        SettingsError: there is no caption, or one without a reference.
    """
    encoded = corpus.encode(captions, references)
    found = ngram_scores.score(encoded)
    rouge_N = rouge.rouge_l(encoded)
    cider = float(found.cider_N.mean()) if len(captions) > 1 else None
    figures: dict[str, float | None] = {
        **dict(zip(BLEU, found.bleu.whole()[0].tolist(), strict=True)),
        "rouge_l": float(rouge_N.mean()),
        "cider_d": cider,
        **dict(zip(DISTINCT, found.distinct_K.tolist(), strict=True)),
    }
    return TextScores(
        figures=figures,
        bleu=found.bleu,
        bleu_NK=found.bleu.per_image(),
        rouge_N=rouge_N,
        cider_N=found.cider_N,
        references=digest([list(texts) for texts in references]),
    )
