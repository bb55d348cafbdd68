"""The models there are, on this machine and on the hub; a wrong name in, the near ones out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal

from clipcap import hub, modelfolder, pretrained, transformersfolder

BUNDLED: Final = "bundled"
BUNDLED_FOLDER: Final = Path(__file__).parent / "bundled"
FULL_LIST: Final = "`clipcap models --all` prints every name"
HUB: Final = "hf-hub:"
_SUGGESTED: Final = (
    "ViT-B-32/laion2b_s34b_b79k",
    "ViT-B-16-SigLIP/webli",
    "ViT-L-14/datacomp_xl_s13b_b90k",
)
_TUTORIALS: Final = (
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "google/siglip-base-patch16-224",
)
_SAME: Final = 0.8  # of difflib's likeness: from it on an architecture is meant, no organisation
_CUTOFF: Final = 0.5  # of difflib's likeness: below it a name is no near one


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `clipcap models`."""

    name: str
    kind: Literal["encoder", "captioner"]
    size_bytes: int | None
    on_this_machine: bool
    note: str


def listing(scope: Literal["here", "all"] = "here") -> list[ModelRow]:
    """Return what can be had: the bundled models, the local cache, and published names.

    Args:
        scope: `here` adds a few published names to what is on this machine, `all` every one.
    """
    scenes = "knows only the picture-book scenes it was trained on; photographs need a real model"
    bundled: tuple[Literal["encoder", "captioner"], ...] = ("encoder", "captioner")
    rows = [
        ModelRow(BUNDLED, kind, modelfolder.size_bytes(folder), folder.is_dir(), scenes)
        for kind, folder in ((kind, BUNDLED_FOLDER / kind) for kind in bundled)
    ]
    for name, cached in cached_encoders().items():
        size = modelfolder.size_bytes(cached.folder)
        note = f"in the local cache: {cached.repository}"
        rows.append(ModelRow(name, "encoder", size, on_this_machine=True, note=note))
    there = {name: pretrained.table()[name].repository for name in _SUGGESTED}
    if scope == "all":
        there = {name: entry.repository for name, entry in pretrained.table().items()}
    for name, repository in (there | {name: name for name in _TUTORIALS}).items():
        if name not in {row.name for row in rows}:
            note = f"on the hub: {repository}"
            rows.append(ModelRow(name, "encoder", None, on_this_machine=False, note=note))
    return rows


def cached_encoders() -> dict[str, hub.Cached]:
    """Return the cache's usable encoders by the names to write for them."""
    published: dict[str, list[str]] = {}
    for entry in pretrained.table().values():
        published.setdefault(entry.repository, []).append(entry.name)
    found = {}
    for cached in hub.cached():
        names = modelfolder.file_names(cached.folder)
        safe = any(name.endswith(".safetensors") for name in names)
        if safe and (modelfolder.CONFIGURATION in names or cached.repository in published):
            first = published.get(cached.repository, [f"{HUB}{cached.repository}"])[0]
            found[first] = cached
        elif safe and transformersfolder.is_known(cached.folder):
            found[cached.repository] = cached
    return found


def may_be_repository(name: str) -> bool:
    """Tell `organisation/name` from a published name that is misspelt."""
    owner, _, rest = name.partition("/")
    architectures = {other.partition("/")[0].lower() for other in pretrained.table()}
    near = get_close_matches(owner.lower(), architectures, n=1, cutoff=_SAME)
    return bool(owner and rest) and "/" not in rest and not near


def unknown(name: str) -> str:
    """Return the sentence for an encoder that nobody knows: nearest first, then this machine's."""
    published = list(pretrained.table())
    same = [other for other in published if other.lower().startswith(f"{name.lower()}/")]
    here = [BUNDLED, *cached_encoders()]
    return (
        f"No encoder {name!r}.{did_you_mean(name, [*here, *published, *_TUTORIALS], same)} "
        f"On this machine: {', '.join(here)}. {FULL_LIST}; a folder and hf-hub:organisation/name "
        "are names too."
    )


def did_you_mean(name: str, known: Sequence[str], first: Sequence[str] = ()) -> str:
    """Return a question with at most three near names, or nothing; `first` are near in any case."""
    lower = {other.lower(): other for other in reversed(known)}
    near = [lower[found] for found in get_close_matches(name.lower(), lower, n=3, cutoff=_CUTOFF)]
    best = list(dict.fromkeys([*first, *near]))[:3]
    return f" Did you mean {' or '.join(best)}?" if best else ""
