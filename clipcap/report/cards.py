"""Rows of images with their captions and labels in; cards with a small picture each out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import ahead, commits, layout, manifest, storage, tables, thumbnails, workers
from clipcap.errors import ImageError, StorageError, TransientStorageError
from clipcap.layout import Shard
from clipcap.workers import WorkerSettings

_READS: Final = 4
_LABELS: Final = 4
_CANDIDATES: Final = 5
_MANIFEST: Final = [
    "image_id", "source_uri", "member_offset", "member_bytes", "width", "height", "exif",
    "taken_at", "flags",
]  # fmt: skip
_NOTHING: Final = dict.fromkeys(
    ("caption", "clip_score", "reference_captions", "candidates", "review_reasons")
)


@dataclass(frozen=True, slots=True)
class Label:
    """One label of a card; `score` is 0 to 1."""

    label_set: str
    name: str
    score: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class Card:
    """One image as the report shows it; `picture` is a data URI, empty if it cannot be shown."""

    picture: str
    name: str
    source_uri: str
    caption: str
    clip_score: float | None
    reasons: tuple[str, ...]
    labels: tuple[Label, ...]
    candidates: tuple[tuple[str, float | None], ...]
    references: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """One image that the report shows: its manifest and caption columns, and its labels by rank."""

    shard: Shard
    row: Mapping[str, Any]
    labels: Sequence[Label]


def find(out: str, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Seen]:
    """Return where pictures lie, by `image_id`; of images that are live still.

    Args:
        out: the canonical URL of the output.
        told: by image, what its card shall say: columns of the captions table, or none.
    """
    ids = pa.array(list(told), pa.string())
    found: dict[str, Seen] = {}
    for shard in manifest.shards(out):
        if len(found) == len(told):
            break
        table = tables.read(layout.manifest(out, shard), _MANIFEST)
        for row in table.filter(pc.is_in(table["image_id"], value_set=ids)).to_pylist():
            image_id = row["image_id"]
            found[image_id] = Seen(shard, {**row, **_NOTHING, **told[image_id]}, ())
    return found


def cards(out: str, seen: Sequence[Seen]) -> list[Card]:
    """Read, shrink and describe images, several at a time, in order."""
    tars = {shard: _tar(out, shard) for shard in {one.shard for one in seen}}
    files = ahead.mapped(lambda one: _bytes(tars[one.shard], one), seen, threads=_READS)
    pictures = workers.pool(thumbnails.__name__, WorkerSettings()).each({}, files)
    return [
        _card(one, "" if isinstance(picture, ImageError) else picture)
        for one, picture in zip(seen, pictures, strict=True)
    ]


def _tar(out: str, shard: Shard) -> str:
    """Return where the images of a shard lie."""
    found = commits.find(layout.manifest(out, shard))
    return manifest.tar_url(out, shard, found.metadata if found else {})


def _bytes(tar: str, seen: Seen) -> bytes:
    """Return an image as it lies; nothing if it is gone, which the page shows in its place."""
    try:
        return storage.read_range(tar, seen.row["member_offset"], seen.row["member_bytes"])
    except TransientStorageError:
        raise
    except StorageError:  # `verify` says why
        return b""


def _card(seen: Seen, picture: str) -> Card:
    row = seen.row
    candidates = row["candidates"] or []
    return Card(
        picture=picture,
        name=_name(row["source_uri"]),
        source_uri=row["source_uri"],
        caption=row["caption"] or "",
        clip_score=row["clip_score"],
        reasons=tuple(reason.replace("_", " ") for reason in row["review_reasons"] or ()),
        labels=tuple(seen.labels),
        candidates=tuple((one["text"], one["clip_score"]) for one in candidates[1:_CANDIDATES]),
        references=tuple(row["reference_captions"] or ()),
        facts=tuple(_facts(row)),
    )


def _name(source_uri: str) -> str:
    name = source_uri.rpartition("/")[2]
    return unquote(name) if source_uri.startswith("file://") else name


def _facts(row: Mapping[str, Any]) -> Iterable[str]:
    yield f"{row['width']} x {row['height']} px"
    if row["taken_at"]:
        yield f"taken {row['taken_at']:%Y-%m-%d %H:%M}"
    exif = json.loads(row["exif"] or "{}")
    if camera := " ".join(str(exif[name]) for name in ("Make", "Model") if name in exif):
        yield camera
    yield from (flag.replace("_", " ") for flag in row["flags"] or ())


def best_labels(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Label]]:
    """Return a few labels of each image, accepted ones first, then by score."""
    found: dict[str, list[Label]] = {}
    for row in rows:
        label = Label(row["label_set"], row["label"], row["score"], row["accepted"])
        found.setdefault(row["image_id"], []).append(label)
    return {
        image_id: sorted(labels, key=lambda one: (not one.accepted, -one.score))[:_LABELS]
        for image_id, labels in found.items()
    }
