"""A web address in, its bytes out: within limits of size and time, and only what may be taken.

Redirects are followed by hand, so that each is judged as the first address was. What a server says
for a while only (429, 5xx, a broken connection) is asked again, after the time it wants.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httpcore
import pyarrow as pa

from clipcap import addresses, pages, wire
from clipcap.errors import ImageError, StorageError
from clipcap.objects import ObjectInfo, Part
from clipcap.optouts import has_opted_out
from clipcap.refusals import NOT_PUBLIC, Refusal, translated
from clipcap.sample import Form

MOST_BYTES: Final = 2**32
_REDIRECTS: Final = 5


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be taken; a table's rows say it in the `form` of their bytes."""

    private: bool = False
    """Addresses that are not public too; a public one never leads on to one of them."""
    honour_opt_out: bool = True
    """Refuse pages whose headers forbid it."""
    given: bool = False
    """By a person: the address itself, not where it leads, may be any."""

    @property
    def form(self) -> Form:
        """The policy as the form of a sample's bytes."""
        forms: dict[tuple[bool, bool], Form] = {
            (False, True): "web",
            (True, True): "web-private",
            (False, False): "web-any",
            (True, False): "web-private-any",
        }
        return forms[self.private, self.honour_opt_out]

    @classmethod
    def of(cls, form: Form) -> Policy:
        """Return the policy of a form; the strictest of one that is not for the web."""
        words = form.split("-")
        return cls("private" in words, "any" not in words)


TRUSTED: Final = Policy(private=True, honour_opt_out=False, given=True)
"""For an address that the operator gave, and not a table."""


@dataclass(frozen=True, slots=True)
class WebPlace:
    """One address on the web: a `clipcap.objects.Place` that can only be read."""

    url: str
    deadline_s: float
    policy: Policy = TRUSTED
    most: int = MOST_BYTES

    def read(self, offset: int, length: int | None) -> bytes:
        """Return a range, or all from `offset`.

        Raises:
            StorageError: it is not there, not for us, or does not come in time.
            ImageError: it has more than `most` bytes, or its owner has opted out.
        """
        until = time.monotonic() + self.deadline_s
        tried = 0
        with translated("get", self.url):
            while True:
                tried += 1
                try:
                    with self._answer("GET", pages.span(offset, length), until) as answer:
                        return b"".join(pages.pieces(answer, self.most))
                except (Refusal, ConnectionError) as error:
                    pause_s = pages.pause_s(error, tried)
                    is_dead = isinstance(error, wire.Unreachable) and self.policy != TRUSTED
                    if is_dead or pause_s is None or time.monotonic() + pause_s >= until:
                        raise
                time.sleep(pause_s)

    def part(self, offset: int, length: int | None) -> Part:
        """Return the same, of a version that is not told."""
        return Part(self.read(offset, length), 0, "")

    def stream(self, offset: int, length: int | None, chunk: int) -> Iterator[bytes]:
        """Yield the same as it comes, in one answer; a connection that breaks ends it."""
        until = time.monotonic() + self.deadline_s
        waiting = bytearray()
        with translated("get", self.url):
            with self._answer("GET", pages.span(offset, length), until) as answer:
                for piece in pages.pieces(answer, self.most):
                    waiting += piece
                    while len(waiting) >= chunk:
                        yield bytes(waiting[:chunk])
                        del waiting[:chunk]
            if waiting:
                yield bytes(waiting)

    def info(self) -> ObjectInfo | None:
        """Return what the server says of the page, if need be by asking for its first byte."""
        found = self.head()
        if found:
            return found
        until = time.monotonic() + self.deadline_s
        with translated("get", self.url), self._answer("GET", pages.span(0, 1), until) as answer:
            return pages.described(self.url, answer)

    def head(self) -> ObjectInfo | None:
        """Return what the server says of the page; None where it says nothing without sending it.

        Raises:
            NotFoundError: the page is not there any more.
            StorageError: the server does not answer, or its address is not public.
        """
        until = time.monotonic() + min(self.deadline_s, wire.CONNECT_S)
        with translated("get", self.url):
            try:
                with self._answer("HEAD", {}, until) as answer:
                    return pages.described(self.url, answer)
            except Refusal as error:
                if error.status in ("404", "410", NOT_PUBLIC) or error.is_passing:
                    raise
                return None

    def write(self, *parts: bytes) -> None:
        """Refuse: nothing can be put there."""
        self._refuse("put")

    def create(self, data: bytes) -> None:
        """Refuse: nothing can be put there."""
        self._refuse("put")

    def delete(self) -> None:
        """Refuse: nothing can be removed there."""
        self._refuse("delete")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Refuse: the web has no listing."""
        self._refuse("list")
        yield from ()

    def require(self) -> None:
        """Do nothing: what is there, reading will tell."""

    def _refuse(self, kind: str) -> None:
        raise StorageError(
            f"Cannot {kind} {self.url}: web addresses can only be read, one by one; a table lists "
            "them."
        )

    @contextmanager
    def _answer(
        self, method: str, headers: Mapping[str, str], until: float
    ) -> Iterator[httpcore.Response]:
        """Give the answer that the redirects lead to, if it is one of the wanted kind."""
        url, private = self.url, self.policy.private
        for followed in range(_REDIRECTS + 1):
            parts = pages.parts_of(url)
            private = private and not all(
                map(addresses.is_public, addresses.lookup(parts.hostname or "", parts.port or 0))
            )
            with _HOSTS.turn(parts.scheme, parts.netloc, is_trusted=self.policy == TRUSTED):
                request = pages.request(method, parts, headers)
                connections = _connections(private, self.policy.given and not followed)
                with wire.exchange(connections, request, until=until) as response:
                    location = wire.headers_of(response).get("location", "")
                    if not (300 <= response.status < 400 and location):
                        self._judge(response, method, headers.get("range", ""))
                        yield response
                        return
            url = pages.redirected(url, location)
        raise Refusal("310", said="its redirects do not end")

    def _judge(self, response: httpcore.Response, method: str, span: str) -> None:
        """Refuse an answer that is not what was asked for, or that its owner keeps from us."""
        if span and response.status == 200:
            raise Refusal("200", said="the server sends the whole of it")
        if response.status not in ((206, 416) if span else range(200, 300)):
            raise pages.Refused(response)
        start = re.fullmatch(r"bytes=(\d+)-\d*", span)
        given = wire.headers_of(response).get("content-range", "")
        if start and response.status == 206 and not given.startswith(f"bytes {start[1]}-"):
            raise Refusal("206", said="the server sends another part of it")
        if self.policy.honour_opt_out and method == "GET" and has_opted_out(response.headers):
            raise ImageError("opted_out", f"The owner of {self.url} forbids it: X-Robots-Tag.")


_HOSTS: Final = addresses.Hosts()


@lru_cache(maxsize=4)
def _connections(private: bool, given: bool) -> httpcore.ConnectionPool:  # noqa: FBT001 - keys
    return wire.pool(wire.Backend() if private and given else addresses.Guard(private=private))


def _forget() -> None:
    """Let a forked process make connections of its own."""
    _connections.cache_clear()
    _HOSTS.start_over()


os.register_at_fork(after_in_child=_forget)
