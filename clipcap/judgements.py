"""A file in which people called captions good or bad in, what they said of each image out, by name.

A table (Parquet, CSV, TSV, JSON) with a column that names the image, as files of captions have it,
and one of labels. With a column of captions a label counts only for the caption that was judged;
with one of captioners only for that captioner. `FROM review_queue` has both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import captionfiles, csvrows, imagenames, storage
from clipcap.errors import SettingsError

_LABELS: Final = ("label", "judgement", "judgment", "verdict", "rating", "good", "correct")
_GOOD: Final = frozenset(("good", "ok", "yes", "y", "true", "1", "correct", "right"))
_BAD: Final = frozenset(("bad", "no", "n", "false", "0", "incorrect", "wrong"))
_DELIMITERS: Final = "\t|,;"
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a person said of the caption of an image."""

    bad: bool
    caption: str | None
    """The caption that was judged; None where the file does not say."""


@dataclass(frozen=True, slots=True)
class Judgements:
    """What a file says of the images of an output, and how much of it could not be used."""

    by_image: Mapping[str, Judgement]
    unmatched: int
    """Labels of images that the output does not have."""
    of_others: int
    """Labels of captions by other captioners."""
    sha256: str
    """Digest of the file."""

    def of(self, captions: pa.Table) -> pa.Table:
        """Return those rows of a captions table whose captions are the ones that were judged."""
        pairs = zip(
            captions["image_id"].to_pylist(), captions["caption_raw"].to_pylist(), strict=True
        )
        held = [self.by_image[name].caption in (None, text.strip()) for name, text in pairs]
        return captions.filter(pa.array(held, pa.bool_()))


def read(url: str, out: str, *, captioner_id: str) -> Judgements:
    """Return what people said of the captions that a captioner wrote for images of an output.

    Raises:
        SettingsError: the file is of no known form, a label is neither good nor bad, or one image
            is both.
        NotFoundError: there is no such file.
    """
    data = storage.read(storage.canonical(url))
    rows = _parsed(data, url)
    name_column, label_column = (
        _column(rows, usual, url) for usual in (captionfiles.NAMES, _LABELS)
    )
    names = imagenames.Names(out)
    found: dict[str, Judgement] = {}
    unmatched, of_others = 0, 0
    for row in rows:
        label = _text(row[label_column])
        if not label:
            continue
        if _text(row.get("captioner_id")) not in ("", captioner_id):
            of_others += 1
            continue
        image_id = names.find(_text(row[name_column]))
        if image_id is None:
            unmatched += 1
            continue
        judged = Judgement(_is_bad(label, url), _text(row.get("caption")) or None)
        if found.setdefault(image_id, judged).bad != judged.bad:
            raise SettingsError(
                f"An image must have one label, but {_text(row[name_column])!r} is both good and "
                f"bad in {url}."
            )
    return Judgements(found, unmatched, of_others, hashlib.sha256(data).hexdigest())


def _text(cell: object) -> str:
    return "" if cell is None else str(cell).strip()


def _is_bad(label: str, url: str) -> bool:
    word = label.lower().removesuffix(".0")
    if word not in _GOOD | _BAD:
        raise SettingsError(
            f"A label must be good or bad ({', '.join(sorted(_GOOD))}; {', '.join(sorted(_BAD))}), "
            f"but {url} has {label[:80]!r}."
        )
    return word in _BAD


def _parsed(data: bytes, url: str) -> list[dict[str, Any]]:
    """Return the rows of a table, its columns in small letters."""
    try:
        rows = _rows(data)
        return [{str(name).strip().lower(): cell for name, cell in row.items()} for row in rows]
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"The labels in {url} must be a table: Parquet, CSV or TSV in UTF-8, or a JSON list of "
            f"objects, but cannot be read so: {error}."
        ) from error


def _rows(data: bytes) -> list[dict[str, Any]]:
    if data.startswith(b"PAR1"):
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data)).to_pylist()
        return rows
    text = data.decode("utf-8-sig")
    if text.lstrip()[:1] == "[":
        return list(json.loads(text))
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    return csvrows.records(text, delimiter)


def _column(rows: list[dict[str, Any]], usual: tuple[str, ...], url: str) -> str:
    there = {name for row in rows for name in row}
    found = next((name for name in usual if name in there), None)
    if found is None:
        raise SettingsError(
            f"The labels in {url} must have a column that names the image ("
            f"{', '.join(captionfiles.NAMES[:_SHOWN])} ...) and one of labels "
            f"({', '.join(_LABELS[:_SHOWN])} ...), but the columns are: "
            f"{', '.join(sorted(there)[:20]) or 'none'}."
        )
    return found
