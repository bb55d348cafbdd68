"""A bucket and a prefix in, Arrow batches of its objects out: many pages at a time, in no order.

S3 gives 1,000 keys a request, and each request must know where the last one ended. So a long
listing is cut into ranges of keys that can be listed beside each other. Where to cut is found by
asking for the first key after a guess, which needs no delimiter and works in a flat bucket too.

Nobody sends the checksum of a page, and where there is no TLS nothing else notices a flipped bit.
So each page must hold what it says, and the next one begins with the last key of it: no object is
passed over because of another one that is misspelt.
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
from clipcap.refusals import Damaged, Refusal
from clipcap.s3 import Bucket

IN_FLIGHT: Final = 16
PAGE_KEYS: Final = 1_000  # more are not given
LONG_PAGES: Final = 20  # from here on it pays to look for ranges
_RANGES: Final = IN_FLIGHT
_MOST_RANGES: Final = 128  # each takes a request at least
_ROUNDS: Final = 4
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
    """Up to 1,000 objects, as the store writes them, in the order of their keys (that of UTF-8)."""

    keys: list[str]
    sizes: list[bytes]
    etags: list[bytes]
    times: list[bytes]
    is_last: bool

    def upto(self, key: str) -> _Page:
        """Return the objects up to and with a key; a page that goes beyond it is the last.

        Raises:
            Damaged: the keys are not in order.
        """
        end = bisect_right(self.keys, key)
        within, beyond = self.keys[:end], self.keys[end:]
        if (within and max(within) > key) or (beyond and min(beyond) <= key):
            raise Damaged
        return self._cut(0, end, is_last=True) if beyond else self

    def behind(self, first: str) -> _Page:
        """Return the objects behind the first one, whose key is known.

        Raises:
            Damaged: another one is the first.
        """
        if self.keys[:1] != [first]:
            raise Damaged
        return self._cut(1, len(self.keys), is_last=self.is_last)

    def _cut(self, start: int, end: int, *, is_last: bool) -> _Page:
        some = slice(start, end)
        return _Page(self.keys[some], self.sizes[some], self.etags[some], self.times[some], is_last)


@dataclass(frozen=True, slots=True)
class _Range:
    """The keys after `after`, up to and with `until` ("": to the end).

    The `first` of them, if it is known, was listed before.
    """

    after: str
    until: str = ""
    first: str = ""


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
    if rest.first and _page(bucket, prefix, rest.after, limit=1).keys != [rest.first]:
        raise Damaged
    pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="list")
    try:
        ranges = _ranges(bucket, prefix, rest.first or rest.after, pool)
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
    keys = page.keys
    page = page.behind(wanted.first) if wanted.first else page
    page = page.upto(wanted.until) if wanted.until else page
    if page.is_last:
        return page, None
    after, first = keys[-2:] if len(keys) > 1 else (keys[-1], "")
    return page, _Range(after, wanted.until, first)


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
    limit = limit or PAGE_KEYS
    query = {"list-type": "2", "max-keys": str(limit)}
    query |= {"prefix": prefix} if prefix else {}
    query |= {"start-after": after} if after else {}
    answer = bucket.request("GET", "", query=query)
    try:
        page = _parsed(answer.data, limit)
    except ValueError as error:
        raise Damaged from error
    if not page.is_last and (not page.keys or page.keys[-1] <= after):
        if page.keys and (page.keys[0] > after or limit == 1):
            raise Damaged
        raise Refusal(str(answer.status), said="its listing does not go on")
    return page


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
    return _Page([text(key) for key in keys], sizes, etags, times, more[1].lower() == b"false")


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


def _batch(page: _Page, root: str, prefix: str) -> pa.RecordBatch:
    try:
        columns = _columns(page, root)
    except pa.ArrowInvalid as error:
        raise Damaged from error
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
