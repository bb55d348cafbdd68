"""`embedding_BD` in, `prefix_BPE` out: one linear layer, for long prefixes or little data.

Source: `predict.py` of rmokady/CLIP_prefix_caption, which has it in place of the MLP where P is
more than 10; the state dict names (`weight`, `bias`) are kept.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipcap.settings import Settings as BaseSettings


class Settings(BaseSettings):
    """Nothing to choose: D, P and E say everything."""


class Mapper(nn.Linear):
    """The layer, its output cut into P vectors."""

    def __init__(self, settings: Settings, dim_clip: int, prefix_length: int, dim_lm: int) -> None:
        """Take D, P and E; the weights are torch's defaults for `Linear`, as in the original."""
        super().__init__(dim_clip, prefix_length * dim_lm)
        self.prefix_length = prefix_length
        self.dim_lm = dim_lm

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return `prefix_BPE`."""
        return super().forward(embedding_BD).view(-1, self.prefix_length, self.dim_lm)
