"""`embedding_BD` in, `prefix_BPE` out: Linear, tanh, Linear, the first of the two ClipCap mappers.

Source: arXiv:2111.09734 and `MLP` in rmokady/CLIP_prefix_caption `train.py`, whose state dict names
(`model.0.*`, `model.2.*`) are kept.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from clipcap.settings import Settings as BaseSettings


class Settings(BaseSettings):
    """How wide the mapper is."""

    hidden_ratio: float = Field(default=0.5, gt=0.0)
    """Hidden width as a share of the prefix's P * E numbers; 0.5 as in the original."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of hidden numbers left out while it learns; 0 in the original."""


class Mapper(nn.Module):
    """Two linear layers with a tanh between them."""

    def __init__(self, settings: Settings, dim_clip: int, prefix_length: int, dim_lm: int) -> None:
        """Take D, P and E; the weights are torch's defaults for `Linear`, as in the original."""
        super().__init__()
        dim_out = prefix_length * dim_lm
        dim_hidden = max(1, int(dim_out * settings.hidden_ratio))
        self.prefix_length = prefix_length
        self.dim_lm = dim_lm
        self.model = nn.Sequential(
            nn.Linear(dim_clip, dim_hidden),
            nn.Sequential(nn.Tanh(), nn.Dropout(settings.dropout)),  # without a name of its own
            nn.Linear(dim_hidden, dim_out),
        )

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return `prefix_BPE`."""
        prefix_BPE: Tensor = self.model(embedding_BD).view(-1, self.prefix_length, self.dim_lm)
        return prefix_BPE
