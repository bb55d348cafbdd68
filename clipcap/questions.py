"""A question and its possible answers in, for each answer statements that would then be true, out.

The statements are what CLIP compares with an image, and what a captioner might say of it (TAP-C,
arXiv:2203.07190). A question that is not understood, in whatever language, is put before its
answers.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from clipcap import statements
from clipcap.errors import SettingsError
from clipcap.statements import Question

log = logging.getLogger(__name__)
MOST_ANSWERS: Final = 10_000
_QUOTES: Final = '"“”„«»` '
_MARKS: Final = "?!.…？。؟ "  # noqa: RUF001 - those of other languages
_SHORT: Final = re.compile(r"\b(what|who|where|how|which|when|it|that|there)'s\b", re.IGNORECASE)
_ISNT: Final = re.compile(r"^(is|are|was|were|do|does|did|has|have|had|could)n't\b", re.IGNORECASE)
_NEGATED: Final = re.compile(
    r"\b(?:not|never|nobody|nothing|none)\b|(?<!\ba )(?<!\bthe )\bno ", re.IGNORECASE
)
_TAIL: Final = re.compile(
    r",? (?:in|on) (?:the|this|that|an?|your|my) (?:picture|photo|photograph|image|scene|drawing)$",
    re.IGNORECASE,
)


def understood(text: str, answers: Sequence[str] = ()) -> Question:
    """Return what a question's answers say of an image.

    Without answers `how many ...?` is answered by 0 to 10, a yes-no question by yes and no, and `is
    it this or that?` by the two. Blank answers and those that say the same are left out.

    Raises:
        SettingsError: the question is empty, has no answers and implies none, too many, or 0 alone.
    """
    shown, asked = _clean(text), _plain(text)
    if not asked:
        raise SettingsError(
            'There must be a question, such as --question "what colour is the car?", but '
            f"{text!r} asks nothing."
        )
    given = _different(shown, answers)
    found = statements.by_rule(shown, asked, given)
    found = found or statements.by_first_word(shown, asked, given)
    if found is None and not given:
        raise SettingsError(
            f"The question {shown!r} must have answers to choose from, but implies none. Give "
            "them: --answers red,blue,green"
        )
    if found and found.kind == "yes_no" and _NEGATED.search(asked):
        raise SettingsError(
            f"A question for yes and no must be asked without `no` and `not`, but {shown!r} has "
            "one, which CLIP does not read: the answers would be the wrong way round. Ask whether "
            "it is so."
        )
    question = _distinct(found or statements.general(shown, given))
    if not any(question.statements):
        raise SettingsError(
            f"The question {shown!r} must have an answer that an image can show, but has only "
            f"{question.answers[0]!r}. Give more: --answers 0,1,2,3"
        )
    return question


def _clean(text: str) -> str:
    """Return a text without control characters, quotes around it and needless blanks."""
    kept = "".join(" " if unicodedata.category(one)[0] in "CZ" else one for one in text)
    return " ".join(unicodedata.normalize("NFC", kept).split()).strip(_QUOTES)


def _plain(text: str) -> str:
    """Return a question as the rules read it: no marks at its end, nothing shortened."""
    words = _clean(text).replace("\u2019", "'").rstrip(_MARKS).strip(_QUOTES).rstrip(_MARKS)
    return _TAIL.sub("", _ISNT.sub(r"\1", _SHORT.sub(r"\1 is", words)))


def _different(shown: str, answers: Sequence[str]) -> list[str]:
    """Return the answers that say something, each once; small and large letters are the same."""
    if len(answers) > MOST_ANSWERS:
        raise SettingsError(
            f"A question must have at most {MOST_ANSWERS:,} answers, but {shown!r} has "
            f"{len(answers):,} instead. A label set has room for more: `clipcap label`."
        )
    kept: dict[str, str] = {}
    for one in filter(None, map(_clean, answers)):
        kept.setdefault(one.casefold(), one)
    if len(kept) < len(answers):
        log.warning(
            "%s: %d answers are blank or stand twice; %d are left",
            shown, len(answers) - len(kept), len(kept),
        )  # fmt: skip
    if answers and not kept:
        raise SettingsError(f"The answers to {shown!r} must say something, but all are blank.")
    return list(kept.values())


def _distinct(question: Question) -> Question:
    """Return a question without answers that mean what an earlier one does: `2` and `two`."""
    first: dict[tuple[str, ...], int] = {}
    for n, said in enumerate(question.statements):
        first.setdefault(said, n)
    kept = list(first.values())
    if len(kept) == len(question.answers):
        return question
    log.warning("%s: some answers mean the same; %d are left", question.text, len(kept))
    return replace(
        question,
        answers=tuple(question.answers[n] for n in kept),
        statements=tuple(question.statements[n] for n in kept),
    )
