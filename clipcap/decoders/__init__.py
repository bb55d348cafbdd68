"""One file per decoder: `prefix_BPE` in, the candidate captions of each image out, best first.

A file here has `Settings` and `decode(captioner, prefix_BPE, settings) -> list[list[Candidate]]`. A
decoder sees the language model only through `Decodable`, so it never learns which model it drives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One caption that a decoder found."""

    text: str
    """The text as decoded, with the stop text if the language model wrote one."""
    token_ids: tuple[int, ...]
    """The tokens, the stop token included."""
    logprob_mean: float
    """Mean log-probability of `token_ids`, at the decoder's temperature."""
    finish_reason: FinishReason
    """`stop` if the last token is the stop token, `length` if the limit came first."""


class Cache(Protocol):
    """Keys and values of the rows read so far; changed in place."""

    def batch_repeat_interleave(self, repeats: int) -> object:
        """Make each row `repeats` rows, side by side."""

    def batch_select_indices(self, indices: Tensor) -> object:
        """Keep these rows, in this order."""


class Decodable(Protocol):
    """What a decoder needs of a captioner."""

    def stop_token(self, stop: str | None) -> int:
        """Return the token that ends a caption."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens."""

    def start(self, prefix_BPE: Tensor, max_tokens: int) -> tuple[Tensor, Cache]:
        """Read the prefix; return `logits_BV` for the first token, and the cache."""

    def advance(self, token_B: Tensor, cache: Cache) -> Tensor:
        """Read one more token per row into the cache; return `logits_BV` for the next."""
