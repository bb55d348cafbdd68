"""An output in, the image that a name means out: by id, key, address, or what its file is called.

A file name or a number that several images have is refused as soon as it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote

from clipcap import layout, manifest, storage, tables
from clipcap.errors import SettingsError

_PART: Final = re.compile(r"[/#\\]")
_COCO: Final = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})")  # COCO_val2014_000000391895.jpg
_COCO_DIGITS: Final = 12


class Names:
    """Every name that the live images of an output go by."""

    def __init__(self, out: str) -> None:
        """Read the manifests of an output, by its canonical URL."""
        self._exact: dict[str, str] = {}
        self._files: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] = {}
        self._numbers: dict[str, list[str]] = {}
        self._addresses: dict[str, str] = {}
        for shard in manifest.shards(out):
            columns = ["image_id", "key", "source_uri"]
            for row in tables.read(layout.manifest(out, shard), columns=columns).to_pylist():
                image_id, address = row["image_id"], row["source_uri"]
                for name in (image_id, row["key"], address, unquote(address)):
                    self._exact[name] = image_id
                file_name = unquote(_PART.split(address)[-1])
                self._files.setdefault(file_name, []).append(image_id)
                stem = file_name.rpartition(".")[0] or file_name
                self._stems.setdefault(stem, []).append(image_id)
                if coco := _COCO.fullmatch(stem):
                    self._numbers.setdefault(coco[1], []).append(image_id)
                self._addresses[image_id] = address

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where each image came from, by `image_id`."""
        return self._addresses

    @property
    def example(self) -> str:
        """One file name of the output."""
        return next(iter(self._files), "no image")

    def first(self, names: Sequence[str]) -> str | None:
        """Return the image that one of several names means, best first; whole ones before parts.

        Raises:
            SettingsError: as of `find`.
        """
        whole = (self._exact[name] for name in names if name in self._exact)
        return next(whole, None) or next(filter(None, map(self.find, names)), None)

    def find(self, name: str) -> str | None:
        """Return the image of a name; that of a file may lack its ending, that of COCO its zeros.

        Raises:
            SettingsError: a file name that several images have.
        """
        if (exact := self._exact.get(name)) is not None:
            return exact
        if "://" in name:  # pages of several sites may end alike
            return self._exact.get(_canonical(name))
        file_name = _PART.split(name)[-1]
        images = self._files.get(file_name) or self._stems.get(file_name) or []
        if not images and name.isdecimal():
            images = self._numbers.get(name.zfill(_COCO_DIGITS), [])
        if len(images) > 1:
            images = self._below(name, images) or images
        if len(images) > 1:
            first, second = (self._addresses[one] for one in images[:2])
            raise SettingsError(
                f"A name must be that of one image, but {name!r} is the file name of "
                f"{len(images)} images of the output ({first}, {second}). Name the images by key, "
                "by address or by their path below the source."
            )
        return images[0] if images else None

    def _below(self, path: str, images: Sequence[str]) -> list[str]:
        """Return those images whose address ends with a path; none where it is a name alone."""
        if not _PART.search(path):
            return []
        end = _PART.sub("/", path).removeprefix("./").removeprefix("/")
        return [
            one
            for one in images
            if f"/{_PART.sub('/', unquote(self._addresses[one]))}".endswith(f"/{end}")
        ]


def _canonical(address: str) -> str:
    try:
        return storage.canonical(address)
    except SettingsError:
        return ""
