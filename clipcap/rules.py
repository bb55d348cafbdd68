"""Wishes for a caption's words in, tokens that may not come next out; what all decoders share.

What is forbidden is left out of the choice; log-probabilities stay the language model's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from clipcap import lexicon, wordlists
from clipcap.candidates import Candidate
from clipcap.errors import SettingsError
from clipcap.guide import Guide
from clipcap.lexicon import Joints, Must, Only
from clipcap.wording import Wording, Words

SENTENCE_ENDS: Final = (".", "!", "?")


class Rules:
    """A wording in the tokens of one tokenizer; `rules` makes them."""

    def __init__(self, wording: Wording, words: Words, listed: Sequence[str]) -> None:
        """Look up every token; `listed` are the words of `only`.

        Raises:
            SettingsError: a stop text is not one token, a word has none, or wishes exclude others.
        """
        stops = wording.stop if isinstance(wording.stop, tuple) else (wording.stop,)
        if not stops:
            raise SettingsError("`stop` must name a text, or be null, but is an empty list.")
        self.wording = wording
        self.stops = tuple(dict.fromkeys(words.stop_token(stop) for stop in stops))
        spelt = [spelling for word in wording.never for spelling in words.spellings(word)]
        self._tokens = [spelling[0] for spelling in spelt if len(spelling) == 1]
        self._phrases = [spelling for spelling in spelt if len(spelling) > 1]
        self._never = _patterns(wording.never)
        self._must = _patterns(wording.must)
        self.guide: Guide | None = None
        if listed or wording.must:
            self.guide = self._guided(words, listed, lexicon.joints(words.continuations()))

    def _guided(self, words: Words, listed: Sequence[str], joints: Joints) -> Guide:
        only = must = None
        if listed:
            spelt = [self._spelt(word, words) for word in listed]
            if not any(spelt):
                raise SettingsError(
                    "`only` must have a word that the language model knows and `never` lets come, "
                    f"but has none ({listed[0]!r} and {len(listed) - 1} more)."
                )
            only = Only(spelt, joints, self.stops)
        if self.wording.must:
            must = Must([self._required(word, words, only) for word in self.wording.must], joints)
            if must.most(must.place(())) > self.wording.max_tokens:
                raise SettingsError(
                    f"The words of `must` are {must.most(must.place(()))} tokens, more than "
                    f"`max_tokens` ({self.wording.max_tokens}) has room for."
                )
        return Guide(only, must, joints, self.wording.max_tokens)

    def _spelt(self, word: str, words: Words) -> list[tuple[int, ...]]:
        """Return the spellings of a word that give its letters back and that may come."""
        try:
            found = words.spellings(word)
        except SettingsError:
            return []  # what the language model does not know cannot come anyway
        wanted = word.casefold()
        return [
            tokens
            for tokens in found
            if words.text(tokens).strip().casefold() == wanted
            and not set(tokens) & {*self._tokens, *self.stops}
            and not any(phrase in _runs(tokens, len(phrase)) for phrase in self._phrases)
        ]

    def _required(self, word: str, words: Words, only: Only | None) -> list[tuple[int, ...]]:
        found = self._spelt(word, words) if words.spellings(word) else []
        if only is not None:
            found = [tokens for tokens in found if only.may_come(tokens)]
        if not found:
            raise SettingsError(
                f"`must` has {word!r}, but `never`, `only` or the stop text does not let it come, "
                "or the language model writes it otherwise."
            )
        return found

    @property
    def must(self) -> Must:
        """The words that a caption must have; a wording without them has none to give."""
        if self.guide is None or self.guide.must is None:
            raise SettingsError("`must` names no word.")
        return self.guide.must

    def size(self, vocabulary: int) -> int:
        """Return how many tokens of a vocabulary may ever come."""
        only = None if self.guide is None else self.guide.only
        return vocabulary if only is None else len(only.tokens)

    def preferred(self, found: Iterable[Candidate]) -> list[Candidate]:
        """Return the candidates that have what they must have and nothing that they must not.

        If there is none those that have what they must have; if there is none, all.
        """
        every = list(found)
        having = [one for one in every if self.has_all(one.text)] or every
        return [one for one in having if self.suits(one.text)] or having

    def has_all(self, text: str) -> bool:
        """Tell whether a text has the words that it must have."""
        return all(word.search(text) for word in self._must)

    def suits(self, text: str) -> bool:
        """Tell whether a text has none of the words that are not wanted."""
        return not any(word.search(text) for word in self._never)

    def is_stop(self, token: Tensor) -> Tensor:
        """Tell which tokens end a caption."""
        found = token == self.stops[0]
        for stop in self.stops[1:]:
            found = found | (token == stop)
        return found

    def allowed(self, logits_RV: Tensor, tokens: Sequence[Sequence[int] | None] | None) -> Tensor:
        """Return logits with -inf for what may not come next.

        Args:
            logits_RV: of R beams.
            tokens: what each beam has said so far, None of one that has ended; None: nothing, or
                it does not matter.
        """
        if not self._tokens and not self.looks_back:
            return logits_RV
        logits_RV = logits_RV.clone()
        logits_RV[:, self._tokens] = -torch.inf
        if self.looks_back:
            for row, said in enumerate(tokens or [()] * len(logits_RV)):
                if said is not None:
                    self._restrict(logits_RV[row], said)
        return logits_RV

    @property
    def looks_back(self) -> bool:
        """Whether what is allowed depends on what was said."""
        return bool(
            self._phrases or self.wording.no_repeat or self.wording.min_tokens or self.guide
        )

    def _restrict(self, logits_V: Tensor, said: Sequence[int]) -> None:
        """Set what may not come to -inf, in place."""
        banned, repeated = self._banned(said), self._repeated(said)
        if self.guide is None:
            logits_V[banned + repeated] = -torch.inf
            return
        left_V, fulfil = self.guide.left(logits_V, said)
        rest_V = left_V.clone()
        rest_V[[*banned, *(token for token in repeated if token not in fulfil)]] = -torch.inf
        logits_V.copy_(rest_V if float(rest_V.max()) > -torch.inf else left_V)

    def _banned(self, said: Sequence[int]) -> list[int]:
        """Return the tokens that would end a text early or a phrase."""
        found = [
            phrase[-1]
            for phrase in self._phrases
            if tuple(said[max(0, len(said) - len(phrase) + 1) :]) == phrase[:-1]
        ]
        return found + (list(self.stops) if len(said) < self.wording.min_tokens - 1 else [])

    def _repeated(self, said: Sequence[int]) -> list[int]:
        """Return the tokens that would say a run of them again."""
        if not self.wording.no_repeat:
            return []
        runs = range(len(said) - self.wording.no_repeat + 1)
        last = tuple(said[len(runs) :])
        return [said[at + len(last)] for at in runs if tuple(said[at : at + len(last)]) == last]

    def cut(self, token_ids: Sequence[int], words: Words) -> tuple[int, ...]:
        """Return a caption that the limit ended, up to the end of its last sentence."""
        if self.wording.end_on_sentence:
            for end in range(len(token_ids), 0, -1):
                is_end = words.text(token_ids[end - 1 : end]).strip().endswith(SENTENCE_ENDS)
                if is_end and self.has_all(words.text(token_ids[:end])):
                    return tuple(token_ids[:end])
        return tuple(token_ids)


_LAST: Final[WeakKeyDictionary[Words, tuple[Sequence[str], Rules]]] = WeakKeyDictionary()


def rules(wording: Wording, words: Words) -> Rules:
    """Return the rules of a wording; a captioner's last ones are kept, for many words take a while.

    Raises:
        SettingsError: a text is not known to the language model, wishes exclude each other, or
            the list of words cannot be read.
    """
    only = wording.only
    listed = wordlists.read(only) if isinstance(only, str) and only else tuple(only)
    known = _LAST.get(words)
    if known is None or known[0] != listed or known[1].wording != wording:
        known = _LAST[words] = (listed, Rules(wording, words, listed))
    return known[1]


def _patterns(words: Iterable[str]) -> list[re.Pattern[str]]:
    """Return what finds words in a text, but not inside of longer ones."""
    return [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words]


def _runs(tokens: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [tokens[at : at + size] for at in range(len(tokens) - size + 1)]
