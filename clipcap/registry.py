"""A folder of extension files in, the module of one name out: the file name is the name."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType

from clipcap.errors import SettingsError


def names(package: str) -> list[str]:
    """Return the names in an extension folder, sorted, without importing any of them."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = (module.name for module in pkgutil.iter_modules(folders))
    return sorted(name for name in found if not name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the one file that `name` stands for.

    Raises:
        SettingsError: no such file; the message has the nearest name and all the known ones.
    """
    known = names(package)
    if name not in known:
        raise SettingsError(unknown(package.rpartition(".")[2].removesuffix("s"), name, known))
    return importlib.import_module(f"{package}.{name}")


def unknown(kind: str, name: str, known: list[str]) -> str:
    """Return the sentence for a name that nobody knows: nearest match first, then all."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"No {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}."
