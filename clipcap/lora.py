"""A language model in, the same one with small matrices beside its linear layers out, and back.

Source: arXiv:2106.09685. A layer gives `W x + alpha / rank * B A x`; only A and B learn, B from
zeros, so that training starts from the language model as it is. `merged` adds the product to W:
what is saved is a plain language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clipcap.errors import SettingsError
from clipcap.training import LoraSettings


class Adapted(nn.Module):
    """A linear layer that stays, beside two small ones that learn."""

    def __init__(self, layer: nn.Module, settings: LoraSettings) -> None:
        """Take `nn.Linear`, or GPT-2's `Conv1D`, whose weight lies the other way round."""
        super().__init__()
        self.layer = layer
        self.transposed = not isinstance(layer, nn.Linear)
        weight: Any = layer.weight
        dim_out, dim_in = weight.T.shape if self.transposed else weight.shape
        self.down = nn.Parameter(weight.new_empty(settings.rank, dim_in))
        self.up = nn.Parameter(weight.new_zeros(dim_out, settings.rank))
        self.scale = settings.alpha / settings.rank
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return what the layer gives, and what was learned beside it."""
        learned_BTE = self.dropout(x_BTE) @ self.down.T @ self.up.T
        kept_BTE: Tensor = self.layer(x_BTE)
        out_BTE: Tensor = kept_BTE + self.scale * learned_BTE
        return out_BTE

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Add what was learned to the layer's own weight, and return it."""
        weight: Any = self.layer.weight
        product = self.scale * (self.up @ self.down)
        weight.add_(product.T if self.transposed else product)
        return self.layer


@contextmanager
def adapted(language_model: Any, settings: LoraSettings) -> Iterator[None]:  # noqa: ANN401 - transformers' own types are dynamic
    """Let small matrices learn beside every linear layer but the head, then merge them.

    Where the body raises they are taken away and what they learned is lost.

    Raises:
        SettingsError: the language model has no such layer.
    """
    found = list(_linear(language_model))
    if not found:
        raise SettingsError(
            f"`language_model` cannot be lora for {type(language_model).__name__}: it has no "
            "linear layers to stand beside. Choose frozen or finetune."
        )
    language_model.requires_grad_(requires_grad=False)
    for parent, name, layer in found:
        setattr(parent, name, Adapted(layer, settings))
    is_whole = False
    try:
        yield
        is_whole = True
    finally:
        for parent, name, layer in found:
            setattr(parent, name, getattr(parent, name).merge() if is_whole else layer)


def _linear(language_model: Any) -> Iterator[tuple[nn.Module, str, nn.Module]]:  # noqa: ANN401 - transformers' own types are dynamic
    """Yield the layers of the body, with where they hang."""
    for parent in language_model.base_model.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D":
                yield parent, name, layer
