"""A bucket and a prefix in, Arrow batches of its objects out: many pages at a time, in no order.

S3 gives 1,000 keys a request, and each request must know where the last one ended. So a long
listing is cut into ranges of keys that can be listed beside each other. Where to cut is found by
asking for the first key after a guess, which needs no delimiter and works in a flat bucket too.

Nobody sends the checksum of a page, and where there is no TLS nothing else notices a flipped bit.
So each page must hold what it says, with its keys in order, and its last object is left to the next
one: no object is passed over because another one is misspelt. What is put into the bucket or
deleted from it meanwhile is listed or not, and disturbs nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap.objects import LISTED
from clipcap.refusals import Damaged, Refusal
from clipcap.s3 import Bucket

IN_FLIGHT: Final = 16
PAGE_KEYS: Final = 1_000  # more are not given
LONG_PAGES: Final = 20  # from here on it pays to look for ranges
_RANGES: Final = IN_FLIGHT
_MOST_RANGES: Final = 128  # each takes a request at least
_ROUNDS: Final = 4
_TRIES: Final = 3  # of a page
_BRANCHES: Final = 64  # children of one stem that are looked for
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
_HALVES: Final = range(0xD800, 0xE000)  # of characters: none of them is one
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


@dataclass(frozen=True, slots=True)
class _Page:
    """Up to 1,000 objects: their keys, and their sizes, etags and times as columns of `LISTED`."""

    keys: list[str]
    columns: list[pa.Array]
    is_last: bool

    def require_order(self) -> None:
        """Check that each key is behind the one before, in the order of UTF-8.

        Raises:
            ValueError: it is not.
        """
        if any(one >= other for one, other in pairwise(self.keys)):
            raise ValueError("Its keys are not in order.")

    def upto(self, end: int) -> _Page:
        """Return the first objects; what is behind them is listed by somebody else."""
        return _Page(self.keys[:end], [one[:end] for one in self.columns], is_last=True)


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
        ConnectionError: there is no store, or a connection broke.
        Damaged: what came is no whole listing.
    """
    rest = _Range("")
    for _ in range(LONG_PAGES):
        page, left = _listed(bucket, prefix, rest)
        yield _batch(page, root, prefix)
        if left is None:
            return
        rest = left
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
    running: set[Future[tuple[_Page, _Range | None]]] = set()
    while waiting or running:
        while waiting and len(running) < IN_FLIGHT:
            running.add(pool.submit(_listed, bucket, prefix, waiting.pop()))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            page, left = future.result()
            if left is not None:
                waiting.append(left)
            yield page


def _listed(bucket: Bucket, prefix: str, wanted: _Range) -> tuple[_Page, _Range | None]:
    """Return the next objects of a range, and what is left of it behind them."""
    page = _page(bucket, prefix, wanted.after)
    end = bisect_right(page.keys, wanted.until) if wanted.until else len(page.keys)
    if end < len(page.keys):
        return page.upto(end), _left(bucket, prefix, wanted, page.keys[:end])
    if page.is_last:
        return page, None
    if end == 1:
        return page, _Range(page.keys[0], wanted.until)
    return page.upto(end - 1), _Range(page.keys[-2], wanted.until)


def _left(bucket: Bucket, prefix: str, wanted: _Range, within: list[str]) -> _Range | None:
    """Return what is left of a range whose end a page seems to have: one key says that it has."""
    after = within[-1] if within else wanted.after
    following = _page(bucket, prefix, after, limit=1).keys
    if not following or following[0] > wanted.until:
        return None
    if not within:
        raise Damaged
    return _Range(after, wanted.until)


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
    """Return the first objects behind a key; what is damaged is asked for again."""
    limit = limit or PAGE_KEYS
    query = {"list-type": "2", "max-keys": str(limit)}
    query |= {"prefix": prefix} if prefix else {}
    query |= {"start-after": after} if after else {}
    damaged: ValueError | None = None
    for _ in range(_TRIES):
        data = bucket.request("GET", "", query=query).data
        try:
            page = _parsed(data, limit)
            if after or not page.is_last:
                page.require_order()
        except ValueError as error:
            damaged = error
            continue
        if page.keys[:1] > [after] or (page.is_last and not page.keys):
            return page
    if damaged:
        raise Damaged from damaged
    raise Refusal("200", said="its listing does not go on")


def _parsed(data: bytes, limit: int) -> _Page:
    """Return the objects of a page.

    Raises:
        ValueError: not all is there that a page must hold.
    """
    fields = [field.findall(data) for field in _FIELDS]
    if len({len(found) for found in fields}) > 1:  # an object without an etag, say
        fields = _one_by_one(data)
    keys, sizes, etags, times = fields
    more, count = _MORE.search(data), _COUNT.search(data)
    if more is None or (count and len(keys) < int(count[1]) <= limit):
        raise ValueError("It is cut, or has fewer objects than it says.")
    columns = _columns(sizes, etags, times)
    return _Page([text(key) for key in keys], columns, more[1].lower() == b"false")


def _one_by_one(data: bytes) -> list[list[bytes]]:
    rows = [
        [found[1] if (found := field.search(one)) else b"" for field in _FIELDS]
        for one in _CONTENTS.findall(data)
    ]
    if not all(key and size and time for key, size, _, time in rows):
        raise ValueError("An object has no key, no size or no time.")
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _FIELDS]


def text(raw: bytes) -> str:
    """Return the text that a piece of XML stands for.

    Raises:
        ValueError: it stands for none.
    """
    decoded = raw.decode("utf-8")
    return _ENTITY.sub(_character, decoded) if "&" in decoded else decoded


def _character(entity: re.Match[str]) -> str:
    hexadecimal, decimal, name = entity.groups()
    if name:
        return _NAMED[name]
    code = int(hexadecimal, 16) if hexadecimal else int(decimal)
    if code in _HALVES:
        raise ValueError(f"{code} is no character.")
    return chr(code)


def _columns(*fields: list[bytes]) -> list[pa.Array]:
    sizes, etags, times = (pa.array(found, pa.binary()).cast(pa.string()) for found in fields)
    return [
        sizes.cast(pa.int64()),
        pc.ascii_trim(pc.replace_substring(etags, "&quot;", ""), '"'),
        times.cast(pa.timestamp("ns", tz="UTC")).cast(LISTED.types[3], safe=False),
    ]


def _batch(page: _Page, root: str, prefix: str) -> pa.RecordBatch:
    urls = pc.binary_join_element_wise(root, pa.array(page.keys, pa.string()), "")
    found = pa.record_batch([urls, *page.columns], schema=LISTED)
    start = len(prefix)
    shown = [
        key[start : start + 1] != "."
        and key.find("/.", start) < 0
        and (key[-1] != "/" or page.columns[0][at].as_py() != 0)
        for at, key in enumerate(page.keys)
    ]
    return found if all(shown) else found.filter(pa.array(shown, pa.bool_()))
