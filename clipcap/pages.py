"""A web address in, a request for it out; an answer in, its bytes and its version out, bounded."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore

from clipcap import wire
from clipcap.errors import ImageError
from clipcap.objects import ObjectInfo
from clipcap.refusals import Refusal

TRIES: Final = 3
_PAUSE_S: Final = 0.3
_MOST_PAUSE_S: Final = 20.0  # a server that wants more time gets it, until another night
_PIECE_BYTES: Final = 2**16
_PACKED: Final = frozenset(("gzip", "x-gzip", "deflate"))
_TARGET: Final = "%/:=&?~+!$,;'@()*[]"


class Refused(Refusal):
    """An answer of a server, and when it wants to be asked again."""

    def __init__(self, response: httpcore.Response) -> None:
        super().__init__(str(response.status), said="the server does not give it")
        self.after = wire.headers_of(response).get("retry-after", "")


def parts_of(url: str) -> SplitResult:
    """Return an address in its parts, the host in ASCII.

    Raises:
        Refusal: it is none.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise Refusal("400", said="it is no address") from error
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise Refusal("400", said="it is no address")
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{name}:{port}" if port else name, fragment="")


def redirected(url: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        Refusal: away from a safe connection, or nowhere.
    """
    try:
        target = urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
    except ValueError as error:
        raise Refusal("400", said="it leads on to what is no address") from error
    if url.startswith("https:") and not target.startswith("https:"):
        raise Refusal("310", said="it leads on to an address that is not safe")
    return target


def request(method: str, parts: SplitResult, headers: Mapping[str, str]) -> httpcore.Request:
    """Return what to send: who asks is told, and that nothing should be packed."""
    target = quote(parts.path or "/", safe=_TARGET) + (
        f"?{quote(parts.query, safe=_TARGET)}" if parts.query else ""
    )
    told = {
        "Host": parts.netloc,
        "User-Agent": wire.USER_AGENT,
        "Accept": "image/*, */*;q=0.5",
        "Accept-Encoding": "identity",
        **headers,
    }
    url = httpcore.URL(
        scheme=parts.scheme.encode(),
        host=(parts.hostname or "").encode(),
        port=parts.port,
        target=target.encode("ascii"),
    )
    return httpcore.Request(method, url, headers=list(told.items()))


def span(offset: int, length: int | None) -> dict[str, str]:
    """Return the header that asks for a range; none for the whole."""
    if offset == 0 and length is None:
        return {}
    if offset < 0:
        return {"range": f"bytes={offset}"}
    return {"range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}


def pieces(response: httpcore.Response, most: int) -> Iterator[bytes]:
    """Yield a body as it comes, unpacked; one that is too large is not read on.

    Raises:
        ImageError: it has more than `most` bytes, whatever its server said.
    """
    if response.status == 416:
        return
    headers = wire.headers_of(response)
    told = headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:
        raise ImageError("too_large", f"{told} bytes are more than {most}.")
    seen = 0
    for piece in _unpacked(response, headers.get("content-encoding", "").strip().lower()):
        seen += len(piece)
        if seen > most:
            raise ImageError("too_large", f"There are more than {most} bytes.")
        yield piece


def _unpacked(response: httpcore.Response, packing: str) -> Iterator[bytes]:
    """Yield a body without the packing that nobody asked for, a little at a time."""
    if packing in ("", "identity"):
        yield from response.iter_stream()
        return
    if packing not in _PACKED or response.status == 206:
        raise Refusal("406", said=f"the server packs it: {packing[:40]}")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        for piece in response.iter_stream():
            rest = piece
            while rest:
                yield unpacker.decompress(rest, _PIECE_BYTES)
                rest = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise Refusal("406", said="the server packs it wrongly") from error
    if not unpacker.eof:
        raise ConnectionError("the server sends a part of it")


def pause_s(error: Exception, tried: int) -> float | None:
    """Return how long to wait before the next try; None if there is to be none."""
    pause_s = _PAUSE_S * 3 ** (tried - 1) * (1 + random.random())
    if tried == TRIES or (isinstance(error, Refusal) and not error.is_passing):
        return None
    after = error.after if isinstance(error, Refused) else ""
    wanted_s = float(after) if after.isdecimal() else _seconds_until(after)
    return None if wanted_s > _MOST_PAUSE_S else max(pause_s, wanted_s)


def _seconds_until(date: str) -> float:
    found = _time(date)
    return (found - datetime.now(UTC)).total_seconds() if found else 0.0


def _time(date: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(date)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def described(url: str, response: httpcore.Response) -> ObjectInfo | None:
    """Return size and version by the headers of an answer; None if they tell no version."""
    headers = wire.headers_of(response)
    size = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    modified = headers.get("last-modified", "")
    etag = headers.get("etag", "").strip('"') or "-".join(filter(None, (modified, size)))
    if not etag:
        return None
    return ObjectInfo(url, int(size) if size.isdecimal() else 0, etag, _time(modified))
