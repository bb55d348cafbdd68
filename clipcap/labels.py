"""A label set (TOML or JSON, bundled or at a URL) and embeddings in; a score for each name out."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import Field, ValidationError

from clipcap import registry, storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.keys import path_name
from clipcap.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER: Final = Path(__file__).parent / "labelsets"
_EXAMPLE: Final = """A correct one is:
    names = ["cat", "dog"]
    templates = ["a photo of a {}."]"""


class LabelSet(Settings):
    """What images are labelled with. A data file; every field but the notes changes the result."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,60}$")
    """Stands in paths and in the column `label_set`; the file's name where it is not given."""
    names: tuple[str, ...]
    """The labels, in the order of `label_index`."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences with one `{}`; the unit text embeddings of all of them are averaged."""
    background: tuple[str, ...] = ()
    """Names of what is none of the labels: they take part in the softmax, but are no answer."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Lowest score of an accepted label; the stage's own where it is not given."""
    source: str = ""
    """Where the names come from."""
    licence: str = ""
    """Under which licence."""

    def texts(self) -> list[list[str]]:
        """Return the sentences of each name, those of the background last."""
        names = (*self.names, *self.background)
        return [[template.replace("{}", name) for template in self.templates] for name in names]


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


def averaged(embedding_CMD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return one unit vector per name: the mean of its templates' unit vectors, made unit again.

    As open_clip's zero-shot classifier does. C names, M templates, D numbers.
    """
    unit_CMD = embedding_CMD / np.linalg.norm(embedding_CMD, axis=2, keepdims=True)
    mean_CD = unit_CMD.mean(axis=1)
    unit: NDArray[np.float32] = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
    return unit


def score(
    embedding_BD: NDArray[np.float32], name_CD: NDArray[np.float32], *, logit_scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return `similarity_BC` (cosines) and `score_BC` (softmax of `logit_scale` times cosine).

    The same as `CLIPModel`'s `logits_per_image.softmax(-1)` for one template.
    """
    similarity_BC = embedding_BD @ name_CD.T
    logit_BC = similarity_BC * np.float32(logit_scale)
    power_BC = np.exp(logit_BC - logit_BC.max(axis=1, keepdims=True))
    return similarity_BC, power_BC / power_BC.sum(axis=1, keepdims=True)
