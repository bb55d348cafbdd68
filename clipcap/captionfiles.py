"""A file of captions and the images of an output in, the captions of each image out, by its name.

Read are COCO's JSON (also Karpathy's), Flickr8k.token.txt, Flickr30k's results, Conceptual
Captions' TSV, and Parquet, CSV, TSV, JSON or JSON lines with a column that names the image and one
with a caption or a list of them; the original's pickles; and WebDataset tars with text. An image is
known by `image_id`, key, address or, where it is of one image, file name; never by position.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import csvrows, storage, tartexts
from clipcap.errors import SettingsError
from clipcap.imagenames import Names
from clipcap.sample import caption_text

log = logging.getLogger(__name__)

NAMES: Final = (
    *("key", "source_uri", "url", "image_url", "file_name", "filename", "file", "image"),
    *("image_name", "image_path", "filepath", "path", "image_id"),
)
_TEXTS: Final = ("caption", "captions", "reference_captions", "text", "comment", "sentence", "raw")
_DELIMITERS: Final = "\t|,;"
_FLICKR: Final = re.compile(r"(.+)#\d+\t(.*)")  # 1000268201_693b08cb0e.jpg#0	A child ...
KINDS: Final = "category"  # of labels; who asks for it means COCO's objects, not its captions
PICKLE: Final = b"\x80"  # how a pickle begins
MALFORMED: Final = (  # what is raised of a file that is of none of the forms
    *(pa.ArrowException, OSError, ValueError, LookupError, TypeError),
    *(AttributeError, RecursionError),  # JSON of other things than rows, or 1,000 levels deep
)

Told = Iterable[tuple[str | Sequence[str], object]]
"""The name of an image, or several, best first, with a caption or a list of them."""


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
    names = Names(out)
    found: dict[str, list[str]] = {}
    first, unmatched, blank = "", 0, 0
    for named, given in read(url):
        all_names = (named,) if isinstance(named, str) else named
        first = first or f"the first is of {all_names[0]!r}"
        image_id = names.first(all_names)
        texts = [caption_text(t) for t in _listed(given)]
        spoken = [text for text in texts if text]
        blank += len(texts) - len(spoken)
        if image_id is None:
            unmatched += len(spoken)
        elif spoken:
            found.setdefault(image_id, []).extend(spoken)
    if not found:
        raise SettingsError(
            f"The captions in {url} must be of images of {out}, but none is "
            f"({first or 'it holds none'}; the output has {names.example!r}). An image is named by "
            f"its key, its address or its file name.{own_embeddings(url)}"
        )
    if unmatched + blank:
        log.warning(
            "%s: %d captions are of no image of the output, %d are blank; %d images have captions",
            url, unmatched, blank, len(found),
        )  # fmt: skip
    captions = {image_id: list(dict.fromkeys(texts)) for image_id, texts in found.items()}
    return Joined(captions, unmatched, blank)


def own_embeddings(url: str) -> str:
    """Return what to do where a pickle has no images at hand; nothing for other files."""
    if not url or not is_pickle(url):
        return ""
    return (
        " The file of captions holds embeddings of its own: `--embeddings file` trains on those, "
        "without images (name the encoder that made them with --model)."
    )


def _listed(given: object) -> list[str]:
    cells = given if isinstance(given, list) else [given]
    return ["" if cell is None else str(cell) for cell in cells]


def read(url: str) -> Told:
    """Yield the captions of a file, or of tars, with the names of their images.

    Raises:
        SettingsError: it is of no known form, or not UTF-8.
        NotFoundError: it is not there.
    """
    if are_tars(url):
        return tartexts.read(url)
    url = storage.canonical(url)
    return _of_pickle(url) if is_pickle(url) else _of_file(url)


def is_pickle(url: str) -> bool:
    """Tell whether a file begins as a pickle does; tars are none."""
    if are_tars(url):
        return False
    pieces = storage.stream(storage.canonical(url), chunk=1)  # not every site gives a range
    return next(pieces, b"") == PICKLE


def are_tars(url: str) -> bool:
    """Tell whether an address is that of tars: of one, a folder or a pattern."""
    if url.startswith(("http://", "https://")):  # where no folder can be listed
        return False
    return url.lower().endswith(".tar") or storage.info(storage.canonical(url)) is None


def _of_pickle(url: str) -> Told:
    """Return the captions of the original's data by the names of their images.

    Raises:
        SettingsError: the name of an image is that of several embeddings.
    """
    from clipcap import oldpickles  # noqa: PLC0415 - needs torch, the other forms do not

    found: dict[str, list[str]] = {}
    for image in oldpickles.images(*oldpickles.read(url)):
        if image.name in found:
            raise SettingsError(
                f"{url} names two images {image.name!r}, with different embeddings: their captions "
                "cannot be told apart by name. `--embeddings file` trains on the file's own "
                "embeddings instead."
            )
        found[image.name] = image.captions
    return list(found.items())


def parsed(data: bytes, texts: Sequence[str]) -> Told:
    """Yield the cells of a file with the names of their images.

    Args:
        data: the file: Parquet, CSV, TSV, JSON, JSON lines, or a known form of captions.
        texts: columns that hold what is told of an image, best first, in small letters.

    Raises:
        MALFORMED: it is none of them, not UTF-8, or has no such columns.
    """
    if data.startswith(b"PAR1"):
        return _parquet(data, texts)
    text = data.decode("utf-8-sig")
    if text.lstrip()[:1] not in ("{", "["):
        return _of_text(text, texts)
    return _of_json(_loaded(text), texts)


def _of_file(url: str) -> Told:
    data = storage.read(url)
    try:
        return parsed(data, _TEXTS)
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The captions in {url} must be UTF-8, but byte {error.start} is none. If they are "
            f"Latin-1: `iconv -f latin1 -t utf-8 {url.rpartition('/')[2]}`."
        ) from error
    except MALFORMED as error:
        raise SettingsError(
            f"The captions in {url} must be COCO's JSON, Flickr's or Conceptual Captions' text, or "
            f"a table with a column that names the image and one of captions, but: {error}."
        ) from error


def _loaded(text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
            raise
        return [json.loads(line) for line in lines]


def _parquet(data: bytes, texts: Sequence[str]) -> Told:
    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    return _table(names, lambda name: file.read([name]).column(0).to_pylist(), texts)


def _table(columns: Sequence[str], cells: Callable[[str], list[Any]], told: Sequence[str]) -> Told:
    """Pair the cells of the first known column of names with those of what is told."""
    by_lower = {column.strip().lower(): column for column in reversed(columns)}
    found = [
        next((by_lower[name] for name in usual if name in by_lower), None)
        for usual in (NAMES, told)
    ]
    if found[0] is None or found[1] is None:
        raise ValueError(f"the columns are {', '.join(column[:80] for column in columns[:20])}")
    names, texts = cells(found[0]), cells(found[1])
    return [(str(name).strip(), text) for name, text in zip(names, texts, strict=True)]


def _of_json(value: Any, told: Sequence[str]) -> Told:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        return list(_objects(value) if KINDS in told else _coco(value))
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        return [
            (str(image["filename"]), [sentence["raw"] for sentence in image["sentences"]])
            for image in value["images"]
        ]
    if isinstance(value, list):
        columns = list(dict.fromkeys(name for row in value for name in row))
        return _table(columns, lambda name: [row.get(name) for row in value], told)
    if value and all(isinstance(texts, str | list) for texts in value.values()):
        return list(value.items())
    raise ValueError(f"an object of {', '.join(map(repr, list(value)[:8])) or 'nothing'}")


def _coco(value: dict[str, Any]) -> Iterator[tuple[str, object]]:
    names = {image["id"]: str(image["file_name"]) for image in value.get("images", [])}
    for annotation in value["annotations"]:
        image = annotation["image_id"]
        yield names.get(image, str(image)), annotation["caption"]


def _objects(value: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the kinds of objects on images, and nothing of images without any."""
    names = {image["id"]: str(image["file_name"]) for image in value["images"]}
    kinds = {kind["id"]: kind["name"] for kind in value["categories"]}
    yield from ((name, "") for name in names.values())
    for annotation in value["annotations"]:
        yield names[annotation["image_id"]], kinds[annotation["category_id"]]


def _of_text(text: str, told: Sequence[str]) -> Told:
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    first = lines[0] if lines else ""
    if _FLICKR.fullmatch(first):
        return [_flickr(line) for line in lines]
    if _is_conceptual(first):
        cells = [line.rstrip("\n").split("\t") for line in lines]
        if bad := next((row for row in cells if len(row) != 2), None):
            shown = "<tab>".join(bad)[:80]
            raise ValueError(f"a line of {len(bad)} columns, not caption and address: {shown!r}")
        return [(address.strip(), caption) for caption, address in cells]
    delimiter = max(_DELIMITERS, key=first.count)
    names, *body = csvrows.cells(text, delimiter, quoted=delimiter in ",;") or [[]]

    def column(name: str) -> list[str | None]:
        at = names.index(name)
        return [row[at] if at < len(row) else None for row in body]

    return _table(names, column, told)


def is_known(line: str) -> bool:
    """Tell whether a text that begins with this line names images beside captions."""
    try:
        _of_text(line, _TEXTS)
    except (ValueError, LookupError):
        return False
    return True


def _flickr(line: str) -> tuple[str, str]:
    found = _FLICKR.fullmatch(line)
    if found is None:
        raise ValueError(f"a line without `#N` and a tab behind the file name: {line[:80]!r}")
    return found[1], found[2]


def _is_conceptual(line: str) -> bool:
    """Tell a row `caption<tab>address` from a header."""
    cells = line.split("\t")
    return len(cells) == 2 and cells[1].strip().startswith(("http://", "https://"))
