"""A Parquet, CSV or TSV table of image addresses in, one sample per address out, with its captions.

Nothing in the table is lost: a row whose cell is empty or cannot be an address becomes the sample
`{table}#row=N` (the first row below the header is 1), which the shard stage rejects as `not_found`.
An object counts as changed when its store says so. The web is asked for that only where
`ask_for_changes` says so; else a page is read once, and again when its row changes.

The addresses are strangers'. A page is read from public machines alone, and not if its owner has
opted out by header (robots.txt, which is for those who follow links, is not asked for). A table
that came from the web or a bucket may name pages and buckets, but no files of this machine; none
names another kind of store, through which any machine could be reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import ahead, csvrows, storage
from clipcap import settings as base
from clipcap.errors import NotFoundError, SettingsError, StorageError, TransientStorageError
from clipcap.registry import unknown
from clipcap.sample import Bytes, Sample
from clipcap.settings import digest

_LOG = logging.getLogger(__name__)
_URL_COLUMNS: Final = (
    *("url", "uri", "image_url", "image_uri", "img_url", "source_uri"),
    *("image", "image_path", "path", "file_path", "filepath", "file_name", "filename", "file"),
)
_CAPTION_COLUMNS: Final = ("caption", "captions", "text")
_DELIMITERS: Final = ",\t;"
_WEB: Final = ("http://", "https://")
_STRANGERS: Final = storage.page_form()  # with an address that is no page: is refused
_STORES: Final = ("http", "https", "s3", "s3a", "gs", "az")  # that every machine reaches alike

_Table = tuple[list[str], Callable[[str], list[Any]]]
"""The names of the columns, and what gives the cells of one."""


class Settings(base.Settings):
    """Which table lists the images, and where in it."""

    url: str
    """Parquet, CSV or TSV file, at any fsspec URL; one row per image, or one per caption."""
    url_column: str = ""
    """Column with the addresses; empty: url, uri, image_url, image, path, file_name or the like."""
    caption_column: str = ""
    """Column with a caption or a list of them; empty: caption, captions or text, if it is there."""
    base: str = ""
    """Folder or prefix that relative addresses start from; empty: the folder of the table."""
    honour_opt_out: bool = True
    """Reject pages with `X-Robots-Tag: noai`, `noimageai`, `noindex` or `noimageindex`."""
    private_addresses: bool = False
    """Read web addresses that are not public too: of this machine, of the network it is in."""
    ask_for_changes: bool = False
    """Ask the web for the version of every page before each night (HEAD), to see changed pages.

    Off, because it is a request for each row every night, to servers of strangers: a million rows
    take hours before the first image is read. A page whose server does not answer or does not tell
    a version has that of its row: it is read again if it was told one the night before.
    """


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every address once, sorted by URL, with the captions of all its rows.

    Raises:
        StorageError: the table cannot be read, or a store of its rows does not answer.
        SettingsError: it is no table, lacks the column, or has no usable address at all.
    """
    table_url = storage.canonical(settings.url)
    cells, texts = _columns(table_url, settings)
    folder = storage.canonical(settings.base) if settings.base else _folder(table_url)
    captions: dict[str, list[str]] = {}
    rows_without = 0
    for number, (cell, text) in enumerate(zip(cells, texts, strict=True), start=1):
        uri = _resolved(cell, folder)
        rows_without += uri is None
        captions.setdefault(uri or f"{table_url}#row={number}", []).extend(_captions(text))
    if rows_without:
        _require_some(rows_without, len(cells), table_url)

    def looked_at(uri: str) -> Sample:
        return _sample(uri, tuple(dict.fromkeys(captions[uri])), settings)

    yield from ahead.mapped(looked_at, sorted(captions), threads=storage.IN_FLIGHT)


def _require_some(rows_without: int, rows: int, url: str) -> None:
    count = (
        f"{rows_without} of {rows} rows of {url} have an empty cell, no address in it, or one "
        "with credentials or a signature in it"
    )
    if rows_without == rows:
        raise SettingsError(
            f"A table must list addresses without credentials, but {count}. Say which column has "
            "them: url_column."
        )
    _LOG.warning("%s; each becomes a reject.", count)


def _sample(uri: str, captions: tuple[str, ...], settings: Settings) -> Sample:
    table_url = storage.canonical(settings.url)
    suffix = f"+captions={digest(list(captions))[:16]}" if captions else ""
    if uri.startswith(_WEB):
        return _page(uri, captions, settings)
    if _is_out_of_bounds(uri, table_url, settings.base):
        return Sample(uri, f"refused{suffix}", 0, Bytes(uri, form=_STRANGERS), captions=captions)
    at = Bytes(uri)
    found = None
    try:
        found = storage.info(uri)
    except TransientStorageError:
        raise  # a store that says "later" must not look like one whose images are gone
    except SettingsError:
        at = Bytes(f"{table_url}#unopened")  # no filesystem for `xyz://`: reads as not found
    except StorageError:
        _LOG.debug("The store does not describe %s; reading will tell why.", uri)
    if found is None:
        return Sample(uri, f"missing{suffix}", 0, at, captions=captions)
    return Sample(
        source_uri=uri,
        etag=f"{found.etag}{suffix}",
        size_bytes=found.size_bytes,
        at=at,
        modified_at=found.modified_at,
        captions=captions,
    )


def _page(uri: str, captions: tuple[str, ...], settings: Settings) -> Sample:
    """Return the sample of a web address; its version is that of the row, unless asked for."""
    form = storage.page_form(
        private=settings.private_addresses, honour_opt_out=settings.honour_opt_out
    )
    version = f"row={digest([uri, *captions])[:16]}"
    found = None
    if settings.ask_for_changes:
        try:
            found = storage.look(uri, form)
        except NotFoundError:
            version = f"missing+{version}"
        except StorageError:
            _LOG.debug("The server does not tell the version of %s; reading will tell why.", uri)
    return Sample(
        source_uri=uri,
        etag=f"{found.etag}+{version}" if found else version,
        size_bytes=found.size_bytes if found else 0,
        at=Bytes(uri, form=form),
        modified_at=found.modified_at if found else None,
        captions=captions,
    )


def _is_out_of_bounds(uri: str, table_url: str, base: str) -> bool:
    """Tell whether a row names neither the web nor a bucket, nor what its table may name."""
    protocol = uri.partition("://")[0]
    is_below = bool(base) and uri.startswith(f"{storage.canonical(base)}/")
    is_beside = protocol == table_url.partition("://")[0]
    return not (protocol in _STORES or is_below or is_beside)


def _folder(table_url: str) -> str:
    path = table_url.partition("?")[0] if table_url.startswith(_WEB) else table_url
    return path.rpartition("/")[0]


def _resolved(cell: object, folder: str) -> str | None:
    """Return the canonical URL of a cell; None if it is empty, has credentials or is no address."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not text or "\0" in text:
        return None
    local = storage.local_path(folder)
    try:
        protocol, found, rest = text.partition("://")
        if found:
            return storage.canonical(f"{protocol.lower()}://{rest}")
        if local is not None:
            return storage.canonical(str(local / text))
        if text[0] == "/":
            return storage.canonical(urljoin(folder, text) if folder.startswith(_WEB) else text)
        return storage.canonical(f"{folder}/{text.removeprefix('./')}")
    except SettingsError:
        return None


def _captions(cell: object) -> list[str]:
    found = cell if isinstance(cell, list) else [cell]
    return [text for text in (str(one).strip() for one in found if one is not None) if text]


def _columns(url: str, settings: Settings) -> tuple[list[Any], list[Any]]:
    """Return the cells with addresses and those with captions, row by row."""
    data = storage.read(url)
    try:
        names, cells_of = _parquet(data) if data.startswith(b"PAR1") else _text(data)
        url_column = _column(names, settings.url_column, _URL_COLUMNS)
        caption_column = _column(names, settings.caption_column, _CAPTION_COLUMNS)
        if not url_column:
            raise SettingsError(
                f"The table {url} must have a column of addresses, but has only: {_listed(names)}. "
                f"{_hint(data)}"
            )
        cells = cells_of(url_column)
        texts = cells_of(caption_column) if caption_column else [None] * len(cells)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SettingsError(
            f"The table {url} must be Parquet, or CSV or TSV in UTF-8, but cannot be read: {error}."
        ) from error
    wrong = next((cell for cell in cells if not isinstance(cell, str | None)), None)
    if wrong is not None:
        raise SettingsError(
            f"The column {url_column!r} of {url} must hold text, but holds {type(wrong).__name__}. "
            f"Columns: {_listed(names)}."
        )
    return cells, texts


def _hint(data: bytes) -> str:
    """Say what to do with a table without a known column of addresses."""
    if data.startswith(b"PAR1"):
        images = [
            field.name[:80]
            for field in pq.read_schema(pa.BufferReader(data))
            if pa.types.is_struct(field.type)
            and {"bytes", "path"} <= {part.name for part in field.type}
        ]
        if images:
            return (
                f"Its column {images[0]!r} holds the images themselves: read it with kind "
                "huggingface (--kind huggingface)."
            )
    return "Say which one it is: url_column."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:40]) or "none"


def _column(names: Sequence[str], asked: str, usual: Sequence[str]) -> str:
    """Return the column that was asked for, or the first usual one, or "".

    Raises:
        SettingsError: the one asked for is not there; says which are.
    """
    if asked and asked not in names:
        raise SettingsError(unknown("column of text", asked, [name[:80] for name in names[:40]]))
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return asked or next((by_lower[name] for name in usual if name in by_lower), "")


def _parquet(data: bytes) -> _Table:
    """Read the columns of text only, and of those one at a time: others may hold the images."""
    file = pq.ParquetFile(pa.BufferReader(data))
    names = [field.name for field in file.schema_arrow if _is_text(field.type)]
    return names, lambda name: file.read(columns=[name]).column(0).to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.null())


def _text(data: bytes) -> _Table:
    text = data.decode("utf-8-sig")
    header_line = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header_line.count)
    names, *body = csvrows.cells(text, delimiter) or [[]]

    def cells(name: str) -> list[str | None]:
        at = names.index(name)
        return [row[at] if at < len(row) else None for row in body]

    return names, cells
