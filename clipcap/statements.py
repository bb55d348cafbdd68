"""A question's words and its answers in, what is true of an image by each of the answers out.

English questions are known by the rules of `questions.toml`, or by the verb that they begin with.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from clipcap import english

NEUTRAL: Final = (
    "something", "a picture", "a photo", "an image", "a drawing", "a scene", "something here",
)  # fmt: skip
"""What is true of any image; a statement must fit better than these to say anything."""
MOST_COUNTED: Final = 10  # where no answers are given
YES_NO: Final = ("yes", "no")
_RULES: Final = Path(__file__).with_name("questions.toml")
_FRAMES: Final = ("{}", "a picture of {}", "a photo of {}")
_BE: Final = r"(?P<be>is|are|was|were)"
_ONE: Final = r"(?:an? )?[^\s,]+"
_OR: Final = r"(?:,? or |, )"
_EITHER: Final = rf"{_BE} (?P<x>.+?) (?P<all>{_ONE}(?:{_OR}{_ONE}){{0,99}},? or {_ONE})"
_COPULA: Final = rf"{_BE} (?P<words>\S+ .+)"
_VERB: Final = (
    r"(?P<verb>do|does|did|has|have|had|can|could|will) "
    rf"(?P<x>(?:(?:{'|'.join(english.DEFINITE)}|an?) )?\S+) (?P<rest>.+)"
)
_TIMES: Final = {
    "morning": "in the morning", "afternoon": "in the afternoon", "evening": "in the evening",
    "day": "during the day", "daytime": "during the day", "spring": "in spring",
    "summer": "in summer", "autumn": "in autumn", "fall": "in fall", "winter": "in winter",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and what is true of an image by each of its answers."""

    text: str
    kind: str
    """By what rule its statements were made."""
    answers: tuple[str, ...]
    statements: tuple[tuple[str, ...], ...]
    """For each answer several; none for the one that says that the question's thing is missing."""
    subject: tuple[str, ...] = ()
    """True where the question makes sense; empty: where one of the answers is true."""
    neutral: tuple[str, ...] = NEUTRAL

    @property
    def otherwise(self) -> int | None:
        """The place of `no` or 0, the answer where the thing is missing; None: there is none."""
        return next((n for n, said in enumerate(self.statements) if not said), None)


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    asks: tuple[re.Pattern[str], ...]
    says: tuple[str, ...]


def by_rule(shown: str, asked: str, answers: Sequence[str]) -> Question | None:
    """Return a question that a rule knows; None: none does, or there are no answers to it."""
    for rule in _rules():
        match = next(filter(None, (pattern.fullmatch(asked) for pattern in rule.asks)), None)
        if match is None:
            continue
        if rule.kind == "yes_no":
            said = _filled(rule.says, _fields(match, ""))
            yes = Question(shown, rule.kind, YES_NO, (said, ()), said)
            return yes if _is_yes_no(answers) else None
        if not answers and rule.kind == "count":
            answers = [str(n) for n in range(MOST_COUNTED + 1)]
        told = tuple(_said(rule, match, one) for one in answers)
        about = _subject(match, counted=rule.kind == "count")
        return Question(shown, rule.kind, tuple(answers), told, about) if answers else None
    return None


def by_first_word(shown: str, asked: str, answers: Sequence[str]) -> Question | None:
    """Return a yes-no question, or one between two things, by the verb that it begins with."""
    either = re.fullmatch(_EITHER, asked, re.IGNORECASE)
    if either and (not answers or not _is_yes_no(answers)):
        between = tuple(answers or re.split(_OR, either["all"], flags=re.IGNORECASE))
        said = tuple(_copula(either["x"], _be(either), one) for one in between)
        return Question(shown, "either", between, said, _subject(either))
    if not _is_yes_no(answers):
        return None
    if copula := re.fullmatch(_COPULA, asked, re.IGNORECASE):
        x, predicate = english.split(copula["words"])
        return _judged(shown, x, _copula(x, _be(copula), predicate))
    if verb := re.fullmatch(_VERB, asked, re.IGNORECASE):
        return _judged(shown, verb["x"], _active(verb["x"], verb["verb"].lower(), verb["rest"]))
    return None


def general(shown: str, answers: Sequence[str]) -> Question:
    """Return a question that nobody knows: it stands before its answers."""
    said = tuple((f"{shown} {one}", one) for one in answers)
    return Question(shown, "general", tuple(answers), said, neutral=(shown, *NEUTRAL))


def _judged(shown: str, x: str, yes: tuple[str, ...]) -> Question:
    """Return a yes-no question on what a thing is like: `a red car` against `a car`.

    CLIP hardly reads `not`, so the thing itself stands for the other answer.
    """
    if english.is_pronoun(x):
        return Question(shown, "yes_no", YES_NO, (yes, ()), yes)
    subject = _framed(english.some(x))
    return Question(shown, "yes_no", YES_NO, (yes, subject), subject)


def _copula(x: str, be: str, predicate: str) -> tuple[str, ...]:
    """Return the statements that a thing is something: `the car is red`, `a red car`."""
    whole = f"{x} {be} {predicate}"
    if english.is_pronoun(x) or english.begins_with_article(predicate):
        return (*_framed(predicate), whole)
    if english.is_adjective(predicate):
        return (*_framed(english.an(f"{predicate} {english.bare(x)}")), whole)
    return (*_framed(f"{english.some(x)} {predicate}"), whole)


def _active(x: str, verb: str, rest: str) -> tuple[str, ...]:
    """Return the statements that a thing does something: `a man wears a hat`."""
    does = {"does": english.third_person(rest), "do": rest, "did": rest}
    said = f"{english.some(x)} {does.get(verb, f'{verb} {rest}')}"
    owns = verb in ("has", "have")
    return (said, *(_framed(f"{english.some(x)} with {rest}") if owns else ()))


def _said(rule: _Rule, match: re.Match[str], answer: str) -> tuple[str, ...]:
    """Return the statements of an answer; none for the answer 0."""
    fields = _fields(match, answer)
    if rule.kind != "count":
        return _filled(rule.says, fields)
    number = english.number(answer)
    be = "is" if number == 1 else "are"
    counts = () if number == 0 else _counts(match["x"], answer, number)
    said = [_filled(rule.says, {**fields, "be": be, "count": one}) for one in counts]
    return tuple(dict.fromkeys(text for texts in said for text in texts))


def _counts(x: str, answer: str, number: int | None) -> tuple[str, ...]:
    """Return so many of a thing, in a word and in digits."""
    many, one = english.plural(x), english.singular(x)
    if number is None:
        return (f"{answer} {many}",)
    if number == 1:
        return (f"one {one}", english.an(one))
    word = english.NUMBERS[number] if number < len(english.NUMBERS) else str(number)
    return (f"{word} {many}", f"{number} {many}")


def _subject(match: re.Match[str], *, counted: bool = False) -> tuple[str, ...]:
    """Return what is true where an image shows the thing that a question speaks of."""
    found = match.groupdict()
    owner, x = found.get("owner"), found.get("x")
    thing = owner or x
    if not thing or english.is_pronoun(thing):
        return ()
    if owner or not counted:
        return _framed(english.some(thing))
    one, many = english.singular(thing), english.plural(thing)
    return (*_framed(english.an(one)), *_framed(many))


def _fields(match: re.Match[str], answer: str) -> dict[str, str]:
    """Return what the names in `says` stand for."""
    found = {name: value or "" for name, value in match.groupdict().items()}
    x = found.get("x", "")
    return {
        "rest": "", "verb": "", **found,
        "be": _be(match), "the": x, "x": english.some(x),
        "bare": found.get("bare") or english.bare(x),
        "owner": english.some(found.get("owner", "")),
        "answer": answer, "one": english.an(answer), "place": english.place(answer),
        "answer_x": english.an(f"{answer} {english.bare(x)}"),
        "time": _TIMES.get(answer.lower()) or (answer if " " in answer else f"at {answer}"),
        "is": "are" if english.is_plural(answer) else "is",
    }  # fmt: skip


def _be(match: re.Match[str]) -> str:
    be = (match.groupdict().get("be") or "is").lower()
    return {"do": "are", "does": "is"}.get(be, be)


def _filled(says: Sequence[str], fields: Mapping[str, str]) -> tuple[str, ...]:
    """Return templates with their names filled in; a star stands for three statements."""
    made: dict[str, None] = {}
    for one in says:
        text = " ".join(one.removeprefix("*").format_map(fields).split())
        made |= dict.fromkeys(_framed(text) if one.startswith("*") else (text,))
    return tuple(made)


def _framed(text: str) -> tuple[str, ...]:
    return tuple(frame.replace("{}", text) for frame in _FRAMES)


def _is_yes_no(answers: Sequence[str]) -> bool:
    return {one.casefold() for one in answers} <= set(YES_NO)


@cache
def _rules() -> tuple[_Rule, ...]:
    held = tomllib.loads(_RULES.read_text(encoding="utf-8"))
    words: dict[str, str] = held["words"]

    def pattern(text: str) -> re.Pattern[str]:
        while found := re.search(r"(?<!\?P)<(\w+)>", text):
            text = text.replace(found[0], words[found[1]], 1)
        return re.compile(text, re.IGNORECASE)

    return tuple(
        _Rule(one["kind"], tuple(map(pattern, one["asks"])), tuple(one["says"]))
        for one in held["rules"]
    )
