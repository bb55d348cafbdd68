"""CSV text in, its rows out; a quote that is not closed, which would swallow rows, is an error."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _csv import Reader


def cells(text: str, delimiter: str = ",", *, quoted: bool = True) -> list[list[str]]:
    """Return the cells of every row that is not empty.

    Args:
        text: the whole file.
        delimiter: what stands between two cells.
        quoted: whether quotes around a cell are no part of it; else they are text as any other.

    Raises:
        ValueError: it is malformed; says the line.
    """
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    return [row for row in _whole(rows, rows) if row]


def records(text: str, delimiter: str = ",") -> list[dict[str | Any, str | Any]]:
    """Return the rows by the names in the first one, as `csv.DictReader` does.

    Raises:
        ValueError: it is malformed; says the line.
    """
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return _whole(rows, rows.reader)


def _whole(rows: Iterable[Any], reader: Reader) -> list[Any]:
    try:
        return list(rows)
    except csv.Error as error:
        hint = "a quote within a quoted cell must be doubled"
        raise ValueError(f"line {reader.line_num}: {error} ({hint})") from error
