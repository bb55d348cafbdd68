"""Captions in, their words out: equal to the PTB tokenizer that the COCO metrics are computed with.

That is Stanford CoreNLP 3.4.1's, in lower case and with the marks of `DROPPED` left out, as
pycocoevalcap calls it. Like it, this one takes at every place the rule that reaches farthest, what
the rule only looks ahead at counted in. Each caption stands for itself, as if it ended a line; a
token with a blank in it, such as a telephone number, counts as its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from clipcap.metrics.tokenrules import AUXILIARY, NEGATION, NUMBERED, SIGNS, rules

NAME: Final = "ptb-3.4.1"
"""What a signature calls the tokenizer."""
VERSION: Final = 1
"""Raised by hand when the words of any caption change."""
DROPPED: Final = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Tokens that are left out. Brackets are not: in lower case they miss pycocoevalcap's list."""
_MOST_KEPT: Final = 100_000  # spellings remembered in a process: about 20 MB
_LONG: Final = 64  # characters of a spelling that is not worth remembering
_LONGEST: Final = 1_000  # characters without a blank that are looked at together
_WRITTEN: Final = {
    **SIGNS,
    "(": "-lrb-",
    ")": "-rrb-",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
    "&nbsp;": "'",
}
"""What stands for a sign, wherever in a token it is."""
_BRACKETS: Final = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SHORTENED: Final = re.compile(rf"{AUXILIARY}|{NEGATION}", re.IGNORECASE)
_APOSTROPHE: Final = re.compile("[\u2019\u0092]")
_MARK: Final = re.compile(  # drawn otherwise, but dropped as well
    r"[\"\u0085\u0091-\u0097\u00ab\u00bb\u2013-\u2015\u2018\u2019\u201b-\u201d\u2026]|-{2,4}"
)
_PLAIN: Final = re.compile(r"[A-Za-z]+")
_IRREGULAR: Final = frozenset(("cannot", "gonna", "gotta", "wanna", "lemme", "gimme"))
_BEFORE_NUMBER: Final = re.compile(rf"(?:{NUMBERED})\.", re.IGNORECASE)
_KNOWN: dict[str, tuple[str, ...]] = {}


def tokenize(caption: str) -> list[str]:
    """Return the words of a caption, lower case; none for an empty caption or one of marks only."""
    words: list[str] = []
    chunks = caption.split()
    for at, chunk in enumerate(chunks):
        known = _KNOWN.get(chunk)
        if known is None:
            known = _remembered(chunk)
        if chunk[-1] == "." and at + 1 < len(chunks) and _is_numbered(chunk, chunks[at + 1]):
            known = (chunk.lower(),)
        words += known
    return words


def _is_numbered(chunk: str, after: str) -> bool:
    """Tell whether the dot of `No.` belongs to it: where a number follows."""
    return after[0].isdecimal() and _BEFORE_NUMBER.fullmatch(chunk) is not None


def _remembered(chunk: str) -> tuple[str, ...]:
    if _PLAIN.fullmatch(chunk) and chunk.lower() not in _IRREGULAR:
        words: tuple[str, ...] = (chunk.lower(),)
    else:
        parts = (chunk[at : at + _LONGEST] for at in range(0, len(chunk), _LONGEST))
        words = tuple(word for part in parts for word in _words(part.replace("\u00ad", "")))
    if len(chunk) <= _LONG:
        if len(_KNOWN) >= _MOST_KEPT:
            _KNOWN.clear()
        _KNOWN[chunk] = words
    return words


def _words(text: str) -> Iterator[str]:
    """Yield the tokens of a text without blanks, but those that are dropped."""
    at, padded = 0, text + "\n"
    while at < len(text):
        end, reach = at + 1, at
        for rule in rules():
            found = rule.match(padded, at)
            if found and found.end() > reach:
                end, reach = found.end(1), found.end()
        if reach > at:
            yield from _kept(padded[at:end])
        at = end


def _kept(token: str) -> Iterable[str]:
    for sign, name in _WRITTEN.items():
        token = token.replace(sign, name)
    if _SHORTENED.fullmatch(token):
        token = _APOSTROPHE.sub("'", token)
    if token in DROPPED or _MARK.fullmatch(token):
        return ()
    return (_BRACKETS.get(token, token.lower()),)
