"""A captioner that learns and images held out from it in, the CIDEr-D of its captions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from clipcap import metrics
from clipcap.captioner import Captioner
from clipcap.cards import Choice
from clipcap.errors import SettingsError

MOST_IMAGES: Final = 1_000  # are captioned at each measurement: minutes on a CPU, a figure to 0.03
_KEPT: Final = ("stop", "max_tokens")  # of the card's decoder


def cider(
    embedding_ND: Tensor, norm_N: Tensor, captions: Sequence[Sequence[str]]
) -> Callable[[Captioner, Sequence[int]], float]:
    """Return what captions the rows held out greedily and scores that, for `Hooks.score`.

    Args:
        embedding_ND: as the table stores them, L2-normalised.
        norm_N: their `embedding_norm`.
        captions: what people wrote of each row.
    """
    references = [[text for text in texts if text.strip()] for texts in captions]

    def score(captioner: Captioner, rows: Sequence[int]) -> float:
        told = [n for n in rows if references[n]][:MOST_IMAGES]
        held = captioner.card.decode.settings
        greedy = Choice(
            name="greedy", settings={name: held[name] for name in _KEPT if name in held}
        )
        found = captioner.caption(embedding_ND[told], norm_N[told], decode=greedy)
        texts = [candidates[0].text for candidates in found]
        figure = metrics.score(texts, [references[n] for n in told]).figures["cider_d"]
        if figure is None:
            raise SettingsError(
                f"`measure` can be cider with at least two images held out, but there is "
                f"{len(told)}: raise `validation_share`, or measure the loss."
            )
        return figure

    return score
