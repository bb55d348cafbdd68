"""The name of a published model (`ARCH/tag`) in, its repository and preprocessing out.

open_clip knows these names too, but takes seconds to import; a night without work must not wait.
`bundled/open_clip.json` is a copy of its registry, which a test compares with the installed one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from clipcap.errors import SettingsError

TABLE: Final = Path(__file__).parent / "bundled" / "open_clip.json"
_QUICK: Final = "-quickgelu"


@dataclass(frozen=True, slots=True)
class Published:
    """One entry of open_clip's registry."""

    architecture: str
    tag: str
    repository: str
    weights: str  # the file in the repository; empty: open_clip's default name
    preprocess: dict[str, Any]
    quick_gelu: bool

    @property
    def name(self) -> str:
        """Return `ARCH/tag`."""
        return f"{self.architecture}/{self.tag}"


@lru_cache(maxsize=1)
def table() -> dict[str, Published]:
    """Return every published model by its name."""
    read = json.loads(TABLE.read_text(encoding="utf-8"))
    found = {}
    for name, (location, preprocess, quick_gelu) in read["models"].items():
        architecture, _, tag = name.partition("/")
        repository, _, weights = location.rpartition("/")
        found[name] = Published(
            architecture, tag, repository, weights, read["preprocess"][preprocess], quick_gelu
        )
    return found


def find(name: str) -> Published | None:
    """Return the published model of a name; `-` and capitals in the tag do not matter."""
    architecture, _, tag = name.partition("/")
    return table().get(f"{architecture}/{tag.lower().replace('-', '_')}")


def configuration(published: Published) -> dict[str, Any]:
    """Return open_clip's own configuration of the architecture.

    Raises:
        SettingsError: the weights were trained with QuickGELU, which this architecture lacks.
    """
    spec = find_spec("open_clip")  # finds the folder; imports nothing
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(*folders[:1], "model_configs", f"{published.architecture}.json")
    try:
        model_cfg: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"The installed open_clip has no architecture {published.architecture}; "
            "install the version that constraints.txt names."
        ) from error
    other = f"{published.architecture}{_QUICK}/{published.tag}"
    # Only so: an architecture without such a namesake (roberta-ViT-B-32) has the GELU it needs.
    if published.quick_gelu and not model_cfg.get("quick_gelu") and other in table():
        raise SettingsError(
            f"The weights {published.tag!r} were trained with QuickGELU, but "
            f"{published.architecture} has another GELU: embeddings would be silently wrong. "
            f"Write {other}."
        )
    return model_cfg
