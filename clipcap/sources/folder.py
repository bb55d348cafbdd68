"""A folder, bucket or prefix in, one sample per file out, with the captions that lie beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from clipcap import settings as base
from clipcap import storage
from clipcap.errors import SettingsError
from clipcap.sample import Bytes, Sample, Sidecar, caption_text
from clipcap.settings import digest

OURS: Final = (".clipcap.txt", ".clipcap.json")
"""Endings of the sidecars that the project itself writes: never read as captions by people."""
_SIDECARS: Final = ("txt", "json")


class Settings(base.Settings):
    """Which files of a folder are looked at."""

    url: str
    """Folder, `s3://bucket/prefix` or any other fsspec URL."""
    glob: str = ""
    """Keep only files whose path below it matches, such as `2026/*.jpg`; `*` crosses folders."""
    leave_out: str = ""
    """URL of a folder below the source that is not looked at: the output, where it lies inside."""
    sidecars: bool = True
    """Keep `.txt` and `.json` files beside an image (`cat.jpg`: `cat.txt` or `cat.jpg.txt`)."""
    captions: str = ""
    """URL of COCO JSON (`images`, `annotations`) or of a JSON object: file name to captions."""


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every file once, sorted by URL; sidecars ride with their image.

    Raises:
        StorageError: the folder or bucket is not there or may not be listed.
        SettingsError: the captions file is not of a known form.
    """
    root = storage.canonical(settings.url)
    captions = _captions(settings.captions) if settings.captions else {}
    seen = [found for found in storage.list_objects(root) if not _is_left_out(found.url, settings)]
    beside = _sidecars(seen) if settings.sidecars else {}
    for found in seen:
        if not fnmatchcase(storage.name_below(found.url, root), settings.glob or "*"):
            continue  # only now: a glob for images does not match what lies beside them
        ending = found.url.rpartition(".")[2].lower()
        if ending in _SIDECARS and found.url in beside.get("", {}):
            continue
        own = _beside(found.url, beside)
        name = storage.name_below(found.url, root)
        texts = captions.get(name) or captions.get(name.rpartition("/")[2], ())
        yield Sample(
            source_uri=found.url,
            etag=_version(found.etag, own, texts),
            size_bytes=found.size_bytes,
            at=Bytes(found.url),
            modified_at=found.modified_at,
            captions=texts,
            sidecars=tuple(
                Sidecar(suffix, Bytes(info.url, 0, info.size_bytes)) for suffix, info in own
            ),
        )


def _is_left_out(url: str, settings: Settings) -> bool:
    if url.endswith(OURS) or (settings.captions and url == storage.canonical(settings.captions)):
        return True
    folder = settings.leave_out
    return bool(folder) and url.startswith(f"{storage.canonical(folder)}/")


def _stems(url: str) -> tuple[str, str]:
    """Return what a sidecar of `url` may be called before its own ending."""
    folder, _, name = url.rpartition("/")
    return url, f"{folder}/{name.rpartition('.')[0] or name}"


def _sidecars(found: list[storage.ObjectInfo]) -> dict[str, dict[str, storage.ObjectInfo]]:
    """Return sidecars by suffix and stem; under the suffix `""`, by their own URL."""
    images = {
        stem
        for info in found
        if info.url.rpartition(".")[2].lower() not in _SIDECARS
        for stem in _stems(info.url)
    }
    beside: dict[str, dict[str, storage.ObjectInfo]] = {suffix: {} for suffix in ("", *_SIDECARS)}
    for info in found:
        stem, _, suffix = info.url.rpartition(".")
        if suffix.lower() in _SIDECARS and stem in images:
            beside[suffix.lower()][stem] = info
            beside[""][info.url] = info
    return beside


def _beside(
    url: str, beside: dict[str, dict[str, storage.ObjectInfo]]
) -> list[tuple[str, storage.ObjectInfo]]:
    found = []
    for suffix in _SIDECARS:
        by_stem = beside.get(suffix, {})
        info = next((by_stem[stem] for stem in _stems(url) if stem in by_stem), None)
        if info is not None:
            found.append((suffix, info))
    return found


def _version(
    etag: str, sidecars: list[tuple[str, storage.ObjectInfo]], captions: tuple[str, ...]
) -> str:
    parts = [etag, *(f"{suffix}={info.etag}" for suffix, info in sidecars)]
    if captions:
        parts.append(f"captions={digest(list(captions))[:16]}")
    return "+".join(parts)


def _captions(url: str) -> dict[str, tuple[str, ...]]:
    """Return captions by file name, from COCO annotations or a plain JSON object.

    Raises:
        SettingsError: the file is neither.
    """
    try:
        loaded = json.loads(storage.read(storage.canonical(url)))
    except ValueError as error:
        raise SettingsError(
            f"The captions file {url} must be JSON, but is not: {error}."
        ) from error
    grouped: dict[str, list[str]] = {}
    try:
        if "annotations" in loaded:
            names = {image["id"]: image["file_name"] for image in loaded["images"]}
            for row in loaded["annotations"]:
                grouped.setdefault(names[row["image_id"]], []).append(str(row["caption"]))
        else:
            plain = loaded.get("captions", loaded)
            for name, texts in plain.items():
                grouped[name] = [texts] if isinstance(texts, str) else [str(text) for text in texts]
    except (KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"The captions file {url} must be COCO annotations (`images`, `annotations`) or an "
            f"object from file name to a list of captions, but has no {error}."
        ) from error
    return {
        name: tuple(caption_text(text) for text in texts if text.strip())
        for name, texts in grouped.items()
    }
