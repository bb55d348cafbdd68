"""English words in, their other forms out: articles, plurals, numbers, statements of questions.

Rules and a few exceptions, no dictionary: enough for what CLIP or a captioner is asked, whose
scores hardly change by a wrong article.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

_WORDS: Final = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NUMBERS: Final[tuple[str, ...]] = tuple(_WORDS["numbers"])
DEFINITE: Final = ("the", "this", "that", "these", "those")
_DETERMINERS: Final[frozenset[str]] = frozenset((*_WORDS["determiners"], *NUMBERS))
_IRREGULAR: Final[dict[str, str]] = _WORDS["plurals"]
_REGULAR: Final = {plural: singular for singular, plural in _IRREGULAR.items()}
_HISSING: Final = ("s", "x", "z", "ch", "sh")
_MASS: Final[frozenset[str]] = frozenset(_WORDS["mass"])
_PREPOSITIONS: Final[frozenset[str]] = frozenset(_WORDS["prepositions"])
_PLACES: Final[frozenset[str]] = frozenset(_WORDS["places"])
_SURFACES: Final[frozenset[str]] = frozenset(_WORDS["surfaces"])
_PRONOUNS: Final[frozenset[str]] = frozenset(_WORDS["pronouns"])
_SHORT: Final = 4
"""Letters that `ring` and `gas` have, which are no `-ing` and no plural."""


def an(words: str) -> str:
    """Return singular words with `a` or `an` where they have no determiner and are no name."""
    if not words:
        return ""
    first, _, _ = words.partition(" ")
    head = _head(words)[1]
    is_name = first[:1].isupper() or not first[:1].isalpha()
    if is_name or first.lower() in _DETERMINERS | _PRONOUNS or head in _MASS or is_plural(head):
        return words
    spoken = first.lower()
    consonant = re.match(r"(uni|use|usu|eu|one\b|once\b|ut[ie])", spoken)
    vowel = re.match(r"([aeiou]|hour|honest|heir)", spoken)
    return f"{'an' if vowel and not consonant else 'a'} {words}"


def bare(words: str) -> str:
    """Return words without an article before them."""
    first, _, rest = words.partition(" ")
    return rest if rest and first.lower() in ("a", "an", "some", "any", *DEFINITE) else words


def some(words: str) -> str:
    """Return a thing that a question speaks of as a caption would: `the car` becomes `a car`."""
    return an(bare(words))


def is_plural(noun: str) -> bool:
    """Tell whether a noun looks like a plural."""
    low = noun.lower()
    if low in _REGULAR:
        return low not in _IRREGULAR  # one sheep
    return len(low) >= _SHORT and low.endswith("s") and not low.endswith(("ss", "us", "is"))


def plural(words: str) -> str:
    """Return the plural of a thing: `piece of cake` becomes `pieces of cake`."""
    before, head, after = _head(words)
    if not is_plural(head) and head.lower() not in _REGULAR:
        head = _plural(head)
    return before + head + after


def singular(words: str) -> str:
    """Return the singular of things."""
    before, head, after = _head(words)
    low = head.lower()
    if low in _REGULAR:
        head = _REGULAR[low]
    elif low.endswith("ies") and is_plural(low):
        head = f"{head[:-3]}y"
    elif low.endswith(tuple(f"{end}es" for end in _HISSING)):
        head = head[:-2]
    elif is_plural(low):
        head = head[:-1]
    return before + head + after


def _plural(noun: str) -> str:
    low = noun.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith("y") and low[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if low.endswith(_HISSING) else f"{noun}s"


def _head(words: str) -> tuple[str, str, str]:
    """Return what stands before the noun that words are about, the noun, and what follows it."""
    pieces = words.split(" ")
    ends = [n for n, word in enumerate(pieces) if n and word.lower() in _PREPOSITIONS]
    ends += [n for n, word in enumerate(pieces) if n > 1 and is_ing(word)]
    at = min([*ends, len(pieces)]) - 1
    before, after = " ".join(pieces[:at]), " ".join(pieces[at + 1 :])
    return before + " " * bool(before), pieces[at], " " * bool(after) + after


def is_ing(word: str) -> bool:
    """Tell whether a word looks like `running`."""
    return len(word) > _SHORT and word.lower().endswith("ing")


def number(text: str) -> int | None:
    """Return the number that digits or a word up to twenty stand for; `no` and `none` are 0."""
    low = text.strip().lower()
    if low in ("no", "none"):
        return 0
    if low in NUMBERS:
        return NUMBERS.index(low)
    return int(low) if re.fullmatch(r"[0-9]{1,9}", low) else None


def place(answer: str) -> str:
    """Return where something is: `kitchen` becomes `in the kitchen`."""
    first, _, _ = answer.partition(" ")
    if first.lower() in _PREPOSITIONS | _PLACES:
        return answer
    if first.lower() in _DETERMINERS or first[:1].isupper() or not first.isascii():
        return f"in {answer}"
    return f"{'on' if answer.lower() in _SURFACES else 'in'} the {answer}"


def split(words: str) -> tuple[str, str]:
    """Return subject and predicate of what follows `is` in a question: `the car`, `red`.

    The predicate begins with a preposition, an article or a word in -ing, or is the last word.
    """
    pieces = words.split(" ")
    first = pieces[0].lower()
    if first in _PRONOUNS and not (first in DEFINITE and _follows(pieces)):
        return pieces[0], " ".join(pieces[1:])
    begin = 2 if first in _DETERMINERS else 1
    for n in range(begin, len(pieces)):
        low = pieces[n].lower()
        begins = low in _PREPOSITIONS - {"of"} | _PLACES | {"a", "an", "the"} or is_ing(low)
        if begins and pieces[n - 1].lower() not in ("and", "or"):
            return " ".join(pieces[:n]), " ".join(pieces[n:])
    at = max(len(pieces) - 1, 1)
    return " ".join(pieces[:at]), " ".join(pieces[at:])


def is_pronoun(words: str) -> bool:
    """Tell whether a subject is `it`, `this` or the like, which may be anything."""
    return words.lower() in _PRONOUNS


def begins_with_article(words: str) -> bool:
    """Tell whether words are a thing: `a kitchen`."""
    return words.lower().startswith(("a ", "an ", "the "))


def is_adjective(words: str) -> bool:
    """Tell whether a predicate is one word that may stand before a noun."""
    low = words.lower()
    return " " not in low and low not in _PREPOSITIONS | _PLACES and not is_ing(low)


def third_person(words: str) -> str:
    """Return `wear a hat` as a man does it: `wears a hat`."""
    verb, blank, rest = words.partition(" ")
    return f"{verb}{'es' if verb.endswith((*_HISSING, 'o')) else 's'}{blank}{rest}"


def _follows(pieces: list[str]) -> bool:
    """Tell whether `this` stands before a noun (`this car red`), not alone (`this a car`)."""
    second = pieces[1].lower() if len(pieces) > 1 else ""
    alone = second in _DETERMINERS | _PREPOSITIONS or is_ing(second)
    return len(pieces) > 2 and not alone
