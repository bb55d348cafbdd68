"""`prefix_NPE` in, the K best captions of each image out: the original ClipCap's beam search.

Token for token `generate_beam` of rmokady/CLIP_prefix_caption `predict.py` (score = sum of log p
over length, divided anew at each step; a stopped beam repeats token 0 at log p 0), but many images
at a time, and each token is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from pydantic import Field
from torch import Tensor

from clipcap.candidates import SLOTS, Candidate, Decodable
from clipcap.errors import SettingsError
from clipcap.sequences import Sequences
from clipcap.wording import Rules, Wording

REPEATED_TOKEN: Final = 0
"""What a stopped beam goes on with; cut off again by its length."""


class Settings(Wording):
    """How the beam search looks for captions; the defaults are the original's."""

    beam_size: int = Field(default=5, ge=1)
    """Captions kept at each step, and candidates returned for each image."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits; below 1 the likeliest words win more clearly."""


@torch.inference_mode()
def decode(
    captioner: Decodable,
    prefix_NPE: Tensor,
    settings: Settings,
    *,
    slots: int = SLOTS,
    seeds: Sequence[int] = (),
) -> list[list[Candidate]]:
    """Search captions for N prefixes; K candidates each, best first.

    Raises:
        SettingsError: more beams than words, no stop token, or no room for so many tokens.
    """
    return Beams(captioner, settings).found(prefix_NPE, slots)


class Beams(Sequences):
    """Of each image the K beams with the best mean log-probability."""

    def __init__(self, captioner: Decodable, settings: Settings) -> None:
        super().__init__(captioner, Rules(settings, captioner), settings.beam_size)
        self._beam_size, self._temperature = settings.beam_size, settings.temperature

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Open the beams with the K likeliest first tokens."""
        if self._beam_size > logits_BV.shape[1]:
            raise SettingsError(
                f"`beam_size` must be at most the vocabulary's {logits_BV.shape[1]} words, "
                f"but is {self._beam_size} instead."
            )
        score_BK, token_BK = self.likeliest(
            logits_BV, self._beam_size, temperature=self._temperature, is_first=True
        )
        self.open(images, token_BK, score_BK)

    def extend(self, logits_NKV: Tensor) -> None:
        """Give each image's beams one more token.

        Within a beam the order by average is the order by log p, so the K best of K * V extensions
        are among the K best of each beam.
        """
        beam_size = self._beam_size
        logp_RK, token_RK = self.likeliest(
            logits_NKV.flatten(0, 1), beam_size, temperature=self._temperature, is_first=False
        )
        logp_NKK = logp_RK.view(-1, beam_size, beam_size)
        token_NKK = token_RK.view(-1, beam_size, beam_size)
        stopped_NK = self.stopped_NK
        logp_NKK[stopped_NK] = -torch.inf
        logp_NKK[..., 0].masked_fill_(stopped_NK, 0.0)
        token_NKK[..., 0].masked_fill_(stopped_NK, REPEATED_TOKEN)
        length_NK = self.length_NK + ~stopped_NK
        average_NKK = (self.score_NK[:, :, None] + logp_NKK) / length_NK[:, :, None]
        average_NK, place_NK = average_NKK.flatten(1).topk(beam_size, -1)
        source_NK = place_NK // beam_size
        length_NK = length_NK.gather(1, source_NK)
        token_NK = token_NKK.flatten(1).gather(1, place_NK)
        self.go_on(source_NK, token_NK, average_NK * length_NK, length_NK)
