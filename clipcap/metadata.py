"""A `metadata.csv`, `.jsonl` or `.parquet` as ImageFolder has it in, captions by file name out.

Also what a caption looks like in a table: text, a list of it, or a struct with the raw sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import csvrows
from clipcap.sample import caption_text

NAMES: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MOST_BYTES: Final = 2**28  # ten million short captions
BROKEN: Final = (ValueError, OSError, RecursionError, pa.ArrowException)
"""What reading a file raises that is no such table."""
_FILE: Final = "file_name"
_COLUMNS: Final = ("caption", "captions", "text", "texts", "sentence", "sentences", "description")
_INSIDE: Final = ("raw", *_COLUMNS)  # of a struct: `sentences` of COCO are such


def caption_column(names: Iterable[str]) -> str:
    """Return the column that captions usually stand in, or `""`."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in _COLUMNS if name in by_lower), "")


def captions(cell: object) -> tuple[str, ...]:
    """Return the captions in one cell, each once."""
    return tuple(dict.fromkeys(text for text in map(caption_text, _texts(cell)) if text))


def _texts(cell: object) -> Iterator[str]:
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, dict):
        inside = next((cell[name] for name in _INSIDE if name in cell), None)
        yield from _texts(inside)
    elif isinstance(cell, list):
        for one in cell:
            yield from _texts(one)


def by_file(name: str, data: bytes, *, column: str = "") -> dict[str, tuple[str, ...]] | None:
    """Return the captions of every file that a metadata file names; None if it names none.

    Args:
        name: its file name, whose ending says what it is.
        data: its bytes.
        column: where the captions stand; empty: where they usually do.

    Raises:
        BROKEN: it is not what its name says.
    """
    rows = list(_rows(name, data))
    if not rows or not any(_FILE in row for row in rows):
        return None
    text = column or caption_column(rows[0])
    return {row[_FILE]: captions(row.get(text)) for row in rows if isinstance(row.get(_FILE), str)}


def _rows(name: str, data: bytes) -> Iterator[Mapping[str, Any]]:
    ending = name.rpartition(".")[2].lower()
    if ending == "parquet":
        yield from pq.read_table(pa.BufferReader(data)).to_pylist()
        return
    text = data.decode("utf-8-sig")
    if ending == "csv":
        yield from csvrows.records(text)
        return
    for line in text.split("\n"):  # a caption may hold other ends of lines, such as U+2028
        row = json.loads(line) if line.strip() else {}
        if not isinstance(row, dict):
            raise ValueError("a line of it is no JSON object")  # noqa: TRY004 - of the file
        yield row
