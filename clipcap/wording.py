"""Wishes for a caption in, settings that all decoders share and a tokenizer's tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

from pydantic import Field, field_validator, model_validator

from clipcap.errors import SettingsError
from clipcap.settings import Settings


class Words(Protocol):
    """What is asked of a captioner's tokenizer."""

    def stop_token(self, stop: str | None) -> int:
        """Return the token that ends a caption."""

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the tokens of a word at the start and inside of a text, large and small."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens."""

    def continuations(self) -> tuple[str, ...]:
        """Return what each token adds to a text behind a letter."""


class Wording(Settings):
    """What a caption may say and when it ends."""

    searches: ClassVar[bool] = False
    """Whether a decoder looks at so many captions that it can heed `must`."""

    max_tokens: int = Field(default=67, ge=1)
    """Tokens after which a caption ends even without the stop text."""
    min_tokens: int = Field(default=0, ge=0)
    """Tokens, the stop included, that a caption has at least."""
    stop: str | tuple[str, ...] | None = "."
    """The one-token text that ends a caption, or several of them; empty (null) takes the
    tokenizer's own end token."""
    never: tuple[str, ...] = ()
    """Words or phrases that are not written. Their tokens do not come, nor longer words that begin
    with those (`gun` may take `guns` along). A candidate that has one all the same, pieced together
    from other tokens, is left out, unless all have."""
    only: tuple[str, ...] | str = ()
    """The words that captions are made of, beside punctuation and the stop text: a list, or the
    address of a text file, one a line; small and large letters alike. Empty: any words."""
    must: tuple[str, ...] = ()
    """Words or phrases that a caption has, small and large letters alike; `beam` alone finds
    such captions."""
    no_repeat: int = Field(default=0, ge=0)
    """A caption has no run of so many tokens twice, other than within words of `only` and `must`;
    0 lets it."""
    end_on_sentence: bool = False
    """A caption that the limit ended is cut behind its last `.`, `!` or `?`, if it has one."""

    @field_validator("must")
    @classmethod
    def _require_search(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if words and not cls.searches:
            raise ValueError(
                "words that a caption must have are found by searching: choose the decoder `beam`"
            )
        return words

    @model_validator(mode="after")
    def _require_room(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"`min_tokens` ({self.min_tokens}) must not be above `max_tokens` "
                f"({self.max_tokens})"
            )
        return self


def stop_token(tokenizer: Any, stop: str | None) -> int:  # noqa: ANN401 - transformers' own types are dynamic
    """Return the token of a stop text, or the tokenizer's end token for None.

    Raises:
        SettingsError: the stop text is not one known token, or there is no end token.
    """
    if stop is None:
        if tokenizer.eos_token_id is None:
            raise SettingsError(
                "The tokenizer has no end token, so no caption could ever end: set its "
                '`eos_token`, or give a stop text that is one token, such as `stop: "."`.'
            )
        return int(tokenizer.eos_token_id)
    ids = tokenizer.encode(stop, add_special_tokens=False)
    unknown = len(ids) == 1 and ids[0] == tokenizer.unk_token_id and stop != tokenizer.unk_token
    if len(ids) != 1 or unknown:
        raise SettingsError(
            f"`stop` must be one token of the language model, but {stop!r} is {len(ids)} tokens or "
            "unknown to it instead. Choose another stop text, or null for the tokenizer's own end "
            "token."
        )
    return int(ids[0])


def spellings(tokenizer: Any, word: str) -> list[tuple[int, ...]]:  # noqa: ANN401 - as above
    """Return the tokens of a word at the start and inside of a text, large and small.

    Raises:
        SettingsError: the language model has no token for it.
    """
    found: dict[tuple[int, ...], None] = {}
    for form in (word, word.lower(), word.capitalize(), word.title(), word.upper()):
        for text in (form, f" {form}"):
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if ids and tokenizer.unk_token_id not in ids:
                found[ids] = None
    if not found:
        raise SettingsError(
            f"Words of a wish must be known to the language model, but {word!r} is not."
        )
    return list(found)


def continuations(tokenizer: Any, size: int) -> tuple[str, ...]:  # noqa: ANN401 - as above
    """Return what each token of a vocabulary of so many adds to a text behind a letter."""
    known = range(min(size, len(tokenizer)))
    alone = tokenizer.batch_decode([[token] for token in known], skip_special_tokens=True)
    letter = next((token for token in known if alone[token].strip()[-1:].isalpha()), 0)
    both = tokenizer.batch_decode([[letter, token] for token in known], skip_special_tokens=True)
    added = [text.removeprefix(alone[letter]) for text in both]
    return (*added, *("" for _ in range(size - len(known))))
