"""`embedding_BD` in, `prefix_BPE` out: a small transformer, the second of the two ClipCap mappers.

Source: arXiv:2111.09734 and `TransformerMapper` in rmokady/CLIP_prefix_caption `train.py`, whose
state dict names are kept. A linear layer makes `clip_length` tokens out of an embedding; P learned
constants stand behind them; what the layers make of the constants is the prefix.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from clipcap.errors import SettingsError
from clipcap.settings import Settings as BaseSettings


class Settings(BaseSettings):
    """The shape of the mapper; the defaults are the original's."""

    clip_length: int = Field(default=10, ge=1)
    """Tokens that are made out of one embedding."""
    layers: int = Field(default=8, ge=1)
    """Layers, each of attention and two linear layers."""
    heads: int = Field(default=8, ge=1)
    """Heads of the attention; they share the language model's width E."""
    mlp_ratio: float = Field(default=2.0, gt=0.0)
    """Hidden width of a layer as a share of E."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of attention weights and hidden numbers left out while it learns; 0 in the original."""


class Mapper(nn.Module):
    """Tokens of the embedding and P learned constants through a stack of layers."""

    def __init__(self, settings: Settings, dim_clip: int, prefix_length: int, dim_lm: int) -> None:
        """Take D, P and E; the weights are drawn as in the original.

        Raises:
            SettingsError: the heads cannot share E.
        """
        super().__init__()
        if dim_lm % settings.heads:
            raise SettingsError(
                f"`heads` must divide the language model's width {dim_lm}, "
                f"but is {settings.heads} instead."
            )
        self.clip_length = settings.clip_length
        self.dim_lm = dim_lm
        self.transformer = _Layers(settings, dim_lm)
        self.linear = nn.Linear(dim_clip, settings.clip_length * dim_lm)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, dim_lm))

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return `prefix_BPE`."""
        clip_BKE = self.linear(embedding_BD).view(-1, self.clip_length, self.dim_lm)
        constant_BPE = self.prefix_const.expand(len(embedding_BD), -1, -1)
        read_BTE: Tensor = self.transformer(torch.cat((clip_BKE, constant_BPE), 1))
        return read_BTE[:, self.clip_length :]


class _Layers(nn.Module):
    """The stack; no norm at its end."""

    def __init__(self, settings: Settings, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(settings, dim) for _ in range(settings.layers))

    def forward(self, x_BTE: Tensor) -> Tensor:
        for layer in self.layers:
            x_BTE = layer(x_BTE)
        return x_BTE


class _Layer(nn.Module):
    """Attention, then two linear layers, each behind a norm and beside a shortcut."""

    def __init__(self, settings: Settings, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(settings, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Hidden(settings, dim)

    def forward(self, x_BTE: Tensor) -> Tensor:
        x_BTE = x_BTE + self.attn(self.norm1(x_BTE))
        out_BTE: Tensor = x_BTE + self.mlp(self.norm2(x_BTE))
        return out_BTE


class _Attention(nn.Module):
    """Every token looks at every token; queries, keys and values have no bias."""

    def __init__(self, settings: Settings, dim: int) -> None:
        super().__init__()
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x_BTE: Tensor) -> Tensor:
        tokens = (self.to_queries(x_BTE), *self.to_keys_values(x_BTE).chunk(2, -1))
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in tokens)
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out_BTE: Tensor = self.project(found.transpose(1, 2).flatten(2))
        return out_BTE


class _Hidden(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, settings: Settings, dim: int) -> None:
        super().__init__()
        hidden = max(1, int(dim * settings.mlp_ratio))
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTE: Tensor) -> Tensor:
        hidden_BTH = self.dropout(functional.relu(self.fc1(x_BTE)))
        out_BTE: Tensor = self.dropout(self.fc2(hidden_BTH))
        return out_BTE
