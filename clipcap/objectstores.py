"""A URL of a bucket in, its objects out and back: S3, Google Cloud and Azure.

Large objects are read and written in parts, several at a time. Each request has a limit of its own,
so no call is blocked by a store that froze.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

import pyarrow as pa

from clipcap import s3, s3listing, s3uploads
from clipcap.bucketclients import PART_BYTES, PARTS_IN_FLIGHT, client, listing
from clipcap.errors import NotFoundError, TransientStorageError
from clipcap.objects import Client, ObjectInfo, Part, Unfinished, batch_of
from clipcap.refusals import Refusal, translated

CHUNK_BYTES: Final = PART_BYTES
PROTOCOLS: Final = ("s3", "s3a", "gs", "az")
_MOST_AT_ONCE: Final = 5 * 2**30  # that S3 takes in one request
_MD5: Final = re.compile("[0-9a-f]{32}")
_WITHOUT_MD5: Final[set[str]] = set()  # buckets whose versions look like MD5 digests, and are none
_SLOWEST_BYTES_PER_S: Final = 2**20  # a large object in one request may take longer, at this pace


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """One key of one bucket: a `clipcap.objects.Place`."""

    url: str
    deadline_s: float

    def read(self, offset: int, length: int | None) -> bytes:
        """Return a range, or all from `offset`."""
        return self.part(offset, length).data

    def part(self, offset: int, length: int | None) -> Part:
        """Return the same with size and version of the object; a whole one is checked.

        Where its version is an MD5 digest of other bytes, it is read again: bytes that come twice
        are right, and the versions of this bucket are no such digests (KMS keys).
        """
        found = self._joined(offset, length)
        if self._root in _WITHOUT_MD5 or _is_intact(found):
            return found
        again = self._joined(offset, length)
        if again == found:
            _WITHOUT_MD5.add(self._root)
        elif not _is_intact(again):
            raise TransientStorageError(
                f"Cannot get {self.url}: its bytes are not those of its digest, {again.etag}."
            )
        return again

    def _joined(self, offset: int, length: int | None) -> Part:
        parts = list(self._parts(offset, length, PART_BYTES))
        if not parts:
            return Part(b"", 0, "")
        etag = _version(parts[0].etag)
        return Part(b"".join(part.data for part in parts), parts[0].size_bytes, etag)

    def stream(self, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        """Yield a range in chunks, some of them fetched ahead; all are of one version."""
        for part in self._parts(offset, length, chunk):
            yield part.data

    def _parts(self, offset: int, length: int | None, chunk: int) -> Iterator[Part]:
        with translated("get", self.url):
            found = client(self.url, self.deadline_s)
            size = chunk if length is None else min(length, chunk)
            try:
                first = found.get(self._key, offset, None if offset < 0 else offset + size, "")
            except Refusal as error:
                if error.status != "416":  # the object ends before `offset`
                    raise
                return
            if offset < 0:
                yield Part(first.data[:length], first.size_bytes, first.etag)
                return
            yield first
            end = first.size_bytes if length is None else min(offset + length, first.size_bytes)
            starts = range(offset + size, end, chunk)
            yield from _ahead(found, self._key, starts, end, first.etag)

    def write(self, *parts: bytes) -> None:
        """Write the object; a large one in pieces, which count once all of them are there."""
        with translated("put", self.url), self._hinted():
            client(self.url, self.deadline_s).put(self._key, b"".join(parts), is_new=False)

    def create(self, data: bytes) -> None:
        """Write the object where there is none: one request, one try, at most 5 GiB."""
        with translated("put", self.url), self._hinted():
            if len(data) > _MOST_AT_ONCE:
                raise Refusal("EntityTooLarge", said="more than 5 GiB cannot be created at once")
            limits = int(len(data) / _SLOWEST_BYTES_PER_S / self.deadline_s)
            longer_s = self.deadline_s * 2 ** limits.bit_length()  # few, since each has a client
            client(self.url, longer_s, tries_again=False).put(self._key, data, is_new=True)

    def delete(self) -> None:
        """Remove the object."""
        with translated("delete", self.url):
            client(self.url, self.deadline_s).delete(self._key)

    def info(self) -> ObjectInfo | None:
        """Return what the store knows of the object."""
        if not self._key:
            return None
        with translated("get", self.url):
            found = client(self.url, self.deadline_s).head(self._key)
        return ObjectInfo(self.url, found.size_bytes, _version(found.etag), found.modified_at)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what lies below; where there is nothing, the object itself."""
        seen = 0
        with translated("list", self.url), self._hinted():
            for batch in self._below(f"{self._key}/" if self._key else ""):
                seen += batch.num_rows
                yield batch
        if not seen:
            with suppress(NotFoundError):
                itself = self.info()
                yield batch_of([itself] if itself else [])

    def require(self) -> None:
        """Raise `NotFoundError` where there is no such bucket; it says which can be seen."""
        with translated("list", self.url), self._hinted():
            if self._is_s3:
                self._bucket().request("GET", "", query={"list-type": "2", "max-keys": "1"})
            else:
                next(listing(self._root, "", self.deadline_s), None)

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield the uploads below that were never finished; of other stores than S3 none."""
        if self._is_s3:
            with translated("list", self.url):
                prefix = f"{self._key}/" if self._key else ""
                yield from s3uploads.uploads(self._bucket(), prefix, root=f"{self._root}/")

    def discard(self, upload_id: str) -> None:
        """Give up an upload to this key."""
        with translated("delete", self.url):
            s3uploads.abort(self._bucket(), self._key, upload_id)

    def _below(self, prefix: str) -> Iterator[pa.RecordBatch]:
        if self._is_s3:
            yield from s3listing.batches(self._bucket(), prefix, root=f"{self._root}/")
            return
        for page in listing(self._root, prefix, self.deadline_s):
            yield batch_of(
                ObjectInfo(
                    f"{self._root}/{one['path']}",
                    one["size"],
                    (one["e_tag"] or "").strip('"'),
                    one["last_modified"],
                )
                for one in page
                if "/." not in f"/{one['path'].removeprefix(prefix)}"
            )

    @contextmanager
    def _hinted(self) -> Iterator[None]:
        try:
            yield
        except Refusal as error:
            if error.name != "NoSuchBucket":
                raise
            name = self._root.partition("://")[2]
            seen = self._bucket().visible() if self._is_s3 else []
            near = get_close_matches(name, seen, n=3, cutoff=0.5)
            hint = f" You can see: {', '.join(near or seen[:5])}." if seen else ""
            raise NotFoundError(
                f"The bucket {name!r} does not exist or is not yours.{hint}"
            ) from error

    def _bucket(self) -> s3.Bucket:
        return s3.bucket(self._root.partition("://")[2], s3.environment(), self.deadline_s)

    @property
    def _is_s3(self) -> bool:
        return self.url.startswith("s3")

    @property
    def _root(self) -> str:
        protocol, _, rest = self.url.partition("://")
        return f"{protocol}://{rest.partition('/')[0]}"

    @property
    def _key(self) -> str:
        return self.url.partition("://")[2].partition("/")[2]


def _is_intact(part: Part) -> bool:
    """Tell whether bytes are those of their version, as far as that can be told."""
    if len(part.data) != part.size_bytes or not _MD5.fullmatch(part.etag):
        return True  # a range, or an object that came in parts
    return hashlib.md5(part.data, usedforsecurity=False).hexdigest() == part.etag


def _version(etag: str) -> str:
    """Return an etag as listings have it."""
    return etag.removeprefix("W/").strip('"')


def _ahead(found: Client, key: str, starts: range, end: int, etag: str) -> Iterator[Part]:
    """Yield the chunks of an object that begin at `starts`; a few are fetched ahead."""
    if not starts:
        return
    waiting: deque[Future[Part]] = deque()
    with ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="parts") as pool:
        for number, start in enumerate(starts, start=1):
            until = min(start + starts.step, end)
            waiting.append(pool.submit(found.get, key, start, until, etag))
            while len(waiting) == PARTS_IN_FLIGHT or (waiting and number == len(starts)):
                part = waiting.popleft().result()
                if part.etag != etag:
                    raise Refusal("412")
                yield part
