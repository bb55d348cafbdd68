"""The name, path or URL of a label set in words (TOML or JSON) in, the label set out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from clipcap import registry, storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.keys import path_name
from clipcap.labels import check, files, templates
from clipcap.labels.files import Problem, Written
from clipcap.settings import Settings

FOLDER: Final = Path(__file__).parent.parent / "labelsets"
_TOLD: Final = 20  # problems of a file that an error has
_EXAMPLE: Final = """A correct one is:
    names = ["cat", "dog"]
    templates = ["a photo of a {}."]"""


def _as_list(given: Any) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the templates of a bundled list that is given by name."""
    if not isinstance(given, str):
        return given
    try:
        return templates.load(given).templates
    except SettingsError as error:
        raise ValueError(str(error)) from error


class Label(Settings):
    """One class. In a file, a plain text stands for a label of that name and nothing else."""

    name: str
    """What the tables say."""
    text: str = ""
    """What stands in the templates where that is not the name."""
    synonyms: tuple[str, ...] = ()
    """Further words for it; each takes part in the label's embedding as the name does."""
    templates: tuple[str, ...] = ()
    """Sentences of its own, or the name of a bundled list; empty: those of the label set."""
    parent: str = ""
    """Name of the label that it is a kind of; empty: it is a kind of nothing here."""
    threshold: float | None = Field(default=None, ge=0, le=1, strict=True)
    """Lowest score at which it is accepted; the label set's where it is not given."""

    _named = field_validator("templates", mode="before")(_as_list)

    @property
    def words(self) -> tuple[str, ...]:
        """What stands in the templates, in turn."""
        return (self.text or self.name, *self.synonyms)


class LabelSet(Settings):
    """What images are labelled with. A data file; every field but the notes changes the result."""

    model_config = ConfigDict(
        validate_by_alias=True, validate_by_name=True, serialize_by_alias=True
    )

    name: str = Field(default="", max_length=60, pattern=r"^$|^[._-]*[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Stands in paths and in the column `label_set`; the file's name where it is not given."""
    labels: tuple[Label, ...] = Field(alias="names", min_length=1)
    """The labels, in the order of `label_index`; in a file they are called `names`."""
    templates: tuple[str, ...] = Field(default=("a photo of a {}.",), min_length=1)
    """Sentences with one `{}`, or the name of a bundled list of them; the unit text embeddings of
    all are averaged."""
    background: tuple[str, ...] = ()
    """Names of what is none of the labels: they take part in the softmax, but are no answer."""
    multi_label: bool = Field(default=False, strict=True)
    """An image may have several labels, or none; else its labels exclude each other."""
    scores: Literal["model", "softmax", "sigmoid"] = "model"
    """How a score is made: `softmax` over the set, `sigmoid` of each label alone; `model`: the
    sigmoid where labels do not exclude each other or the model was trained so, else softmax."""
    threshold: float | None = Field(default=None, ge=0, le=1, strict=True)
    """Lowest score of an accepted label; the stage's own where it is not given."""
    source: str = ""
    """Where the names come from."""
    licence: str = ""
    """Under which licence."""

    _named = field_validator("templates", mode="before")(_as_list)

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

    @property
    def groups(self) -> frozenset[str]:
        """Names of labels that others are a kind of: no text is encoded for them. Made anew."""
        return frozenset(label.parent for label in self.labels) - {""}

    def texts(self) -> list[list[str]]:
        """Return the sentences of each label, then of each background name; none of a group."""
        groups = self.groups
        words = [
            ((), ()) if one.name in groups else (one.words, one.templates or self.templates)
            for one in self.labels
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
    found, problems = read(name)
    if found is None:
        shown = [str(one) for one in problems[:_TOLD]]
        if len(problems) > _TOLD:
            shown.append(f"and {len(problems) - _TOLD:,}: `clipcap labels check` shows all")
        count = f"{len(problems):,} problem{'' if len(problems) == 1 else 's'}"
        lines = "\n  ".join(shown)
        raise SettingsError(f"The label set {name} has {count}:\n  {lines}\n{_EXAMPLE}")
    return found


def read(name: str) -> tuple[LabelSet | None, list[Problem]]:
    """Read a label set, and say every problem that it has; where it has one, there is no set.

    Raises:
        SettingsError: nobody knows it, or the file is too large.
    """
    if name in bundled():
        url = str(FOLDER / f"{name}.toml")
    elif name.endswith((".toml", ".json")):
        url = name
    else:
        hint = " A file of your own must end in .toml or .json, a fitted one in .parquet."
        raise SettingsError(registry.unknown("label set", name, bundled()) + hint)
    written = files.parsed(_bytes(url), is_json=url.endswith(".json"))
    if isinstance(written, Problem):
        return None, [written]
    if written.found.get("name", "") == "":
        written.found["name"] = name_of(url)
    return _checked(written)


def name_of(url: str) -> str:
    """Return what a label set is called where its file does not say."""
    stem = url.rpartition("/")[2].rpartition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:60]


def _bytes(url: str) -> bytes:
    url = storage.canonical(url)
    info = storage.info(url)
    if info is None:
        raise SettingsError(f"The label set {url} is not there.")
    if info.size_bytes > files.MOST_BYTES:
        raise SettingsError(
            f"A label set must have at most {files.MOST_BYTES >> 20} MiB, but {url} has "
            f"{info.size_bytes >> 20:,}. Is it the right file? {check.WAYS_OUT}"
        )
    try:
        return storage.read(url)
    except NotFoundError as error:
        raise SettingsError(f"The label set {url} is not there.") from error


def of_fitted(text: str) -> LabelSet:
    """Return the words that a fitted label set keeps, as JSON.

    Raises:
        ValueError: it is malformed; says every problem.
    """
    written = files.parsed(text.encode(), is_json=True)
    if isinstance(written, Written):
        found, problems = _checked(written, is_fitted=True)
    else:
        found, problems = None, [written]
    if found is None:
        raise ValueError("; ".join(one.text for one in problems[:_TOLD]))
    return found


def _checked(written: Written, *, is_fitted: bool = False) -> tuple[LabelSet | None, list[Problem]]:
    too_many = check.too_many_labels(written)
    if too_many is not None:
        return None, [too_many]
    problems = check.problems(written, is_fitted=is_fitted)
    try:
        label_set = LabelSet.model_validate(written.found)
    except ValidationError as error:
        problems += check.misfits(error, written, {0: LabelSet, 1: Label})
    else:
        problems += check.too_many_texts(label_set, written)
        if not problems:
            return label_set, []
    return None, sorted(set(problems))


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
