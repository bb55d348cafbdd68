"""A file of images that must keep their labels in, each with its place and label out.

CSV, JSON (a list of objects) or Parquet, written by hand; every problem is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import csvrows, storage
from clipcap.errors import NotFoundError, SettingsError
from clipcap.labels import bank
from clipcap.metadata import BROKEN
from clipcap.stability import NONE

_MOST: Final = 1_000
_SHOWN: Final = 3
_COLUMNS: Final = ("image", "label", "label_set")
_EXAMPLE: Final = """A correct one is:
    image,label,label_set
    canaries/beach.jpg,beach,scene_places
    canaries/blank.png,,scene_places"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A line of the file: an image, where it lies, and which label it must have."""

    image: str
    url: str
    label_set: str
    label: str
    """Empty: none of these."""


def read(file: str, label_sets: Sequence[str]) -> list[Wanted]:
    """Return the lines of a file of canaries; paths in it begin where it lies itself.

    Args:
        file: CSV, JSON (a list of objects) or Parquet with the columns `image`, `label` and, where
            there are several label sets, `label_set`.
        label_sets: those of the night.

    Raises:
        SettingsError: it is not there, malformed, or names a label or label set that is not known;
            every problem is told.
    """
    try:
        rows = _rows(file, storage.read(storage.canonical(file)))
    except NotFoundError as error:
        raise SettingsError(f"The file of canaries {file} is not there.") from error
    except BROKEN as error:
        raise SettingsError(
            f"The canaries in {file} must be CSV, JSON (a list of objects) or Parquet, but cannot "
            f"be read: {error}. {_EXAMPLE}"
        ) from error
    names = {given.label_set.name: given.label_set.names for given in map(bank.load, label_sets)}
    problems = list(_problems(rows, names))
    if problems:
        shown = "\n  ".join(problems[: 5 * _SHOWN])
        raise SettingsError(f"The canaries in {file} have {len(problems)} problems:\n  {shown}\n"
                            f"{_EXAMPLE}")  # fmt: skip
    folder = storage.canonical(file).rpartition("/")[0]
    only = next(iter(names))
    return [
        Wanted(
            row["image"], _url(row["image"], folder), row.get("label_set") or only,
            row.get("label") or NONE,
        )
        for row in rows
    ]  # fmt: skip


def _rows(file: str, data: bytes) -> list[dict[str, str]]:
    if file.lower().endswith(".parquet"):
        found: Any = pq.read_table(pa.BufferReader(data)).to_pylist()
    elif data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")):
        found = json.loads(data.decode("utf-8-sig"))
    else:
        lines = csvrows.records(data.decode("utf-8-sig"))
        found = [{name: cell for name, cell in row.items() if cell is not None} for row in lines]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("it is no list of objects")
    return [
        {str(name).strip(): "" if cell is None else str(cell).strip() for name, cell in row.items()}
        for row in found
    ]


def _problems(
    rows: Sequence[Mapping[str, str]], names: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    if not 0 < len(rows) <= _MOST:
        yield f"there must be 1 to {_MOST:,} canaries, but there are {len(rows):,}"
    if not names:
        yield "the night has no label set, so no label can be kept"
        return
    for number, row in enumerate(rows, start=1):
        if problem := _problem(row, names):
            yield f"row {number} {problem}"


def _problem(row: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> str:
    """Return what is wrong with a row; empty: nothing."""
    label_set = row.get("label_set") or (next(iter(names)) if len(names) == 1 else "")
    if not {"image", "label"} <= row.keys() <= set(_COLUMNS):
        return f"must have `image`, `label` and maybe `label_set`, but has {', '.join(row)}"
    if not row["image"]:
        return "names no image"
    if label_set not in names:
        known = ", ".join(names)
        return f"must name a label set of the night ({known}), but has {label_set!r}"
    if row["label"] and row["label"] not in names[label_set]:
        return f"has the label {row['label']!r}, which {label_set} has not"
    return ""


def _url(image: str, folder: str) -> str:
    is_whole = "://" in image or PurePosixPath(image).is_absolute()
    return storage.canonical(image if is_whole else f"{folder}/{image}")
