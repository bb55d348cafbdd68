"""URL in, bytes or a listing out, and back: the one door to every filesystem and object store.

A URL is a local path, `file:///...` (percent-encoded), `s3://bucket/key`, `gs://`, `az://`, a web
address, `memory://...` or any other that fsspec opens. Every call either returns, or raises a
`StorageError` that says which of list, get, put or delete was refused; `retryable` tells whether
the store only said "later". Credentials come from the environment, a profile or the instance role,
and never from a URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Final

import pyarrow as pa

from clipcap import alive, filesystems, localfiles, objectstores, urls, web
from clipcap.credentials import without as without_credentials
from clipcap.errors import AccessDeniedError, NotFoundError
from clipcap.objects import LISTED, ObjectInfo, Part, Place, Unfinished, rows_of
from clipcap.refusals import translated
from clipcap.sample import Form
from clipcap.urls import canonical, local_path, name_below, prefixes

__all__ = [
    "LISTED",
    "ObjectInfo",
    "Part",
    "Unfinished",
    "canonical",
    "local_path",
    "name_below",
    "prefixes",
    "without_credentials",
]  # and what is defined below

DEADLINE_S: Final = 120.0  # no single request takes longer; a store that froze says nothing at all
PAGE_S: Final = 40.0  # nor one to a stranger's page, of which a table may name thousands
LEFT_OVER_S: Final = 24 * 3_600.0  # nobody takes longer from the first to the last object of a step
IN_FLIGHT: Final = 16  # requests at a time: hides 60 ms of latency, bounds memory to 16 objects
CHUNK_BYTES: Final = objectstores.CHUNK_BYTES


def _place(url: str) -> Place:
    alive.beat()
    url = urls.exact(url)
    protocol = url.partition("://")[0]
    if protocol == "file":
        return localfiles.LocalPlace(url, urls.path_of(url))
    if protocol in urls.WEB:
        return web.WebPlace(url, DEADLINE_S)
    if protocol in objectstores.PROTOCOLS:
        return objectstores.ObjectPlace(url, DEADLINE_S)
    return filesystems.open_place(url, DEADLINE_S)


def read(url: str) -> bytes:
    """Return the whole object."""
    return _place(url).read(0, None)


def read_range(url: str, offset: int, length: int | None) -> bytes:
    """Return `length` bytes from `offset`, or all up to the end; below 0 it counts from the end.

    What lies beyond the end is no bytes.
    """
    if length == 0:
        return b""  # a range of no bytes cannot be asked for: stores answer with the whole object
    return _place(url).read(offset, length)


def read_part(url: str, offset: int, length: int | None) -> Part:
    """Return the same bytes with the version they are of; empty where the store does not tell."""
    return Part(b"", 0, "") if length == 0 else _place(url).part(offset, length)


def page_form(*, private: bool = False, honour_opt_out: bool = True) -> Form:
    """Return what may be read of the web, as the `form` of a sample's bytes.

    Args:
        private: addresses too that are not public.
        honour_opt_out: refuse pages whose headers forbid to use them.
    """
    return web.Policy(private, honour_opt_out).form


def read_page(url: str, form: Form, most: int) -> bytes:
    """Return a page of the web whose address a table gave; `form` is from `page_form`.

    `read` is for the addresses that people give; those of strangers are looked at first.

    Raises:
        StorageError: it is not there, not public, not given, or does not come in time.
        ImageError: it has more than `most` bytes, or its owner has opted out.
    """
    if not url.startswith(("http://", "https://")):
        raise AccessDeniedError(
            f"Cannot get {url}: a table must name pages, objects of s3://, gs:// and az:// and, "
            "where it lies on this machine, its files. `base` allows what lies below it."
        )
    return web.WebPlace(urls.exact(url), PAGE_S, web.Policy.of(form), most).read(0, None)


def look(url: str, form: Form) -> ObjectInfo | None:
    """Ask a web server for the version of a page; None where it does not tell without sending it.

    Raises:
        NotFoundError: the page is gone.
        StorageError: the server does not answer within 10 s, or is not public.
    """
    return web.WebPlace(urls.exact(url), PAGE_S, web.Policy.of(form)).head()


def stream(
    url: str, offset: int = 0, length: int | None = None, chunk: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """Yield the same bytes as `read_range`, in pieces of `chunk` bytes, for objects of any size.

    On an object store the next few pieces are fetched ahead, each tried again by itself; at most
    five are held.

    Raises:
        TransientStorageError: also where the object was replaced meanwhile; begin anew.
    """
    if length != 0:
        yield from _place(url).stream(offset, length, chunk)


def write(url: str, *parts: bytes) -> None:
    """Write a whole object in one atomic step: readers see the old or the new one, never a half.

    The object is all parts, one behind the other; on this machine they are not joined in memory.
    """
    _place(url).write(*parts)


def create(url: str, data: bytes) -> bool:
    """Write an object (of at most 5 GiB) only if there is none; tell whether this call wrote it.

    It is tried once: after a `TransientStorageError` nobody knows whether the object was written.
    """
    try:
        _place(url).create(data)
    except FileExistsError:
        return False
    return True


def delete(url: str) -> None:
    """Remove one object; an object that is not there is no error."""
    with suppress(NotFoundError):
        _place(url).delete()


def info(url: str) -> ObjectInfo | None:
    """Return what the store knows of one object, or None where there is none."""
    try:
        return _place(url).info()
    except NotFoundError:
        return None


def list_batches(url: str) -> Iterator[pa.RecordBatch]:
    """Yield every object below a folder or bucket, in batches of schema `LISTED`, in no order.

    A long listing of S3 comes many pages at a time, of which only a few are held. Hidden names
    (`.x`) and the empty objects that stand for folders are left out.

    Raises:
        NotFoundError: the bucket or the local folder does not exist.
    """
    yield from (batch for batch in _place(canonical(url)).batches() if batch.num_rows)


def list_objects(url: str) -> Iterator[ObjectInfo]:
    """Yield every object below a folder or bucket, sorted by URL; hidden names (`.x`) are left out.

    All of them are held, about 400 bytes each: `list_batches` is for the listings of a source.

    Raises:
        NotFoundError: the bucket or the local folder does not exist.
    """
    found = (one for batch in list_batches(url) for one in rows_of(batch))
    yield from sorted(found, key=attrgetter("url"))


def listed(url: str) -> list[ObjectInfo]:
    """Return every object below a folder, sorted by URL; none where there is no such folder."""
    try:
        return list(list_objects(url))
    except NotFoundError:
        return []


def is_left_over(found: ObjectInfo) -> bool:
    """Tell whether an object is so old that no run can still be about to make it count."""
    if found.modified_at is None:
        return False
    return (datetime.now(UTC) - found.modified_at).total_seconds() > LEFT_OVER_S


def remove_half_written(url: str) -> int:
    """Remove what killed processes left of files they were writing; return how many went.

    On a store there is nothing to remove: an object is there whole or not at all.
    """
    path = local_path(url)
    if path is None or not path.is_dir():
        return 0
    with translated("delete", url):
        return localfiles.remove_temporaries(path, older_s=LEFT_OVER_S)


def unfinished(url: str) -> list[Unfinished]:
    """Return what killed writers left below a folder or bucket more than a day ago.

    On this machine that is hidden files, on S3 uploads in parts. Nobody sees them, and they cost.
    """
    place = _place(canonical(url))
    if isinstance(place, localfiles.LocalPlace):
        with translated("list", url):
            return localfiles.temporaries(place.path, older_s=LEFT_OVER_S)
    if isinstance(place, objectstores.ObjectPlace):
        day_ago = datetime.now(UTC) - timedelta(seconds=LEFT_OVER_S)
        return [one for one in place.unfinished() if one.begun_at < day_ago]
    return []


def discard(found: Unfinished) -> None:
    """Remove what a killed writer left; what is not there any more is no error."""
    if found.upload_id:
        objectstores.ObjectPlace(found.url, DEADLINE_S).discard(found.upload_id)
    else:
        delete(found.url)


def require_bucket(url: str) -> None:
    """Do nothing where the bucket or local folder of `url` is there.

    Raises:
        NotFoundError: it is not; says which near names can be seen.
    """
    _place(canonical(url)).require()


def require_writable(url: str) -> None:
    """Put and delete a small object under `url`, before any work that would be lost.

    Of one name, so that those of killed runs are not many.
    """
    probe = f"{canonical(url)}/_probe"
    write(probe, b"clipcap was here to see whether it may write\n")
    delete(probe)
