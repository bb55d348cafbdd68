"""A key of a bucket in, a part of its object out, and back: obstore, or signed requests of our own.

obstore is the client. The keys that its paths cannot name (`a//b`, `/a`, `a/`, `a/../b`, those with
control characters) are asked for one by one, which S3 takes as they are.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import obstore
import obstore.exceptions
from obstore.store import AzureStore, S3Store, from_url

from clipcap import s3, wire
from clipcap.objects import Client, Head, Part
from clipcap.refusals import NO_KEYS, NO_NAME, Refusal

if TYPE_CHECKING:  # types that obstore has for checkers alone
    from collections.abc import Sequence

    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Credential

T = TypeVar("T")

PART_BYTES: Final = 2**24
"""Larger objects are read and written in parts of this size."""
PARTS_IN_FLIGHT: Final = 4  # one connection to S3 gives about 80 MB/s
_MOST_PARTS: Final = 10_000  # that S3 puts together
_RETRIES: Final = 3
_STALLED_S: Final = 30.0  # without a byte
_LASTING: Final = timedelta(minutes=15)  # obstore asks for new keys 5 minutes before
_OTHERS: Final = (
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("AZURE_STORAGE_ENDPOINT", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"),
)
_UNNAMEABLE: Final = re.compile(r"[\x00-\x1f\x7f]|^/|/$|//|(^|/)\.{1,2}(/|$)")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_NAME: Final = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_SIZE: Final = re.compile(r"bytes \d+-\d+/(\d+)")
_STATUS_OF: Final = {
    FileNotFoundError: "404",
    obstore.exceptions.PermissionDeniedError: "403",
    obstore.exceptions.UnauthenticatedError: "401",
    obstore.exceptions.AlreadyExistsError: "412",
    obstore.exceptions.PreconditionError: "412",
    obstore.exceptions.InvalidPathError: "404",
}


_is_cut_off: Final = threading.Event()
"""Set in a process forked from one that used obstore: its threads are gone, calls never end."""


def client(url: str, deadline_s: float, *, tries_again: bool = True) -> Client:
    """Return what asks for the object of a URL; no request of it takes longer than `deadline_s`.

    Raises:
        Refusal: there are no keys, or no object can have this name.
        OSError: the store does not answer.
    """
    protocol, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    is_s3 = protocol.startswith("s3")
    if not key or (not is_s3 and _UNNAMEABLE.search(key)):
        raise Refusal("404", NO_NAME, said="no object can have this name")
    if not is_s3:
        return _other(f"{protocol}://{name}", _environment(), deadline_s)
    environment = s3.environment()
    if _UNNAMEABLE.search(key) or _is_cut_off.is_set():
        return _Exact(s3.bucket(name, environment, deadline_s))
    return _s3(name, environment, deadline_s, _RETRIES if tries_again else 0)


def listing(url: str, prefix: str, deadline_s: float) -> Iterator[Sequence[ObjectMeta]]:
    """Yield what lies in a bucket of Google or Azure, as obstore describes it.

    Raises:
        Refusal: the bucket is not there, may not be listed, or holds a name obstore cannot say.
        OSError: the store does not answer.
    """
    found = _other(url, _environment(), deadline_s)
    pages = obstore.list(found.store, prefix or None, chunk_size=1_000)
    while page := _asked(lambda: next(pages, None)):
        yield page


@lru_cache(maxsize=64)
def _s3(
    name: str, environment: tuple[str | None, ...], deadline_s: float, retries: int
) -> _Obstore:
    """Return one client per environment, so that a changed key or endpoint is seen."""
    bucket = s3.bucket(name, environment, deadline_s)
    account = bucket.account
    is_virtual = bucket.base.partition("://")[2].startswith(f"{name}.")
    endpoint = bucket.base if is_virtual else bucket.base.removesuffix(f"/{name}")
    store = S3Store(
        name,
        aws_endpoint_url_s3=endpoint,
        region=bucket.region,
        virtual_hosted_style_request=is_virtual,
        disable_bulk_delete=True,  # one DELETE, which every store knows
        credential_provider=_keys_of(account),
        client_options=_options(deadline_s, account.authorities),
        retry_config=_again(deadline_s, retries),
        **account.options.store,
    )
    return _Obstore(store)


@lru_cache(maxsize=64)
def _other(url: str, _: tuple[str | None, ...], deadline_s: float) -> _Obstore:
    options, again = _options(deadline_s, ""), _again(deadline_s, _RETRIES)
    try:
        return _Obstore(from_url(url, client_options=options, retry_config=again))
    except (obstore.exceptions.BaseError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise Refusal(NO_KEYS, said=f"{said}. ") from error


def _environment() -> tuple[str | None, ...]:
    if _is_cut_off.is_set():
        raise Refusal("fork", said="a forked process cannot ask it; start processes by spawn")
    return tuple(map(os.environ.get, _OTHERS))


def _cut_off() -> None:
    """Let a forked process know that obstore will not answer it."""
    if _s3.cache_info().misses or _other.cache_info().misses:
        _is_cut_off.set()


os.register_at_fork(after_in_child=_cut_off)


def _keys_of(account: s3.Account) -> Callable[[], S3Credential]:
    def keys() -> S3Credential:
        found = account.keys()
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": None if account.is_lasting else datetime.now(UTC) + _LASTING,
        }

    keys()  # so that who has none is told before the first request
    return keys


def _options(deadline_s: float, authorities: str) -> ClientConfig:
    bundle = Path(authorities) if authorities else None
    options: ClientConfig = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=min(wire.CONNECT_S, deadline_s / 2)),
        "read_timeout": timedelta(seconds=min(_STALLED_S, deadline_s / 2)),
        "timeout": timedelta(seconds=deadline_s / 2),
        "user_agent": wire.USER_AGENT,
    }
    if bundle and bundle.is_file():
        options["root_certificate"] = bundle.read_bytes()
    return options


def _again(deadline_s: float, retries: int) -> RetryConfig:
    """Return when to try again: a request that took all its time is the last one."""
    return {"max_retries": retries, "retry_timeout": timedelta(seconds=deadline_s / 3)}


class _Obstore:
    """A bucket as obstore asks it; safe for many threads, which wait without holding the GIL."""

    def __init__(self, store: Any) -> None:  # noqa: ANN401 - a union of its stores
        self.store = store
        self._has_tails = not isinstance(store, AzureStore)  # knows no range from the end

    def get(self, key: str, start: int, end: int | None, etag: str) -> Part:
        if end is None and not self._has_tails:
            end = self.head(key).size_bytes
            start = max(end + start, 0)
        options: GetOptions = {"range": {"suffix": -start} if end is None else (start, end)}
        if etag:
            options["if_match"] = etag

        def part() -> Part:
            found = obstore.get(self.store, key, options=options)
            meta = found.meta
            return Part(bytes(found.bytes()), meta["size"], meta["e_tag"] or "")

        return _asked(part)

    def put(self, key: str, data: bytes, *, is_new: bool) -> None:
        """Write an object; a large one in parts, unless it has to be new."""
        part_bytes = max(PART_BYTES, -(-len(data) // _MOST_PARTS))
        _asked(
            lambda: obstore.put(
                self.store,
                key,
                data,
                mode="create" if is_new else "overwrite",
                use_multipart=not is_new and len(data) > PART_BYTES,
                chunk_size=part_bytes,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        )

    def delete(self, key: str) -> None:
        _asked(lambda: obstore.delete(self.store, key))

    def head(self, key: str) -> Head:
        found = _asked(lambda: obstore.head(self.store, key))
        return Head(found["size"], found["e_tag"] or "", found["last_modified"])


def _asked(call: Callable[[], T]) -> T:
    """Call obstore; what it raises becomes a `Refusal` without the server's text, or `OSError`."""
    try:
        return call()
    except (obstore.exceptions.BaseError, FileNotFoundError) as error:
        text = str(error)
        status, name = _STATUS.search(text), _NAME.search(text)
        found = status[1] if status else _STATUS_OF.get(type(error), "")
        if found == "401" and not status:
            raise Refusal(NO_KEYS) from error
        if found:
            raise Refusal(found, name[1] if name else "") from error
        if "non-partial response" in text or "Content-Range" in text:
            raise Refusal("200", said="the server sends the whole of it") from error
        if "kind: Timeout" in text or "TimedOut" in text:
            raise TimeoutError("no answer") from error
        if "HttpError" in text:
            raise ConnectionError("the connection failed") from error
        raise Refusal("200", said="its answer is not one of such a store") from error


class _Exact:
    """A bucket of S3 as `clipcap.s3` asks it, with keys of any form."""

    def __init__(self, bucket: s3.Bucket) -> None:
        self._bucket = bucket

    def get(self, key: str, start: int, end: int | None, etag: str) -> Part:
        span = f"bytes={start}" if end is None else f"bytes={start}-{end - 1}"
        headers = {"range": span, **({"if-match": etag} if etag else {})}
        found = self._bucket.request("GET", key, headers=headers)
        size = _SIZE.fullmatch(found.headers.get("content-range", ""))
        if found.status != 206 or not size:
            raise Refusal(str(found.status), said="the server sends the whole of it")
        return Part(found.data, int(size[1]), found.headers.get("etag", ""))

    def put(self, key: str, data: bytes, *, is_new: bool) -> None:
        headers = {"if-none-match": "*"} if is_new else {}
        self._bucket.request("PUT", key, headers=headers, body=data)

    def delete(self, key: str) -> None:
        self._bucket.request("DELETE", key)

    def head(self, key: str) -> Head:
        found = self._bucket.request("HEAD", key).headers
        modified = found.get("last-modified")
        modified_at = parsedate_to_datetime(modified) if modified else None
        return Head(int(found.get("content-length", 0)), found.get("etag", ""), modified_at)
