"""A bucket and a prefix in, Arrow batches of its objects out: many pages at a time, in no order.

S3 gives 1,000 keys a request, and each request must know where the last one ended. So a long
listing is cut into ranges of keys that can be listed beside each other. Where to cut is found by
asking for the first key after a guess, which needs no delimiter and works in a flat bucket too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap.objects import LISTED
from clipcap.refusals import Refusal
from clipcap.s3 import Bucket

IN_FLIGHT: Final = 16
PAGE_KEYS: Final = 1_000  # more are not given
LONG_PAGES: Final = 20  # from here on it pays to look for ranges
_RANGES: Final = IN_FLIGHT
_MOST_RANGES: Final = 128  # each takes a request at least
_ROUNDS: Final = 4
_BRANCHES: Final = 64  # children of one stem that are looked for
_DAMAGED: Final = "its listing is damaged"
_LAST: Final = "\U0010ffff"  # sorts after every other character

_FIELDS: Final = (
    re.compile(rb"<Key>([^<]*)</Key>"),
    re.compile(rb"<Size>(\d+)</Size>"),
    re.compile(rb"<ETag>([^<]*)</ETag>"),
    re.compile(rb"<LastModified>([^<]*)</LastModified>"),
)
_CONTENTS: Final = re.compile(rb"<Contents>(.*?)</Contents>", re.DOTALL)
_MORE: Final = re.compile(rb"<IsTruncated>\s*(true|false)\s*</IsTruncated>", re.IGNORECASE)
_COUNT: Final = re.compile(rb"<KeyCount>\s*(\d+)\s*</KeyCount>")
_ENTITY: Final = re.compile(r"&(?:#x([0-9a-fA-F]{1,6})|#([0-9]{1,7})|(amp|lt|gt|quot|apos));")
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


@dataclass(frozen=True, slots=True)
class _Page:
    """Up to 1,000 objects, as the store writes them, in the order of their keys (that of UTF-8)."""

    keys: list[str]
    sizes: list[bytes]
    etags: list[bytes]
    times: list[bytes]
    is_last: bool

    def upto(self, key: str) -> _Page:
        """Return the objects up to and with a key; a page that goes beyond it is the last."""
        end = bisect_right(self.keys, key)
        if end == len(self.keys):
            return self
        return _Page(
            self.keys[:end], self.sizes[:end], self.etags[:end], self.times[:end], is_last=True
        )


@dataclass(frozen=True, slots=True)
class _Range:
    """The keys after `after`, up to and with `until` ("": to the end)."""

    after: str
    until: str = ""


def batches(bucket: Bucket, prefix: str, *, root: str) -> Iterator[pa.RecordBatch]:
    """Yield all objects whose keys begin with `prefix`, but hidden ones and markers of folders.

    Args:
        bucket: where to look.
        prefix: how the keys begin; empty, or with a slash at its end.
        root: what the URLs begin with, before the key.

    Raises:
        Refusal: the bucket is not there or may not be listed.
        TimeoutError: the store does not answer in time.
        ConnectionError: there is no store, a connection broke, or what came is no whole listing.
    """
    rest = _Range("")
    for _ in range(LONG_PAGES):
        page = _page(bucket, prefix, rest.after)
        yield _batch(page, root, prefix)
        if page.is_last:
            return
        rest = _Range(page.keys[-1])
    pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="list")
    try:
        ranges = _ranges(bucket, prefix, rest.after, pool)
        for page in _beside(bucket, prefix, ranges, pool):
            yield _batch(page, root, prefix)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _beside(bucket: Bucket, prefix: str, ranges: list[_Range], pool: Executor) -> Iterator[_Page]:
    """List ranges beside each other; never more than `IN_FLIGHT` pages are held."""
    waiting = ranges[::-1]
    running: dict[Future[_Page], _Range] = {}
    while waiting or running:
        while waiting and len(running) < IN_FLIGHT:
            found = waiting.pop()
            running[pool.submit(_page, bucket, prefix, found.after)] = found
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            until, page = running.pop(future).until, future.result()
            page = page.upto(until) if until else page
            if not page.is_last:
                waiting.append(_Range(page.keys[-1], until))
            yield page


def _ranges(bucket: Bucket, prefix: str, after: str, pool: Executor) -> list[_Range]:
    """Cut the keys behind `after` into ranges, by the characters in which they first differ."""
    stems = [prefix]
    for _ in range(_ROUNDS):
        found = pool.map(lambda stem: _branches(bucket, prefix, stem, after), stems)
        deeper = [branch for branches in found for branch in branches]
        if deeper == stems:
            break
        stems = deeper
        if len(stems) >= _RANGES:
            break
    some = stems[: -1 : len(stems) // _MOST_RANGES + 1]
    cuts = sorted({after, *(f"{stem}{_LAST}" for stem in some)})
    return [_Range(*ends) for ends in zip(cuts, [*cuts[1:], ""], strict=True)]


def _branches(bucket: Bucket, prefix: str, stem: str, after: str) -> list[str]:
    """Return the beginnings that go one character beyond what all keys of a stem have in common."""

    def first(behind: str) -> str:
        keys = _page(bucket, prefix, max(behind, after), limit=1).keys
        return keys[0] if keys and keys[0].startswith(stem) else ""

    key = first(stem)
    if not key:
        return [stem]
    shared, differs = len(stem), len(key) + 1
    while differs - shared > 1:  # no key of the stem lies behind those that begin with key[:shared]
        middle = (shared + differs) // 2
        if first(f"{key[:middle]}{_LAST}"):
            differs = middle
        else:
            shared = middle
    found: list[str] = []
    while key and len(found) < _BRANCHES:
        found.append(key[: shared + 1])
        key = first(f"{found[-1]}{_LAST}")
    return found


def _page(bucket: Bucket, prefix: str, after: str, limit: int = 0) -> _Page:
    query = {"list-type": "2", "max-keys": str(limit or PAGE_KEYS)}
    query |= {"prefix": prefix} if prefix else {}
    query |= {"start-after": after} if after else {}
    answer = bucket.request("GET", "", query=query)
    try:
        page = _parsed(answer.data)
    except ValueError as error:
        raise ConnectionError(_DAMAGED) from error
    if not page.is_last and (not page.keys or page.keys[-1] <= after):
        raise Refusal(str(answer.status), said="its listing does not go on")
    return page


def _parsed(data: bytes) -> _Page:
    """Return the objects of a page: nobody knows its checksum, so all that it must hold is there.

    Raises:
        ValueError: something is not, so that an object, or the rest of them, would seem gone.
    """
    fields = [field.findall(data) for field in _FIELDS]
    if len({len(found) for found in fields}) > 1:  # an object without an etag, say
        fields = _one_by_one(data)
    keys, sizes, etags, times = fields
    more, count = _MORE.search(data), _COUNT.search(data)
    if more is None or (count and int(count[1]) > len(keys)):
        raise ValueError(_DAMAGED)
    return _Page([text(key) for key in keys], sizes, etags, times, more[1].lower() == b"false")


def _one_by_one(data: bytes) -> list[list[bytes]]:
    rows = [
        [found[1] if (found := field.search(one)) else b"" for field in _FIELDS]
        for one in _CONTENTS.findall(data)
    ]
    if not all(key and size and time for key, size, _, time in rows):
        raise ValueError(_DAMAGED)
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _FIELDS]


def text(raw: bytes) -> str:
    """Return the text that a piece of XML stands for."""
    decoded = raw.decode("utf-8")
    return _ENTITY.sub(_character, decoded) if "&" in decoded else decoded


def _character(entity: re.Match[str]) -> str:
    hexadecimal, decimal, name = entity.groups()
    if name:
        return _NAMED[name]
    return chr(int(hexadecimal, 16) if hexadecimal else int(decimal))


def _batch(page: _Page, root: str, prefix: str) -> pa.RecordBatch:
    try:
        columns = _columns(page, root)
    except pa.ArrowInvalid as error:
        raise ConnectionError(_DAMAGED) from error
    start = len(prefix)
    shown = [
        key[start : start + 1] != "."
        and key.find("/.", start) < 0
        and not (size == b"0" and key[-1] == "/")
        for key, size in zip(page.keys, page.sizes, strict=True)
    ]
    found = pa.record_batch(columns, schema=LISTED)
    return found if all(shown) else found.filter(pa.array(shown))


def _columns(page: _Page, root: str) -> list[pa.Array]:
    sizes, etags, times = (
        pa.array(found, pa.binary()).cast(pa.string())
        for found in (page.sizes, page.etags, page.times)
    )
    return [
        pc.binary_join_element_wise(root, pa.array(page.keys, pa.string()), ""),
        sizes.cast(pa.int64()),
        pc.ascii_trim(pc.replace_substring(etags, "&quot;", ""), '"'),
        times.cast(pa.timestamp("ns", tz="UTC")).cast(LISTED.types[3], safe=False),
    ]
