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
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import pyarrow as pa

from clipcap import addressrows, ahead, scratch, storage, tables
from clipcap import settings as base
from clipcap.errors import NotFoundError, SettingsError, StorageError, TransientStorageError
from clipcap.sample import Bytes, Sample
from clipcap.scratch import Scratch, ScratchSettings
from clipcap.settings import digest

_LOG = logging.getLogger(__name__)
_WEB: Final = ("http://", "https://")
_STRANGERS: Final = storage.page_form()  # with an address that is no page: is refused
_STORES: Final = ("http", "https", "s3", "s3a", "gs", "az")  # that every machine reaches alike

_ROWS: Final = pa.schema([("uri", pa.string()), ("captions", tables.STRINGS)])
_BY_ADDRESS: Final = "SELECT uri, captions FROM found ORDER BY uri, n"


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
    scratch: ScratchSettings = ScratchSettings()
    """What bringing the rows of one address together may take of the machine."""


def samples(settings: Settings) -> Iterator[Sample]:
    """Yield every address once, sorted by URL, with the captions of all its rows.

    Raises:
        StorageError: the table cannot be read, or a store of its rows does not answer.
        SettingsError: it is no table, lacks the column, or has no usable address at all.
    """

    def looked_at(found: tuple[str, tuple[str, ...]]) -> Sample:
        return _sample(*found, settings)

    with scratch.opened(settings.scratch) as place:
        found = place.spool("found", _ROWS)
        found.extend(_rows(settings, place.folder))
        found.close()
        place.insert("CREATE TABLE found AS FROM incoming", found.read())
        yield from ahead.mapped(looked_at, _by_address(place), threads=storage.IN_FLIGHT)


def _rows(settings: Settings, folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the address of every row, or what stands for it, and its captions."""
    table_url = storage.canonical(settings.url)
    start = storage.canonical(settings.base) if settings.base else _folder(table_url)
    asked = (settings.url_column, settings.caption_column)
    rows = rows_without = 0
    for cells, texts in addressrows.batches(table_url, asked=asked, folder=folder):
        uris = [_resolved(cell, start) for cell in cells]
        rows_without += uris.count(None)
        named = [
            uri or f"{table_url}#row={number}" for number, uri in enumerate(uris, start=rows + 1)
        ]
        rows += len(uris)
        yield pa.record_batch([named, [_captions(text) for text in texts]], schema=_ROWS)
    if rows_without:
        _require_some(rows_without, rows, table_url)


def _by_address(place: Scratch) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every address once, sorted, with the captions of its rows in their order."""
    rows = (
        row
        for batch in place.batches(_BY_ADDRESS)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    for uri, alike in groupby(rows, key=itemgetter(0)):
        yield uri, tuple(dict.fromkeys(text for _, texts in alike for text in texts))


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
