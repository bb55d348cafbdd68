"""A folder, bucket or prefix in, one sample per file out, with the captions that lie beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from clipcap import files, storage
from clipcap import samples as form
from clipcap.errors import SettingsError
from clipcap.files import FileSettings
from clipcap.sample import Sample


class Settings(FileSettings):
    """Which files of a folder are looked at."""

    url: str
    """Folder, `s3://bucket/prefix` or any other fsspec URL."""
    only: str = ""
    """Folder below it, such as `2026/11`, outside of which nothing is listed."""


def batches(settings: Settings) -> Iterator[pa.RecordBatch]:
    """Yield every file, in no order; sidecars ride with their image.

    Raises:
        StorageError: the folder or bucket is not there or may not be listed.
        SettingsError: the captions file is not of a known form.
    """
    root = storage.canonical(settings.url)
    return files.batches(storage.list_batches(_below(root, settings)), root, settings)


def _below(root: str, settings: Settings) -> str:
    if not settings.only:
        return root
    below = storage.canonical(f"{settings.url.rstrip('/')}/{settings.only}")
    if not below.startswith(f"{root}/") or ".." in settings.only.split("/"):
        raise SettingsError(
            f"`only` must name a folder below the source {settings.url}, but is {settings.only!r}."
        )
    return below


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every file once, sorted by URL; holds them all: a night asks for `batches` instead.

    Raises:
        StorageError: the folder or bucket is not there or may not be listed.
        SettingsError: the captions file is not of a known form.
    """
    return form.in_order(batches(settings))
