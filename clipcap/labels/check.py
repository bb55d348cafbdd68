"""What a file of a label set holds in, everything that must be otherwise out, all at once.

A problem makes the set unusable; a note (`notes`) is what its author should know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from clipcap.labels.files import Path, Problem, Written

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from clipcap.labels.sets import LabelSet

MOST_LABELS: Final = 100_000
"""The vectors of so many are 200 MB at D = 512, and are compared with every image."""
MOST_LEVELS: Final = 100
"""Of a taxonomy; each row names all parents of its label, WordNet has 20."""
MOST_TEXTS: Final = 2_000_000
"""Labels times words times templates; hours of a CPU with a large text encoder."""
WAYS_OUT: Final = (
    "Leave out what the images cannot show, make several label sets of it, or take fewer templates "
    "and synonyms."
)
_SHOWN: Final = 60  # characters of a value in a message
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_INVISIBLE: Final = re.compile("[\\s\u200b-\u200f\u2060\ufeff\u00ad]+")
_HINTS: Final = 20  # nearest names that are looked for: each is compared with all
_PROSE: Final = ("source", "licence")
_NAME: Final = "60 letters, digits, `.`, `_` and `-` at most, not of signs alone"


@dataclass(frozen=True, slots=True)
class _Label:
    """One entry of `names`, as far as it is well formed."""

    at: Path
    given: Mapping[str, Any]

    @property
    def name(self) -> str:
        return _text(self.given.get("name"))

    @property
    def has_name(self) -> bool:
        return isinstance(self.given.get("name"), str)

    @property
    def parent(self) -> str:
        return _text(self.given.get("parent"))

    @property
    def name_at(self) -> Path:
        return (*self.at, "name")

    def several(self, field: str) -> list[tuple[Path, str]]:
        return _several(self.given.get(field), (*self.at, field))


def too_many_labels(written: Written) -> Problem | None:
    """Return the one problem that makes all others moot."""
    names = written.found.get("names")
    if not isinstance(names, list) or len(names) <= MOST_LABELS:
        return None
    at = re.search(r'^\s*(\[\[)?"?names\b', written.text, re.MULTILINE)
    line = written.text.count("\n", 0, at.end()) + 1 if at else 1
    text = f"a label set must have at most {MOST_LABELS:,} labels, but this has {len(names):,}."
    return Problem(line, f"{text} {WAYS_OUT}")


def too_many_texts(label_set: LabelSet, written: Written) -> Iterator[Problem]:
    """Yield a problem where the text encoder would have to read too much."""
    count = text_count(label_set)
    if count > MOST_TEXTS:
        line = written.line(("templates",))
        text = f"labels, synonyms and templates must make at most {MOST_TEXTS:,} texts, but make "
        yield Problem(line, f"{text}{count:,}. {WAYS_OUT}")


def text_count(label_set: LabelSet) -> int:
    """Return how many texts are encoded."""
    shared, groups = len(label_set.templates), label_set.groups
    counts = (
        len(one.words) * (len(one.templates) or shared)
        for one in label_set.labels
        if one.name not in groups
    )
    return sum(counts) + len(label_set.background) * shared


def problems(written: Written, *, is_fitted: bool = False) -> list[Problem]:
    """Return what is wrong with the words, the templates and the taxonomy of a set.

    One label alone is enough where the set is fitted.
    """
    found = written.found
    names = found.get("names")
    given = names if isinstance(names, list) else []
    labels = [
        _Label(("names", n), one if isinstance(one, dict) else {"name": one})
        for n, one in enumerate(given)
    ]
    told = [
        *_characters(found, ()),
        *_words(written, labels, _several(found.get("background"), ("background",))),
        *_templates(labels, _several(found.get("templates"), ("templates",))),
        *_taxonomy(labels),
        *(() if is_fitted else _alone(labels, found)),
    ]
    return [Problem(written.line(at), text) for at, text in told] + written.doubled()


def misfits(
    error: ValidationError, written: Written, models: Mapping[int, type[BaseModel]]
) -> Iterator[Problem]:
    """Yield what pydantic found: fields that nobody knows, or of another type or range.

    Args:
        error: What it raised.
        written: The file.
        models: The model of fields that lie so many lists deep.
    """
    for one in error.errors(include_url=False):
        at: Path = one["loc"]
        yield Problem(written.line(at), _misfit(at, dict(one), models))


def _misfit(at: Path, one: Mapping[str, Any], models: Mapping[int, type[BaseModel]]) -> str:
    key = at[-1]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)[1:]
    kind, given = one["type"], one["input"]
    if kind == "extra_forbidden":
        fields = models[sum(isinstance(part, int) for part in at)].model_fields
        known = [field.alias or word for word, field in fields.items()]
        near = get_close_matches(str(key), known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
        return f"there is no field `{key}`. {hint}"
    if kind == "missing":
        return f"`{name}` must be given, but is not"
    if kind == "too_short":
        return f"`{name}` must hold at least one, but is empty"
    if kind == "value_error":
        return str(one["ctx"]["error"])
    if kind == "string_pattern_mismatch" or (kind == "string_too_long" and key == "name"):
        return f"`{name}` must be {_NAME}, as it stands in paths, but is {_shown(given)}"
    if key == "threshold":
        return f"`{name}` must be a number from 0 to 1, but is {_shown(given)}"
    return f"`{name}`: {one['msg']}, but it is {_shown(given)}"


def _characters(value: Any, at: Path) -> Iterator[tuple[Path, str]]:  # noqa: ANN401 - of a file
    """Yield texts with characters that no table, terminal or tokenizer can do with."""
    if isinstance(value, str):
        prose = at[:1] and at[0] in _PROSE
        found = _CONTROL.search(value.replace("\n", " ") if prose else value)
        if found:
            yield at, f"there is the character U+{ord(found[0]):04X} in {_shown(value)}"
    elif isinstance(value, dict | list) and len(at) < 4:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            yield from _characters(one, (*at, key))


def _words(
    written: Written, labels: list[_Label], background: list[tuple[Path, str]]
) -> Iterator[tuple[Path, str]]:
    """Yield names, synonyms and background names that are empty, or stand twice."""
    seen: dict[str, tuple[Path, str, str]] = {}
    every = [
        *((one.name_at, "the name", one.name) for one in labels if one.has_name),
        *((at, "the synonym", text) for one in labels for at, text in one.several("synonyms")),
        *((at, "the background name", text) for at, text in background),
    ]
    for at, what, text in every:
        plain = folded(text)
        if not plain:
            yield at, f"{what} is empty"
        elif text != text.strip():
            yield at, f"{what} {_shown(text)} begins or ends with a space"
        if plain and plain in seen:
            where, whose, other = seen[plain]
            also = f"{whose} in line {written.line(where)}"
            if text != other:
                also += f", where it is {_shown(other)}: only case or spaces differ"
            yield at, f"{what} {_shown(text)} stands twice (also as {also})"
        seen.setdefault(plain, (at, what.replace("the", "a", 1), text))


def _templates(labels: list[_Label], shared: list[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
    own = (found for one in labels for found in one.several("templates"))
    for at, text in (*shared, *own):
        if text.count("{}") != 1:
            yield at, f"the template {_shown(text)} must hold one {{}}, but has {text.count('{}')}"


def _taxonomy(labels: list[_Label]) -> Iterator[tuple[Path, str]]:
    """Yield parents that are none, circles, depths, groups with words that nobody would encode."""
    by_name = {one.name: one for one in labels}
    parents = {one.parent for one in labels if one.parent != one.name} - {""}
    hints = 0
    for one in labels:
        at = (*one.at, "parent")
        if one.parent and one.parent == one.name:
            yield at, f"the label {_shown(one.name)} is its own parent"
        elif one.parent and one.parent not in by_name:
            near = get_close_matches(one.parent, by_name, n=1) if hints < _HINTS else []
            hint = f" Did you mean {near[0]!r}?" if near else ""
            hints += 1
            yield at, f"the parent {_shown(one.parent)} is no label of the set.{hint}"
        for field in ("templates", "text"):
            if one.name and one.name in parents and one.given.get(field):
                text = f"the label {_shown(one.name)} is a parent: its score is the sum of its "
                yield (*one.at, field), f"{text}children's, and `{field}` of its own is never read"
    for circle in _circles(by_name):
        shown = " -> ".join(_shown(name) for name in [*circle, circle[0]][:12])
        yield (*by_name[circle[0]].at, "parent"), f"the parents go in a circle: {shown}"
    for one in _too_deep(by_name):
        yield (*one.at, "parent"), f"{_shown(one.name)} has {MOST_LEVELS} labels above it: too many"


def _circles(by_name: Mapping[str, _Label]) -> Iterator[list[str]]:
    """Yield every circle of two labels and more once."""
    done: set[str] = set()
    for start in by_name:
        way: dict[str, None] = {}
        name = start
        while name in by_name and name not in done and name not in way:
            way[name] = None
            name = by_name[name].parent
        if name in way:
            order = list(way)
            circle = order[order.index(name) :]
            if len(circle) > 1:
                yield circle
        done.update(way)


def _too_deep(by_name: Mapping[str, _Label]) -> list[_Label]:
    """Return the labels of the first level that is one too many; a circle has no top."""
    children: dict[str, list[_Label]] = {}
    for one in by_name.values():
        children.setdefault(one.parent, []).append(one)
    level = [one for one in by_name.values() if one.parent not in by_name]
    for _ in range(MOST_LEVELS):
        level = [child for one in level for child in children.get(one.name, ())]
    return level


def _alone(labels: list[_Label], found: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield a problem where there is nothing to choose among."""
    parents = {one.parent for one in labels} - {""}
    leaves = [one for one in labels if one.name not in parents]
    alone = found.get("scores") == "sigmoid" or found.get("multi_label") or found.get("background")
    if len(leaves) == 1 and not alone:
        yield (
            leaves[0].at,
            f"{_shown(leaves[0].name)} is the only label to score: a softmax over one is always 1, "
            "whatever the image shows. Give `background` names to compare it with, or scores = "
            '"sigmoid" for a model that was trained so (SigLIP)',
        )


def _several(given: Any, at: Path) -> list[tuple[Path, str]]:  # noqa: ANN401 - of a file
    texts = given if isinstance(given, list) else []
    return [((*at, n), one) for n, one in enumerate(texts) if isinstance(one, str)]


def _text(given: Any) -> str:  # noqa: ANN401 - of a file
    return given if isinstance(given, str) else ""


def folded(text: str) -> str:
    """Return what two words have in common that a reader would take for one."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())


def _shown(value: Any) -> str:  # noqa: ANN401 - of a file
    """Return a value as one short piece of text."""
    if isinstance(value, dict | list):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
