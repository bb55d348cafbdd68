"""The address of files that hold images in, those files out, and what a name of one inside says."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Final

import pyarrow.compute as pc

from clipcap import storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.objects import rows_of
from clipcap.sample import Bytes, Sample
from clipcap.storage import ObjectInfo

_LOG = logging.getLogger(__name__)
_HEAD: Final = 2  # too little to be taken for an image, even where it begins like one
_IMAGES: Final = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "avif", "tif", "tiff", "bmp", "dib"),
        *("heic", "heif", "jxl", "jp2", "ppm", "pgm", "pbm", "pnm", "ico", "svg", "psd"),
        *("image", "img"),
    )
)


@dataclass(frozen=True, slots=True)
class Place:
    """What was found at an address: the objects below `root`, or only the one that it names."""

    root: str
    pattern: str
    objects: tuple[ObjectInfo, ...]
    is_one: bool = False

    def name(self, found: ObjectInfo) -> str:
        """Return the path of an object below the root."""
        return storage.name_below(found.url, self.root)

    def meant(self) -> Iterator[ObjectInfo]:
        """Yield the objects that the address stands for."""
        for found in self.objects:
            if fnmatchcase(self.name(found), self.pattern):
                yield found


def place(url: str, *, leave_out: str | Sequence[str] = (), ending: str = "") -> Place:
    """Return what lies in a folder, or what a pattern (`*` crosses folders) or one URL stands for.

    With an `ending` (`.zip`, in small letters) no other objects, nor those that the pattern leaves
    out: of a bucket with millions of images, only its archives are held.

    Raises:
        StorageError: it is not there or may not be listed.
    """
    whole = storage.canonical(url)
    if found := storage.info(whole):
        return Place(whole.rpartition("/")[0], "*", (found,), is_one=True)
    glob = re.search(r"[*?[]", url)
    folder = url[: url.rfind("/", 0, glob.start()) + 1] if glob else url
    root = storage.canonical(folder or ".")
    left_out = storage.prefixes(leave_out)
    pattern = url[len(folder) :] if glob else "*"
    objects = _ending_so(root, pattern, ending) if ending else storage.list_objects(root)
    return Place(
        root,
        pattern,
        tuple(one for one in objects if not one.url.startswith(left_out)),
    )


def _ending_so(root: str, pattern: str, ending: str) -> list[ObjectInfo]:
    """Return the objects of such names, sorted by URL."""
    found = [
        one
        for batch in storage.list_batches(root)
        for one in rows_of(batch.filter(pc.ends_with(batch["url"], ending, ignore_case=True)))
        if fnmatchcase(storage.name_below(one.url, root), pattern)
    ]
    return sorted(found, key=attrgetter("url"))


def archives(url: str, ending: str, *, leave_out: str | Sequence[str] = ()) -> list[ObjectInfo]:
    """Return the archives of one kind (`ending` is `.zip`, ...) at an address, sorted by their URI.

    Raises:
        StorageError: there are none, or they may not be listed.
        SettingsError: the address is that of another file.
    """
    at = place(url, leave_out=leave_out, ending=ending)
    found = [one for one in at.meant() if one.url.lower().endswith(ending)]
    if at.is_one and not found:
        raise SettingsError(f"The file must have a name that ends in `{ending}`, but it is {url}.")
    if not found:
        raise NotFoundError(f"There is no `{ending}` file at {storage.canonical(url)}.")
    return sorted(found, key=lambda one: f"{one.url}#")


def refused(container: ObjectInfo, why: object) -> list[Sample]:
    """Return what stands for a container that cannot be taken whole: one sample that is no image.

    The log says why.
    """
    _LOG.warning("%s is refused: %s", container.url, why)
    size = min(container.size_bytes, _HEAD)
    at = Bytes(container.url, 0, size)
    return [Sample(container.url, container.etag, size, at, container.modified_at)]


def is_image(name: str) -> bool:
    """Tell whether a file is one of a picture by its name; its bytes are looked at later."""
    return name.rpartition(".")[2].lower() in _IMAGES


def is_hidden(name: str) -> bool:
    """Tell whether a path is one that tools leave behind."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") and part != "." for part in parts)
