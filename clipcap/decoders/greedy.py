"""`prefix_NPE` in, one caption per image out: the likeliest token at each step.

What the original's `generate2` does in truth: before an argmax its `top_p` and temperature change
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipcap.candidates import SLOTS, Candidate, Decodable
from clipcap.rules import rules
from clipcap.sequences import Sequences
from clipcap.wording import Wording


class Settings(Wording):
    """What a greedy caption may say and when it ends."""


@torch.inference_mode()
def decode(
    captioner: Decodable,
    prefix_NPE: Tensor,
    settings: Settings,
    *,
    slots: int = SLOTS,
    seeds: Sequence[int] = (),
) -> list[list[Candidate]]:
    """Write one caption for each of N prefixes.

    Raises:
        SettingsError: no stop token, or no room for so many tokens.
    """
    return _Greedy(captioner, rules(settings, captioner), 1).found(prefix_NPE, slots)


class _Greedy(Sequences):
    """Of each image one beam."""

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Begin with the likeliest token."""
        logp_B1, token_B1 = self.likeliest(logits_BV, 1, is_first=True)
        self.open(images, token_B1, logp_B1)

    def extend(self, logits_NKV: Tensor) -> None:
        """Go on with the likeliest token."""
        logp_N1, token_N1 = self.likeliest(logits_NKV[:, 0], 1, is_first=False)
        score_N1, source_N1 = self.score_NK + logp_N1, torch.zeros_like(token_N1)
        self.go_on(source_N1, token_N1, score_N1, self.length_NK + 1)
