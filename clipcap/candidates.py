"""What decoders speak of: the captioner as they see it, and the captions that they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from clipcap.trees import Tree

FinishReason = Literal["stop", "length"]
SLOTS: Final = 64
"""Images read at a time, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One caption that a decoder found."""

    text: str
    """The text as decoded, with the stop text if the language model wrote one."""
    token_ids: tuple[int, ...]
    """The tokens, the stop token included."""
    logprob_mean: float
    """Mean log-probability of the tokens that were written, at the decoder's temperature; what
    `end_on_sentence` has cut off counts."""
    finish_reason: FinishReason
    """`stop` if the last token is the stop token, `length` if the limit came first."""


class Decodable(Protocol):
    """What a decoder needs of a captioner."""

    @property
    def device(self) -> torch.device:
        """Where the language model lies."""

    def stop_token(self, stop: str | None) -> int:
        """Return the token that ends a caption."""

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the tokens of a word at the start and inside of a text, large and small."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens."""

    def continuations(self) -> tuple[str, ...]:
        """Return what each token adds to a text behind a letter."""

    def tree(self, beams: int, max_tokens: int, slots: int) -> Tree:
        """Return an empty tree for captions of at most so many tokens."""
