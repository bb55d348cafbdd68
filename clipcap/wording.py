"""Wishes for a caption's words in, tokens that may not come next out; what all decoders share.

What is forbidden is left out of the choice; log-probabilities stay the language model's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from clipcap.errors import SettingsError
from clipcap.settings import Settings

SENTENCE_ENDS: Final = (".", "!", "?")


class Words(Protocol):
    """What is asked of a captioner's tokenizer."""

    def stop_token(self, stop: str | None) -> int:
        """Return the token that ends a caption."""

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the tokens of a word at the start and inside of a text, large and small."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens."""


class Wording(Settings):
    """What a caption may say and when it ends."""

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
    no_repeat: int = Field(default=0, ge=0)
    """A caption has no run of so many tokens twice; 0 lets it."""
    end_on_sentence: bool = False
    """A caption that the limit ended is cut behind its last `.`, `!` or `?`, if it has one."""

    @model_validator(mode="after")
    def _require_room(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"`min_tokens` ({self.min_tokens}) must not be above `max_tokens` "
                f"({self.max_tokens})"
            )
        return self


class Rules:
    """A wording in the tokens of one tokenizer."""

    def __init__(self, wording: Wording, words: Words) -> None:
        """Look up every token.

        Raises:
            SettingsError: a stop text is not one token, or a word has none.
        """
        stops = wording.stop if isinstance(wording.stop, tuple) else (wording.stop,)
        if not stops:
            raise SettingsError("`stop` must name a text, or be null, but is an empty list.")
        self.wording = wording
        self.stops = tuple(dict.fromkeys(words.stop_token(stop) for stop in stops))
        spelt = [spelling for word in wording.never for spelling in words.spellings(word)]
        self._tokens = [spelling[0] for spelling in spelt if len(spelling) == 1]
        self._phrases = [spelling for spelling in spelt if len(spelling) > 1]
        self._never = [
            re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in wording.never
        ]

    def suits(self, text: str) -> bool:
        """Tell whether a text has none of the words that are not wanted."""
        return not any(word.search(text) for word in self._never)

    def is_stop(self, token: Tensor) -> Tensor:
        """Tell which tokens end a caption."""
        found = token == self.stops[0]
        for stop in self.stops[1:]:
            found = found | (token == stop)
        return found

    def allowed(self, logits_RV: Tensor, tokens: Sequence[Sequence[int]] | None) -> Tensor:
        """Return logits with -inf for what may not come next.

        Args:
            logits_RV: of R beams.
            tokens: what each beam has said so far; None: nothing, or it does not matter.
        """
        if not self._tokens and not self.looks_back:
            return logits_RV
        logits_RV = logits_RV.clone()
        logits_RV[:, self._tokens] = -torch.inf
        if self.looks_back:
            for row, said in enumerate(tokens or [()] * len(logits_RV)):
                logits_RV[row, self._banned(said)] = -torch.inf
        return logits_RV

    @property
    def looks_back(self) -> bool:
        """Whether what is allowed depends on what was said."""
        return bool(self._phrases or self.wording.no_repeat or self.wording.min_tokens)

    def _banned(self, said: Sequence[int]) -> list[int]:
        """Return the tokens that would end a text early or a phrase, or say a run of them again."""
        found = [
            phrase[-1]
            for phrase in self._phrases
            if tuple(said[max(0, len(said) - len(phrase) + 1) :]) == phrase[:-1]
        ]
        if len(said) < self.wording.min_tokens - 1:
            found += self.stops
        if self.wording.no_repeat:
            runs = range(len(said) - self.wording.no_repeat + 1)
            last = tuple(said[len(runs) :])
            found += [
                said[at + len(last)] for at in runs if tuple(said[at : at + len(last)]) == last
            ]
        return found

    def cut(self, token_ids: Sequence[int], words: Words) -> tuple[int, ...]:
        """Return a caption that the limit ended, up to the end of its last sentence."""
        if self.wording.end_on_sentence:
            for end in range(len(token_ids), 0, -1):
                if words.text(token_ids[end - 1 : end]).strip().endswith(SENTENCE_ENDS):
                    return tuple(token_ids[:end])
        return tuple(token_ids)


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
