"""An output and the name of a captioner in, its captions beside what people wrote out, by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from clipcap import layout, manifest, tables
from clipcap.errors import NotFoundError, SettingsError
from clipcap.keys import path_name
from clipcap.layout import Shard

_CAPTIONS: Final = ["image_id", "content_sha256", "caption", "clip_score"]
_MANIFEST: Final = ["image_id", "content_sha256", "source_uri", "reference_captions"]

References = Mapping[str, Sequence[str]]
"""What people wrote for each image, by `image_id`."""


@dataclass(slots=True)
class Joined:
    """Captions beside references, one row an image, by `image_id`; and what could not be joined."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    recipes: set[str] = field(default_factory=set)
    """What the captions were made by, captioner, decoder, encoder; and judged by: `made_by`."""
    captioner_id: str = ""
    without_references: int = 0
    without_caption: int = 0


def captioners(out: str) -> list[str]:
    """Return the names of the captioners that an output has captions by."""
    folders = {layout.folder_of(found.url) for found in manifest.objects(out, "captions")}
    return sorted(folder.rpartition("/captioner=")[2] for folder in folders)


def choose(out: str, wanted: str | None) -> str:
    """Return the captioner that was asked for, or the only one.

    Raises:
        SettingsError: there are no captions, none by that captioner, or by several and none named.
    """
    here = captioners(out)
    if not here:
        raise SettingsError(
            f"There must be captions in {out} to judge, but there are none. "
            f"`clipcap caption {out}` writes some."
        )
    named = ", ".join(here)
    if wanted is None:
        if len(here) > 1:
            raise SettingsError(
                f"{out} has captions by several captioners: {named}. Choose one with --captioner."
            )
        return here[0]
    if (name := path_name(wanted)) in here:
        return name
    near = get_close_matches(name, here, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SettingsError(f"{out} has no captions by {wanted!r}.{hint} It has captions by: {named}.")


def joined(
    out: str, name: str, among: Sequence[str] = (), references: References | None = None
) -> Joined:
    """Return the images that have both references and a caption of the same content.

    Args:
        out: the canonical URL of the output.
        name: the captioner, as `choose` returns it.
        among: other captioners that must have captioned an image too.
        references: what people wrote, by `image_id`; None: the captions that images came with.

    Raises:
        SettingsError: there is no such image.
    """
    found = _by_one(out, name, references)
    had = len(found.rows)
    for other in among:
        theirs = {row["image_id"] for row in _by_one(out, choose(out, other), references).rows}
        found.rows = [row for row in found.rows if row["image_id"] in theirs]
    found.without_caption += had - len(found.rows)
    if had and not found.rows:
        named = ", ".join((name, *among))
        raise SettingsError(f"No image of {out} has captions by all of {named}, so none compares.")
    if not found.rows:
        raise SettingsError(_nothing(out, ", ".join((name, *among)), found))
    return found


def live(out: str, references: References | None) -> Iterator[tuple[Shard, list[dict[str, Any]]]]:
    """Yield each shard with its live images and what people wrote for them, which may be nothing.

    `references` as in `joined`.
    """
    for shard in manifest.shards(out):
        rows = tables.read(layout.manifest(out, shard), _MANIFEST).to_pylist()
        for row in rows:
            own = row["reference_captions"]
            texts = own if references is None else references.get(row["image_id"])
            row["reference_captions"] = [text for text in texts or () if text.strip()]
        yield shard, rows


def _by_one(out: str, name: str, references: References | None) -> Joined:
    found = Joined()
    for shard, rows in live(out, references):
        said = _captions(layout.captions(out, shard, captioner_id=name), found)
        for row in rows:
            caption = said.get((row["image_id"], row["content_sha256"]))
            if not row["reference_captions"]:
                found.without_references += caption is not None
            elif caption is None:
                found.without_caption += 1
            else:
                found.rows.append({**row, **caption})
    found.rows.sort(key=lambda row: str(row["image_id"]))
    return found


def _captions(url: str, joined: Joined) -> Mapping[tuple[str, str], dict[str, Any]]:
    try:
        table = tables.read(url, _CAPTIONS)
    except NotFoundError:
        return {}
    footer = tables.metadata(table)
    joined.models.add(footer.get("model_id", ""))
    joined.recipes.add(made_by(footer.get("recipe", ""), footer.get("review", "")))
    joined.captioner_id = footer.get("captioner_id", "")
    return {(row["image_id"], row["content_sha256"]): row for row in table.to_pylist()}


def made_by(recipe: str, review: str) -> str:
    """Return what captions come from: how they were made, and the rules that may hide some."""
    return f"{recipe} {review}".strip()


def _nothing(out: str, name: str, joined: Joined) -> str:
    if joined.without_caption:
        return (
            f"No image of {out} has both references and a caption by {name}: "
            f"{joined.without_caption} have references alone. Caption them first."
        )
    return (
        f"No image of {out} has captions that people wrote, so there is nothing to judge "
        f"{joined.without_references} captions by. Put a .txt or .json file beside each image and "
        "run `clipcap shard` again, or give a file of captions: --references FILE."
    )
