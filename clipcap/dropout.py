"""A language model in, the same one that leaves out another share of its numbers out, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

_NUMBERS: Final = (
    *("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "attn_pdrop"),
    "dropout_rate",
)
"""Names of shares that a module hands to a function: Llama's attention, all of OPT's dropout."""


@contextmanager
def dropped(language_model: Any, share: float | None) -> Iterator[None]:  # noqa: ANN401 - transformers' own types are dynamic
    """Let every dropout leave out this share, None its own; afterwards all is as before."""
    places = [] if share is None else list(_places(language_model))
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, share)
    try:
        yield
    finally:
        for (module, name), own in zip(places, before, strict=True):
            setattr(module, name, own)


def _places(language_model: Any) -> Iterator[tuple[nn.Module, str]]:  # noqa: ANN401 - as above
    for module in language_model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        else:
            yield from ((module, name) for name in _NUMBERS if _is_share(module, name))


def _is_share(module: nn.Module, name: str) -> bool:
    found = getattr(module, name, None)
    return isinstance(found, int | float) and not isinstance(found, bool)
