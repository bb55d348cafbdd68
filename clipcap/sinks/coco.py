"""Captions in, one COCO results JSON out, for scorers: `[{"image_id": 42, "caption": "a cat"}]`."""

from __future__ import annotations

import json
import re
from typing import Final, Literal
from urllib.parse import unquote

import pyarrow as pa

from clipcap import settings as base
from clipcap import storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.sinks import Written

_NUMBER: Final = re.compile(r"(?:.*[^0-9])?([0-9]{1,18})", re.DOTALL)


class Settings(base.Settings):
    """Where the file goes, and where the numbers of the images are found."""

    url: str
    """The JSON file that is written, always as a whole."""
    mode: Literal["merge", "overwrite"] = "merge"
    """Keep what the file says of images that are not in the table, or hold the table alone."""
    annotations: str = ""
    """URL of COCO annotations whose `images` give each file name its number; empty: the number that
    the file name ends with (`COCO_val2014_000000000042.jpg` is 42)."""


def write(table: pa.Table, settings: Settings) -> Written:
    """Write captions as one file, sorted by number. `table` has `source_uri` and `caption`.

    Raises:
        SettingsError: an image has no number, two have the same, or the file is of another kind.
        StorageError: the file cannot be written.
    """
    captions = _by_number(table, settings)
    skipped = table.num_rows - len(captions)
    held = _held(settings.url) if settings.mode == "merge" else {}
    if captions.items() <= held.items():
        return Written(unchanged=len(captions), skipped=skipped)
    rows = [{"image_id": n, "caption": text} for n, text in sorted((held | captions).items())]
    storage.write(settings.url, json.dumps(rows, ensure_ascii=False, indent=0).encode())
    unchanged = len(captions.items() & held.items())
    return Written(len(captions) - unchanged, unchanged, skipped)


def _by_number(table: pa.Table, settings: Settings) -> dict[int, str]:
    numbers = _numbers(settings.annotations) if settings.annotations else None
    captions: dict[int, str] = {}
    columns = table.select(["source_uri", "caption"]).to_pydict()
    for uri, caption in zip(columns["source_uri"], columns["caption"], strict=True):
        if not caption:
            continue
        number = _number(uri, numbers)
        if number in captions:
            raise SettingsError(
                f"Each image must have a number of its own, but {uri} is the second with {number}. "
                "Give the file that numbers them: annotations."
            )
        captions[number] = caption
    return captions


def _held(url: str) -> dict[int, str]:
    try:
        return {row["image_id"]: row["caption"] for row in json.loads(storage.read(url))}
    except NotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"The file {url} must be COCO results to be added to, but is not: {error!r}. Use "
            "another address, or mode overwrite."
        ) from error


def _number(uri: str, numbers: dict[str, int] | None) -> int:
    name = unquote(uri).rpartition("/")[2]
    if numbers is not None and name in numbers:
        return numbers[name]
    found = _NUMBER.fullmatch(name.rpartition(".")[0])
    if numbers is not None or found is None:
        raise SettingsError(
            f"The image {uri} must have a COCO number, but {name!r} "
            + ("does not end with one." if numbers is None else "is not in the annotations.")
            + " Give the file that numbers it: annotations."
        )
    return int(found[1])


def _numbers(url: str) -> dict[str, int]:
    try:
        images = json.loads(storage.read(url))["images"]
        return {str(image["file_name"]).rpartition("/")[2]: int(image["id"]) for image in images}
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"The file {url} must be COCO annotations with `images`, but has no {error}."
        ) from error
