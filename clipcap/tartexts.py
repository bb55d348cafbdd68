"""WebDataset tars with text in, captions with the names of their images out, one tar at a time.

`.txt` (or `.caption`) and `.json` beside images, as img2dataset writes them. An image is named by
`image_id`, `url` or `key` of the `.json`, the address of its member, or the key of its sample.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from clipcap import ahead, containers, references
from clipcap.errors import NotFoundError
from clipcap.sources import tars
from clipcap.storage import ObjectInfo

log = logging.getLogger(__name__)

_NAMING: Final = ("image_id", "url", "key")
_THREADS: Final = 4  # tars that are read beside each other; the captions of so many are held

Sample = tuple[list[str], list[str]]


def read(url: str) -> Iterator[Sample]:
    """Yield the names of each sample, best first, and its captions; one that is broken is blank.

    Raises:
        SettingsError: what is there is no tar, or a tar is cut or compressed.
        NotFoundError: there is no file and no tar.
        StorageError: the store refused.
    """
    try:
        found = containers.archives(url, ".tar")
    except NotFoundError as error:
        raise NotFoundError(
            f"There are no captions at {url}: no file, and no `.tar` in it or like it."
        ) from error
    for samples in ahead.mapped(_of_tar, found, threads=_THREADS):
        yield from samples


def _of_tar(tar: ObjectInfo) -> list[Sample]:
    broken: list[str] = []
    found = [_sample(tar, *sample, broken) for sample in tars.texts(tar)]
    if broken:
        log.warning(
            "%s: the captions of %d samples cannot be read, the first of %s", tar.url, len(broken),
            broken[0],
        )  # fmt: skip
    return found


def _sample(
    tar: ObjectInfo, files: list[str], texts: list[tuple[str, bytes]], broken: list[str]
) -> Sample:
    """Return the names and captions of one sample; adds its key to `broken` where a file is."""
    key, *members = files
    told: dict[str, Any] = {}
    captions: list[str] = []
    try:
        for suffix, data in texts:
            captions += references.captions_of(suffix, data)
            whole = json.loads(data.decode("utf-8-sig")) if suffix == "json" else None
            told |= whole if isinstance(whole, dict) else {}
    except (ValueError, RecursionError):
        broken.append(key)
        captions = [""]
    names = [str(told[name]) for name in _NAMING if isinstance(told.get(name), str | int)]
    addresses = [f"{tar.url}#{quote(name, safe='/', errors='surrogateescape')}" for name in members]
    return [name for name in (*names, *addresses, key) if name], list(dict.fromkeys(captions))
