"""Rows of images with their captions and labels in; cards with a small picture each out."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from clipcap import images, layout, storage
from clipcap.errors import ImageError, StorageError, TransientStorageError
from clipcap.images import ImageSettings
from clipcap.layout import Shard

SIDE_PX: Final = 160
_DRAFT_PX: Final = 2 * SIDE_PX  # Pillow's draft at twice the size: no visible loss
_ANY_SIZE: Final = ImageSettings(max_bytes=2**40, max_pixels=2**40, min_side_px=1)
_QUALITY: Final = 72  # about 5 KB a picture
_LABELS: Final = 4
_CANDIDATES: Final = 5


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


def cards(out: str, seen: Sequence[Seen]) -> list[Card]:
    """Read, shrink and describe images, several at a time, in order."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="report") as pool:
        pictures = pool.map(lambda one: _picture(out, one), seen)
        return [_card(one, picture) for one, picture in zip(seen, pictures, strict=True)]


def _picture(out: str, seen: Seen) -> str:
    row = seen.row
    try:
        data = storage.read_range(
            layout.tar(out, seen.shard), row["member_offset"], row["member_bytes"]
        )
        return thumbnail(data)
    except TransientStorageError:
        raise
    except (ImageError, StorageError):  # the page says so in its place; `verify` says why
        return ""


def thumbnail(data: bytes) -> str:
    """Return a JPEG of at most 160 pixels as a data URI.

    Raises:
        ImageError: it cannot be decoded.
    """
    turned = images.decode(data, _ANY_SIZE, draft_px=_DRAFT_PX)
    turned.thumbnail((SIDE_PX, SIDE_PX))
    turned.info.clear()  # else a comment in the file rides along
    stream = io.BytesIO()
    turned.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


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
