"""A file of captions and the images of an output in, the captions of each image out, by its name.

Read are COCO's JSON (also Karpathy's), Flickr8k.token.txt, Flickr30k's results, Conceptual
Captions' TSV without a header, and Parquet, CSV, TSV or JSON with a column that names the image and
one with a caption or a list of them. An image is known by its `image_id`, its key, its address or,
where only one image of the output has it, its file name. Nothing is joined by position.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import layout, manifest, storage, tables
from clipcap.errors import SettingsError
from clipcap.sample import caption_text

log = logging.getLogger(__name__)

_NAMES: Final = (
    *("key", "source_uri", "url", "image_url", "file_name", "filename", "file", "image"),
    *("image_name", "image_path", "filepath", "path", "image_id"),
)
_TEXTS: Final = ("caption", "captions", "reference_captions", "text", "comment", "sentence", "raw")
_DELIMITERS: Final = "\t|,;"
_FLICKR: Final = re.compile(r"(.+)#\d+\t(.*)")  # 1000268201_693b08cb0e.jpg#0	A child ...
_PART: Final = re.compile(r"[/#\\]")

Told = Iterable[tuple[str, object]]
"""The name of an image with a caption, or a list of them."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The captions of each image, and how many could not be used."""

    captions: dict[str, list[str]]
    """By `image_id`, in the order of the file."""
    unmatched: int
    """Captions whose image the output does not have."""
    blank: int
    """Captions that say nothing."""


def join(url: str, out: str) -> Joined:
    """Return the captions of a file that belong to live images of an output.

    Raises:
        SettingsError: the file is of no known form or not UTF-8, a file name is of several images,
            or no caption belongs to an image.
        NotFoundError: there is no such file.
    """
    told = list(read(storage.canonical(url)))
    names = _Names(out)
    found: dict[str, list[str]] = {}
    unmatched, blank = 0, 0
    for name, given in told:
        image_id = names.find(name)
        texts = [caption_text(t) for t in _listed(given)]
        spoken = [text for text in texts if text]
        blank += len(texts) - len(spoken)
        if image_id is None:
            unmatched += len(spoken)
        elif spoken:
            found.setdefault(image_id, []).extend(spoken)
    if not found:
        shown = f"the first is of {told[0][0]!r}" if told else "it holds none"
        raise SettingsError(
            f"The captions in {url} must be of images of {out}, but none is ({shown}; the output "
            f"has {names.example!r}). An image is named by its key, its address or its file name."
        )
    if unmatched + blank:
        log.warning(
            "%s: %d captions are of no image of the output, %d are blank; %d images have captions",
            url, unmatched, blank, len(found),
        )  # fmt: skip
    captions = {image_id: list(dict.fromkeys(texts)) for image_id, texts in found.items()}
    return Joined(captions, unmatched, blank)


class _Names:
    """Every name that the live images of an output go by."""

    def __init__(self, out: str) -> None:
        self._exact: dict[str, str] = {}
        self._files: dict[str, list[str]] = {}
        self._addresses: dict[str, str] = {}
        for shard in manifest.shards(out):
            columns = ["image_id", "key", "source_uri"]
            for row in tables.read(layout.manifest(out, shard), columns=columns).to_pylist():
                image_id, address = row["image_id"], row["source_uri"]
                for name in (image_id, row["key"], address, unquote(address)):
                    self._exact[name] = image_id
                self._files.setdefault(_file_name(address), []).append(image_id)
                self._addresses[image_id] = address

    @property
    def example(self) -> str:
        """One file name of the output."""
        return next(iter(self._files), "no image")

    def find(self, name: str) -> str | None:
        """Return the image of a name.

        Raises:
            SettingsError: a file name that several images have.
        """
        if (exact := self._exact.get(name)) is not None:
            return exact
        if "://" in name:  # pages of several sites may end alike
            return self._exact.get(_canonical(name))
        images = self._files.get(_PART.split(name)[-1], [])
        if len(images) > 1:
            first, second = (self._addresses[one] for one in images[:2])
            raise SettingsError(
                f"A caption must name one image, but {name!r} is the file name of "
                f"{len(images)} images of the output ({first}, {second}). Name the images by key "
                "or by address in the captions."
            )
        return images[0] if images else None


def _file_name(address: str) -> str:
    return unquote(_PART.split(address)[-1])


def _canonical(address: str) -> str:
    try:
        return storage.canonical(address)
    except SettingsError:
        return ""


def _listed(given: object) -> list[str]:
    cells = given if isinstance(given, list) else [given]
    return ["" if cell is None else str(cell) for cell in cells]


def read(url: str) -> Told:
    """Yield the captions of a file with the names of their images.

    Raises:
        SettingsError: it is of no known form, or not UTF-8.
        NotFoundError: it is not there.
    """
    data = storage.read(url)
    try:
        if data.startswith(b"PAR1"):
            return _parquet(data)
        text = data.decode("utf-8-sig")
        return _of_json(json.loads(text)) if text.lstrip()[:1] in ("{", "[") else _of_text(text)
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The captions in {url} must be UTF-8, but byte {error.start} is none. If they are "
            f"Latin-1: `iconv -f latin1 -t utf-8 {url.rpartition('/')[2]}`."
        ) from error
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise SettingsError(
            f"The captions in {url} must be COCO's JSON, Flickr's or Conceptual Captions' text, or "
            f"a table with a column that names the image and one of captions, but: {error}."
        ) from error


def _parquet(data: bytes) -> Told:
    file = pq.ParquetFile(pa.BufferReader(data))
    return _table(file.schema_arrow.names, lambda name: file.read([name]).column(0).to_pylist())


def _table(columns: Sequence[str], cells: Callable[[str], list[Any]]) -> Told:
    """Pair the cells of the first known column of names with those of captions."""
    by_lower = {column.strip().lower(): column for column in reversed(columns)}
    found = [
        next((by_lower[name] for name in usual if name in by_lower), None)
        for usual in (_NAMES, _TEXTS)
    ]
    if found[0] is None or found[1] is None:
        raise ValueError(f"the columns are {', '.join(column[:80] for column in columns[:20])}")
    names, texts = cells(found[0]), cells(found[1])
    return [(str(name).strip(), text) for name, text in zip(names, texts, strict=True)]


def _of_json(value: Any) -> Told:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        return list(_coco(value))
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        return [
            (str(image["filename"]), [sentence["raw"] for sentence in image["sentences"]])
            for image in value["images"]
        ]
    if isinstance(value, list):
        columns = list(dict.fromkeys(name for row in value for name in row))
        return _table(columns, lambda name: [row.get(name) for row in value])
    if value and all(isinstance(texts, str | list) for texts in value.values()):
        return list(value.items())
    raise ValueError(f"an object of {', '.join(map(repr, list(value)[:8])) or 'nothing'}")


def _coco(value: dict[str, Any]) -> Iterator[tuple[str, object]]:
    names = {image["id"]: str(image["file_name"]) for image in value.get("images", [])}
    for annotation in value["annotations"]:
        image = annotation["image_id"]
        yield names.get(image, str(image)), annotation["caption"]


def _of_text(text: str) -> Told:
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    first = lines[0] if lines else ""
    if _FLICKR.fullmatch(first):
        return [_flickr(line) for line in lines]
    if _is_conceptual(first):
        cells = [line.rstrip("\n").split("\t") for line in lines]
        return [(row[-1].strip(), row[0]) for row in cells]
    delimiter = max(_DELIMITERS, key=first.count)
    lines_of = partial(csv.reader, io.StringIO(text, newline=""), delimiter=delimiter)
    quoted = delimiter in ",;"
    rows = lines_of() if quoted else lines_of(quoting=csv.QUOTE_NONE)
    names = next(rows, [])
    body = [row for row in rows if row]

    def column(name: str) -> list[str | None]:
        at = names.index(name)
        return [row[at] if at < len(row) else None for row in body]

    return _table(names, column)


def _flickr(line: str) -> tuple[str, str]:
    found = _FLICKR.fullmatch(line)
    if found is None:
        raise ValueError(f"a line without `#N` and a tab behind the file name: {line[:80]!r}")
    return found[1], found[2]


def _is_conceptual(line: str) -> bool:
    """Tell a row `caption<tab>address` from a header."""
    cells = line.split("\t")
    return len(cells) == 2 and cells[1].strip().startswith(("http://", "https://"))
