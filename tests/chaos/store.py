"""URLs `memory://` in, objects of a store in memory out: every call is seen, and may be the last.

Behind `clipcap.storage` stands one function that opens a place; here it gives places of a
dictionary instead. Whoever runs (an `Actor`, one for each thread that began as one) is asked before
and after every call, so that a run may end at any of them, or let another one go first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from threading import local
from typing import Final

import pyarrow as pa

from clipcap import storage
from clipcap.errors import AccessDeniedError, NotFoundError
from clipcap.objects import ObjectInfo, Part, Place, batch_of

CHANGES: Final = ("write", "create", "delete")


class Crash(BaseException):
    """Stands for SIGKILL: nothing in the library may catch it."""


@dataclass
class Actor:
    """One run: what it changes, and at which change it ends.

    `left` counts down at every change; at 0 the run ends before it, or after it with `after`. Below
    0 from the start it never ends.
    Whoever is dead changes nothing more: what it still tries raises `Crash` again.
    """

    left: int = -1
    after: bool = False
    dead: bool = False
    ahead: timedelta = timedelta(0)
    """How far its clock is ahead: all objects seem older to it by that."""
    turn: Callable[[], None] | None = None
    """Called before every call: other actors may go first."""
    changes: list[tuple[str, str]] = field(default_factory=list)

    def before(self, kind: str) -> None:
        """Look whether the run may go on."""
        if self.turn is not None:
            self.turn()
        if self.dead:
            raise Crash
        if kind in CHANGES:
            self.left -= 1
            if self.left == 0 and not self.after:
                self.die()

    def done(self, kind: str, url: str) -> None:
        """Write a change down, and look whether it was the last."""
        if kind in CHANGES:
            self.changes.append((kind, url))
        if self.left == 0 and self.after:
            self.die()

    def die(self) -> None:
        """End here."""
        self.dead = True
        raise Crash


class Store:
    """Objects by URL; `install` puts it in the place of all stores but the local disk."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.denied: set[str] = set()
        """What is there, and may not be read at present."""
        self._acting = local()

    @property
    def actor(self) -> Actor | None:
        """Whoever runs in this thread."""
        return getattr(self._acting, "actor", None)

    @actor.setter
    def actor(self, actor: Actor | None) -> None:
        self._acting.actor = actor

    def clear(self) -> None:
        """Forget all objects."""
        self.objects.clear()

    def age(self, root: str, span: timedelta) -> None:
        """Make every object below a folder older: another day has begun."""
        for url, (data, at) in list(self.objects.items()):
            if url.startswith(f"{root}/"):
                self.objects[url] = (data, at - span)

    def opener(self, real: Callable[[str], Place]) -> Callable[[str], Place]:
        """Return what stands in the place of `storage._place`."""

        def place(url: str) -> Place:
            return InMemory(self, url) if url.startswith("memory://") else real(url)

        return place


@dataclass(frozen=True, slots=True)
class InMemory:
    """One URL of a store: a `clipcap.objects.Place`."""

    store: Store
    url: str

    def _begin(self, kind: str) -> None:
        if self.store.actor is not None:
            self.store.actor.before(kind)

    def _end(self, kind: str) -> None:
        if self.store.actor is not None:
            self.store.actor.done(kind, self.url)

    def _found(self) -> tuple[bytes, datetime]:
        if self.url in self.store.denied:
            raise AccessDeniedError(f"Cannot get {self.url}: access denied.")
        try:
            return self.store.objects[self.url]
        except KeyError:
            raise NotFoundError(f"Cannot get {self.url}: it is not there.") from None

    def read(self, offset: int, length: int | None) -> bytes:
        return self.part(offset, length).data

    def part(self, offset: int, length: int | None) -> Part:
        self._begin("read")
        data, _ = self._found()
        start = max(len(data) + offset, 0) if offset < 0 else offset
        end = len(data) if length is None else start + length
        return Part(data[start:end], len(data), _etag(data))

    def stream(self, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        data = self.read(offset, length)
        for at in range(0, len(data), chunk):
            yield data[at : at + chunk]

    def write(self, *parts: bytes) -> None:
        self._begin("write")
        self.store.objects[self.url] = (b"".join(parts), datetime.now(UTC))
        self._end("write")

    def create(self, data: bytes) -> None:
        self._begin("create")
        if self.url in self.store.objects:
            raise FileExistsError(self.url)
        self.store.objects[self.url] = (data, datetime.now(UTC))
        self._end("create")

    def delete(self) -> None:
        self._begin("delete")
        was_there = self.store.objects.pop(self.url, None) is not None
        self._end("delete" if was_there else "delete nothing")

    def info(self) -> ObjectInfo | None:
        self._begin("info")
        return self._described(self.url, *self._found())

    def batches(self) -> Iterator[pa.RecordBatch]:
        self._begin("list")
        root = f"{self.url}/"
        found = list(self.store.objects.items())
        below = [(url, one) for url, one in found if url.startswith(root) and "/." not in url]
        below = below or [(url, one) for url, one in found if url == self.url]
        yield batch_of([self._described(url, *one) for url, one in below])

    def require(self) -> None:
        """Do nothing: there are no buckets."""

    def _described(self, url: str, data: bytes, at: datetime) -> ObjectInfo:
        ahead = self.store.actor.ahead if self.store.actor else timedelta(0)
        return ObjectInfo(url, len(data), _etag(data), at - ahead)


@lru_cache(65_536)
def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def opener_of_storage() -> Callable[[str], Place]:
    """Return the one function through which every call of `clipcap.storage` goes."""
    return storage._place
