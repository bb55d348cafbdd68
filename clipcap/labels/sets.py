"""The name, path or URL of a label set in words (TOML or JSON) in, the label set out."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from clipcap import registry, storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.keys import path_name
from clipcap.settings import Settings

FOLDER: Final = Path(__file__).parent.parent / "labelsets"
_EXAMPLE: Final = """A correct one is:
    names = ["cat", "dog"]
    templates = ["a photo of a {}."]"""


class Label(Settings):
    """One class. In a file, a plain text stands for a label of that name and nothing else."""

    name: str
    """What the tables say."""
    synonyms: tuple[str, ...] = ()
    """Further words for it; each takes part in the label's embedding as the name does."""
    templates: tuple[str, ...] = ()
    """Sentences of its own; empty: those of the label set."""
    parent: str = ""
    """Name of the label that it is a kind of; empty: it is a kind of nothing here."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Lowest score at which it is accepted; the label set's where it is not given."""


class LabelSet(Settings):
    """What images are labelled with. A data file; every field but the notes changes the result."""

    model_config = ConfigDict(
        validate_by_alias=True, validate_by_name=True, serialize_by_alias=True
    )

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,60}$")
    """Stands in paths and in the column `label_set`; the file's name where it is not given."""
    labels: tuple[Label, ...] = Field(alias="names", min_length=1)
    """The labels, in the order of `label_index`; in a file they are called `names`."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences with one `{}`; the unit text embeddings of all of them are averaged."""
    background: tuple[str, ...] = ()
    """Names of what is none of the labels: they take part in the softmax, but are no answer."""
    multi_label: bool = False
    """An image may have several labels, or none; else its labels exclude each other."""
    scores: Literal["model", "softmax", "sigmoid"] = "model"
    """How a score is made: `softmax` over the set, `sigmoid` of each label alone; `model`: the
    sigmoid where labels do not exclude each other or the model was trained so, else softmax."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Lowest score of an accepted label; the stage's own where it is not given."""
    source: str = ""
    """Where the names come from."""
    licence: str = ""
    """Under which licence."""

    @field_validator("labels", mode="before")
    @classmethod
    def _from_texts(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(given, list | tuple):
            return [{"name": one} if isinstance(one, str) else one for one in given]
        return given

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names, in order."""
        return tuple(label.name for label in self.labels)

    def texts(self) -> list[list[str]]:
        """Return the sentences of each label, then of each background name."""
        words = [
            ((one.name, *one.synonyms), one.templates or self.templates) for one in self.labels
        ]
        words += [((name,), self.templates) for name in self.background]
        return [
            [template.replace("{}", name) for name in names for template in templates]
            for names, templates in words
        ]


def bundled() -> list[str]:
    """Return the names of the label sets that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> LabelSet:
    """Read a label set by its bundled name, path or URL.

    Raises:
        SettingsError: nobody knows it, or it is malformed; says every problem with its line.
    """
    if name in bundled():
        url = str(FOLDER / f"{name}.toml")
    elif name.endswith((".toml", ".json")):
        url = name
    else:
        hint = " A file of your own must end in .toml or .json."
        raise SettingsError(registry.unknown("label set", name, bundled()) + hint)
    try:
        text = storage.read(storage.canonical(url)).decode("utf-8")
        found = json.loads(text) if url.endswith(".json") else tomllib.loads(text)
    except NotFoundError as error:
        raise SettingsError(f"The label set {name} is not there.") from error
    except ValueError as error:
        raise SettingsError(f"The label set {name} cannot be read: {error}. {_EXAMPLE}") from error
    stem = url.rpartition("/")[2].rpartition(".")[0]
    return _checked({"name": stem, **found} if isinstance(found, dict) else {}, text, name)


def require_own_names(label_sets: Iterable[LabelSet]) -> None:
    """Do nothing where each label set has a place of its own in the output.

    Raises:
        SettingsError: two have one name; the later would replace what the earlier gave.
    """
    counted = Counter(path_name(label_set.name) for label_set in label_sets)
    twice = [name for name, count in counted.items() if count > 1]
    if twice:
        raise SettingsError(
            f"Label sets must have names of their own, but {counted[twice[0]]} are called "
            f"{twice[0]}. Write another `name` into one of them, or leave it out."
        )


def _checked(found: dict[str, Any], text: str, origin: str) -> LabelSet:
    problems = list(_problems(found, text))
    try:
        label_set = LabelSet.model_validate(found)
    except ValidationError as error:
        problems += [
            f"line {_line(text, str(one['loc'][0]))}: `{one['loc'][0]}`: {one['msg']}"
            for one in error.errors()
        ]
        label_set = None
    if problems or label_set is None:
        lines = "\n  ".join(dict.fromkeys(problems))
        raise SettingsError(
            f"The label set {origin} has {len(problems)} problems:\n  {lines}\n{_EXAMPLE}"
        )
    return label_set


def _problems(found: dict[str, Any], text: str) -> Iterable[str]:
    names = found.get("names")
    if isinstance(names, list):
        if len(names) == 0:
            yield f"line {_line(text, 'names')}: `names` must hold at least one label, but is empty"
        seen: dict[str, str] = {}
        for n, label in enumerate(names):
            if not isinstance(label, str) or not label.strip():
                yield f"line {_line(text, 'names')}: label {n + 1} is empty or no text: {label!r}"
                continue
            folded = " ".join(label.casefold().split())
            if folded in seen:
                line = _line(text, f'"{label}"', last=label == seen[folded])
                yield f"line {line}: {label!r} stands twice (also as {seen[folded]!r})"
            seen[folded] = label
    for template in found.get("templates") or ():
        if not isinstance(template, str) or template.count("{}") != 1:
            line = _line(text, f'"{template}"')
            yield f"line {line}: the template {template!r} must hold one {{}}"


def _line(text: str, piece: str, *, last: bool = False) -> int:
    """Return the line where `piece` stands first (or last), 1 where it stands nowhere."""
    at = text.rfind(piece) if last else text.find(piece)
    return text.count("\n", 0, max(at, 0)) + 1
