"""The name of a bundled list of templates in, the list out."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Final

from clipcap import registry
from clipcap.errors import SettingsError
from clipcap.settings import Settings

FOLDER: Final = Path(__file__).parent.parent / "labelsets" / "templates"


class TemplateList(Settings):
    """Sentences with one `{}`, to be named by label sets."""

    name: str
    """What label sets call it."""
    templates: tuple[str, ...]
    """The sentences."""
    source: str
    """Where they come from."""
    licence: str
    """Under which licence."""


def bundled() -> list[str]:
    """Return the names of the lists that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def load(name: str) -> TemplateList:
    """Return a list by its name.

    Raises:
        SettingsError: there is none of that name; says the nearest and all.
    """
    if name not in bundled():
        raise SettingsError(registry.unknown("template list", name, bundled()))
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    return TemplateList.model_validate({"name": name, **tomllib.loads(text)})
