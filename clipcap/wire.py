"""An HTTP request in, an answer out, and all of it before one deadline: httpcore with a clock.

httpcore's own timeouts hold for each read from the socket, so a server that sends a byte a second
holds a thread for ever. Here every timeout that httpcore hands on is a point in time, the same for
the whole request, and a connection waits for as long as there is time left.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import httpcore
from httpcore import NetworkBackend, NetworkStream

import clipcap

USER_AGENT: Final = f"clipcap/{clipcap.__version__}"
CONNECT_S: Final = 10.0
_KEEP_S: Final = 15.0  # an idle connection; most servers close it after 5 to 75 s
_CONNECTIONS: Final = 64

for _teller in ("httpcore.http11", "botocore.auth"):  # of signed redirects, and of session tokens
    logging.getLogger(_teller).setLevel(logging.INFO)


class Unreachable(ConnectionError):  # noqa: N818 - a kind of what is raised beside it
    """There is nobody at the address that a host name stands for, or nobody who answers."""


class _Stream(NetworkStream):
    """A connection of which no read and no write outlasts the request it is for."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout))

    def close(self) -> None:
        self._stream.close()

    def __del__(self) -> None:
        self.close()  # with the pool that kept it, since nobody else says when that ends

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> NetworkStream:
        left = min(_left(timeout), CONNECT_S)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as httpcore has it
        return self._stream.get_extra_info(info)


class Backend(NetworkBackend):
    """Opens connections that keep to the deadline of the request they are used for."""

    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """Connect to a host, whose name the system looks up; `timeout` is a point in time."""
        left = min(_left(timeout), CONNECT_S)
        return _Stream(self._sockets.connect_tcp(host, port, left, local_address, socket_options))


def pool(backend: Backend, *, authorities: str = "", proxy: str = "") -> httpcore.ConnectionPool:
    """Return connections to any host, for `exchange` alone.

    Args:
        backend: opens the connections.
        authorities: file or folder of certificates to trust besides the usual ones, or "".
        proxy: address of an HTTP proxy to go through, or "".
    """
    context = httpcore.default_ssl_context()
    if authorities:
        kind = "capath" if Path(authorities).is_dir() else "cafile"
        context.load_verify_locations(**{kind: authorities})
    return httpcore.ConnectionPool(
        ssl_context=context,
        proxy=_proxy(proxy) if proxy else None,
        max_connections=_CONNECTIONS,
        keepalive_expiry=_KEEP_S,
        network_backend=backend,
    )


@contextmanager
def exchange(
    connections: httpcore.ConnectionPool, request: httpcore.Request, *, until: float
) -> Iterator[httpcore.Response]:
    """Send a request and give its answer while the body is still to come (`Response.stream`).

    Args:
        connections: from `pool`.
        request: what to send.
        until: when all of it must be over, body included, on the clock of `time.monotonic`.

    Raises:
        TimeoutError: it was not over.
        Unreachable: there was no connection.
        ConnectionError: it broke, or what came is not HTTP.
    """
    waits = dict.fromkeys(("connect", "read", "write"), until)
    request.extensions = {"timeout": {**waits, "pool": max(until - time.monotonic(), 0.0)}}
    try:
        response = connections.handle_request(request)
        try:
            yield response
        finally:
            response.close()
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise Unreachable(type(error).__name__) from error
    except httpcore.TimeoutException as error:
        raise TimeoutError(type(error).__name__) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        raise ConnectionError(type(error).__name__) from error


def headers_of(response: httpcore.Response) -> dict[str, str]:
    """Return the headers by name in lower case; several of one name are joined by commas."""
    found: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _proxy(url: str) -> httpcore.Proxy:
    parts = urlsplit(url)
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return httpcore.Proxy(
        parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), auth=login
    )


def _left(until: float | None) -> float:
    left = (until or 0.0) - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the request has taken all its time")
    return left
