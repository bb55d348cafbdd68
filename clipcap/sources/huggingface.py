"""A folder as the library `datasets` writes it, or the hub holds it, in; one sample per image out.

Three forms are known: Parquet files with a column of images, what `save_to_disk` wrote (Arrow
files), and ImageFolder (images, with or without a `metadata.csv`, `.jsonl` or `.parquet`). The
files are read by pyarrow; a loading script (`*.py`) is neither read nor run.

An image of a Parquet or Arrow file is called `{file}#row=N`, ten digits from 0: a row that keeps
its place keeps its name when its file is written anew, and rows are read in the order in which
they lie. Its version is that of the whole file. A row without bytes is the file its path leads to,
if that lies below the folder, or a web address; else it becomes a reject, `not_found`. A file that
is cut or damaged is refused as a whole, as a tar is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from clipcap import ahead, columnar, imagerows, metadata, storage
from clipcap import containers as found_at
from clipcap import settings as base
from clipcap.containers import Place
from clipcap.errors import NotFoundError, SettingsError
from clipcap.imagerows import Row, Wanted
from clipcap.sample import Bytes, Form, Sample
from clipcap.settings import digest
from clipcap.storage import ObjectInfo

_WEB: Final = ("http://", "https://")
_ROWS: Final = (".parquet", ".arrow")
_CACHES: Final = "cache-"  # what `map` leaves beside the files of a dataset
_EXAMPLES: Final = 5
_STATE: Final = "state.json"
_SPLITS: Final = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}


class Settings(base.Settings):
    """Which files of a dataset are looked at, and which of their columns."""

    url: str
    """Folder of the dataset, one `.parquet` or `.arrow` file of it, or a pattern (`*.parquet`)."""
    split: str = ""
    """Only files with this word in their path: `train`, `validation`, `test`; empty: all."""
    image_column: str = ""
    """Column with the images; empty: `image`, `img` or the like, else the first that holds some."""
    caption_column: str = ""
    """Column with a caption or a list of them; empty: caption, captions, text, sentences, ..."""
    leave_out: str | tuple[str, ...] = ()
    """URLs of folders below the source that are not looked at; an output inside of it never is."""
    honour_opt_out: bool = True
    """Reject pages with `X-Robots-Tag: noai`, `noimageai`, `noindex` or `noimageindex`."""
    private_addresses: bool = False
    """Read web addresses that are not public too: of this machine, of the network it is in."""


@dataclass(frozen=True, slots=True)
class _Table(ObjectInfo):
    """A file with rows; `etag` is that of all its listing is made from, `version` that of a row."""

    version: str
    wanted: Wanted
    root: str
    around: Mapping[str, ObjectInfo]
    web: Form


@dataclass(frozen=True, slots=True)
class _Folder(ObjectInfo):
    """An ImageFolder as a whole; `etag` is made of those of all its files."""

    pictures: tuple[ObjectInfo, ...]
    tables: tuple[ObjectInfo, ...]
    caption_column: str


def containers(settings: Settings) -> list[ObjectInfo]:
    """Return the files with rows, or else the one folder; listed anew where its etag is new.

    Raises:
        StorageError: the folder is not there or may not be listed.
        SettingsError: there is no such split, or a `state.json` that says nothing.
    """
    place = found_at.place(settings.url, leave_out=settings.leave_out)
    chosen = [one for one in place.meant() if _is_of(settings.split, place.name(one))]
    rows = _with_rows(chosen, place)
    if not rows:
        return [_folder(chosen, settings, place)]
    has_more = place.is_one and not place.root.startswith(_WEB)
    objects = storage.list_objects(place.root) if has_more else place.objects
    urls = {one.url for one in rows}
    around = {one.url: one for one in objects if one.url not in urls}
    seen = digest([[one.url, one.etag] for one in around.values()])
    return [_table(one, settings, place.root, around, seen) for one in rows]


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every image once, sorted by URI, with its captions.

    Raises:
        StorageError: the folder is not there, or may not be listed or read.
        SettingsError: no column holds images, or there is no such column or split.
    """
    for found in ahead.mapped(members, containers(settings), threads=storage.IN_FLIGHT):
        yield from found


def members(part: ObjectInfo) -> list[Sample]:
    """Return the samples of one file or folder, sorted by URI.

    Raises:
        StorageError: it may not be read.
        SettingsError: no column holds images, or captions are not of a known form.
    """
    if isinstance(part, _Folder):
        return list(_in_folder(part))
    if not isinstance(part, _Table):
        raise TypeError(f"{part.url} must be a part that `containers` returned.")
    try:
        return [_sample(row, part) for row in imagerows.rows(part, part.wanted)]
    except (*columnar.BROKEN, NotFoundError) as error:
        return found_at.refused(part, error)


def _is_of(split: str, name: str) -> bool:
    if not split:
        return True
    words = _SPLITS.get(split, re.escape(split))
    return re.search(f"(?<![A-Za-z])({words})(?![A-Za-z])", name) is not None


def _with_rows(chosen: Sequence[ObjectInfo], place: Place) -> list[ObjectInfo]:
    """Return the files with rows, sorted by their URIs.

    In a folder with a `state.json` those are the ones it names: others were left by `map`.
    """
    named: dict[str, set[str]] = {}
    for found in place.objects:
        folder, _, name = found.url.rpartition("/")
        if name == _STATE:
            named[folder] = _data_files(found.url)
    rows = []
    for found in chosen:
        folder, _, name = found.url.rpartition("/")
        is_data = name in named[folder] if folder in named else not name.startswith(_CACHES)
        if name.endswith(_ROWS) and name not in metadata.NAMES and is_data:
            rows.append(found)
    return sorted(rows, key=lambda found: f"{found.url}#")


def _data_files(url: str) -> set[str]:
    try:
        return {str(file["filename"]) for file in json.loads(storage.read(url))["_data_files"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise SettingsError(
            f"{url} must name the files of a dataset (`_data_files`), as `save_to_disk` writes it, "
            f"but does not: {error}."
        ) from error


def _folder(chosen: Sequence[ObjectInfo], settings: Settings, place: Place) -> _Folder:
    """Return the files of an ImageFolder as one container.

    Raises:
        SettingsError: the split has no file.
        NotFoundError: there is no image.
    """
    tables = tuple(one for one in place.meant() if _last(one) in metadata.NAMES)
    pictures = tuple(one for one in chosen if _last(one) not in metadata.NAMES)
    if settings.split and not chosen and place.objects:
        some = ", ".join(place.name(one) for one in place.objects[:_EXAMPLES])
        raise SettingsError(
            f"No file of {place.root} is of the split {settings.split!r}; there are: {some}."
        )
    if not tables and not any(found_at.is_image(one.url) for one in pictures):
        raise NotFoundError(
            f"There is no dataset at {storage.canonical(settings.url)}: neither a Parquet or Arrow "
            "file, nor an image."
        )
    return _Folder(
        url=place.root,
        size_bytes=0,
        etag=digest([settings.caption_column, [[one.url, one.etag] for one in (*tables, *chosen)]]),
        modified_at=None,
        pictures=pictures,
        tables=tables,
        caption_column=settings.caption_column,
    )


def _in_folder(folder: _Folder) -> Iterator[Sample]:
    captions: dict[str, tuple[str, ...]] = {}
    for table in sorted(folder.tables, key=lambda one: one.url.count("/")):  # the nearest one wins
        captions |= _captions(table, folder.caption_column)
    for found in sorted(folder.pictures, key=lambda one: one.url):
        if found_at.is_image(found.url) or found.url in captions:
            texts = captions.get(found.url, ())
            version = f"{found.etag}+captions={digest(list(texts))[:16]}" if texts else found.etag
            at = Bytes(found.url)
            yield Sample(found.url, version, found.size_bytes, at, found.modified_at, texts)


def _captions(table: ObjectInfo, column: str) -> dict[str, tuple[str, ...]]:
    """Return the captions that a metadata file has, by the URL of the image.

    Raises:
        SettingsError: it is of no known form, or too long.
    """
    problem: object = "has no column `file_name`"
    if table.size_bytes > metadata.MOST_BYTES:
        problem = f"has more than {metadata.MOST_BYTES} bytes"
    else:
        try:
            by_file = metadata.by_file(_last(table), storage.read(table.url), column=column)
        except metadata.BROKEN as error:
            by_file, problem = None, f"cannot be read: {error}"
        if by_file is not None:
            folder = table.url.rpartition("/")[0]
            return {_resolved(name, folder): texts for name, texts in by_file.items()}
    raise SettingsError(
        f"{table.url} must list images and their captions as ImageFolder has it, but {problem}."
    )


def _last(found: ObjectInfo) -> str:
    return found.url.rpartition("/")[2]


def _table(
    found: ObjectInfo, settings: Settings, root: str, around: Mapping[str, ObjectInfo], seen: str
) -> _Table:
    wanted = Wanted(settings.image_column, settings.caption_column)
    web = storage.page_form(
        private=settings.private_addresses, honour_opt_out=settings.honour_opt_out
    )
    version = f"{found.etag}+{digest([wanted.image, wanted.captions])[:8]}"
    return _Table(
        url=found.url,
        size_bytes=found.size_bytes,
        etag=f"{version}+{digest([seen, web])[:16]}",
        modified_at=found.modified_at,
        version=version,
        wanted=wanted,
        root=root,
        around=around,
        web=web,
    )


def _sample(row: Row, table: _Table) -> Sample:
    uri = f"{table.url}#row={row.number:010}"
    version = f"{table.version}+{row.number}"
    if row.at is not None:
        return Sample(uri, version, row.size_bytes, row.at, table.modified_at, row.captions)
    try:
        at, found = _beside(row.path or "", table)
    except SettingsError:  # an address with credentials in it
        at, found = None, None
    return Sample(
        source_uri=uri,
        etag=f"{version}+{found.etag}" if found else version,
        size_bytes=found.size_bytes if found else 0,
        at=at or Bytes(uri, form="absent"),
        modified_at=table.modified_at,
        captions=row.captions,
    )


def _beside(path: str, table: _Table) -> tuple[Bytes | None, ObjectInfo | None]:
    """Return what the path of a row leads to: below the root of the dataset, or on the web.

    Raises:
        SettingsError: it carries credentials.
    """
    if path.startswith(_WEB):
        return Bytes(storage.canonical(path), form=table.web), None
    urls = [_resolved(path, folder) for folder in (table.url.rpartition("/")[0], table.root)]
    found = next((table.around[url] for url in urls if url in table.around), None)
    return (Bytes(found.url), found) if found else (None, None)


def _resolved(path: str, folder: str) -> str:
    local = storage.local_path(folder)
    if "://" in path:
        return storage.canonical(path)
    if local is not None:
        return storage.canonical(str(local / path))
    return f"{folder}/{path.removeprefix('./')}"
