"""A sample in; what lies beside its image, and every caption that people wrote for it, out."""

from __future__ import annotations

import json
from typing import Any, Final

from clipcap.errors import ImageError
from clipcap.packed import Reader
from clipcap.sample import Bytes, Sample, caption_text

_MOST_BYTES: Final = 2**20  # a caption file of more than 1 MiB is none


Texts = tuple[list[tuple[str, bytes]], tuple[str, ...]]
"""The caption files of a sample by suffix, and every caption that it has."""


def read(sample: Sample, reader: Reader) -> Texts:
    """Return a sample's caption files as they are, and every caption they and its table hold.

    Raises:
        StorageError: the store refused.
        ImageError: a caption file cannot be read as one.
    """
    files: list[tuple[str, bytes]] = []
    captions = list(sample.captions)
    for sidecar in sample.sidecars:
        try:
            data = _read(sidecar.at, reader)
            captions += captions_of(sidecar.suffix, data)
        except (ValueError, RecursionError, ImageError) as error:
            message = f"{sidecar.at.url}: {type(error).__name__}: {error}"[:300]
            raise ImageError("bad_sidecar", message) from error
        files.append((sidecar.suffix, data))
    if captions and "txt" not in dict(files):
        files.append(("txt", "\n".join(captions).encode()))
    return files, tuple(dict.fromkeys(captions))


def _read(at: Bytes, reader: Reader) -> bytes:
    """Return the bytes of a caption file; one that is too long is not read.

    Raises:
        ValueError: it is too long.
    """
    if (at.length or 0) > _MOST_BYTES:
        raise ValueError(f"{at.length} bytes are more than {_MOST_BYTES}")
    return reader.read(at, _MOST_BYTES)


def captions_of(suffix: str, data: bytes) -> list[str]:
    """Return the captions in one file: lines of text, or `caption`, `captions`, `text` of JSON.

    Raises:
        ValueError: not UTF-8, not JSON.
    """
    text = data.decode("utf-8-sig")
    if suffix == "txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    loaded = json.loads(text)
    found: list[Any] = []
    for name in ("caption", "captions", "text"):
        value = loaded.get(name, []) if isinstance(loaded, dict) else []
        found += value if isinstance(value, list) else [value]
    return [caption_text(value) for value in found if isinstance(value, str) and value.strip()]
