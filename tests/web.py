"""Pages in, a web server on loopback out that gives them, and refuses in every way asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clipcap import web

STATUS_PATHS = {
    f"/status/{code}" for code in (400, 401, 403, 404, 408, 410, 425, 429, 451, 500, 503)
}


@dataclass(frozen=True)
class Reply:
    """One answer that is not a page; `drip_s` passes before each byte of its body."""

    status: int = 200
    headers: Mapping[str, str] | tuple[tuple[str, str], ...] = field(default_factory=dict)
    body: bytes = b""
    drip_s: float = 0.0


class Server(ThreadingHTTPServer):
    """Gives `pages` by path, keeps what was `asked` for, and `/slow` waiting for `done`.

    `replies` of a path come before its page, one for each request; `headers` go with each page.
    """

    daemon_threads = True

    def __init__(self, pages: dict[str, bytes]) -> None:
        """Listen on a free port of loopback."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = pages
        self.replies: dict[str, list[Reply]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.sent: list[dict[str, str]] = []
        self.done = threading.Event()
        self.has_ranges = True
        self.is_frozen = False

    @property
    def url(self) -> str:
        """The address of the root, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(has_body=True, body=body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(has_body=True)

    def do_DELETE(self) -> None:
        self._answer(has_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, has_body: bool, body: bytes | None = None) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.sent.append({name.lower(): value for name, value in self.headers.items()})
        path = self.path.partition("?")[0]
        if replies := self.server.replies.get(path):
            self._reply(replies.pop(0), has_body=has_body)
        elif self.server.is_frozen or path == "/slow":
            self.server.done.wait(60)
            self.close_connection = True
        elif body is not None:
            self.server.pages[path] = body
            self._send(200, b"", length=0, has_body=True)
        else:
            self._usual(path, has_body=has_body)

    def _usual(self, path: str, *, has_body: bool) -> None:
        if path in STATUS_PATHS:
            self.send_error(int(path.rpartition("/")[2]))
        elif path == "/loop":
            self._reply(Reply(302, {"Location": "/loop"}), has_body=has_body)
        elif path == "/cut":
            self._send(200, b"only this", length=1_000, has_body=has_body)
            self.close_connection = True
        elif path in self.server.pages:
            self._page(path, has_body=has_body)
        else:
            self.send_error(404)

    def _page(self, path: str, *, has_body: bool) -> None:
        data = self.server.pages[path]
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or not self.server.has_ranges:
            self._send(200, data, length=len(data), has_body=has_body)
            return
        first, _, last = asked.partition("-")
        if (first and int(first) >= len(data)) or not data:
            self.send_error(416)
            return
        start = int(first) if first else max(len(data) - int(last), 0)
        part = data[start : int(last) + 1 if first and last else None]
        span = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}
        self._send(206, part, length=len(part), has_body=has_body, more=span)

    def _send(
        self,
        status: int,
        data: bytes,
        *,
        length: int,
        has_body: bool,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if self.server.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        own = self.server.headers.get(self.path.partition("?")[0], {})
        for name, value in {**own, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(data)

    def _reply(self, reply: Reply, *, has_body: bool) -> None:
        self.send_response(reply.status)
        named = reply.headers.items() if isinstance(reply.headers, Mapping) else reply.headers
        if "content-length" not in {name.lower() for name, _ in named}:
            self.send_header("Content-Length", str(len(reply.body)))
        for name, value in named:
            self.send_header(name, value)
        self.end_headers()
        if not has_body:
            return
        if not reply.drip_s:
            self.wfile.write(reply.body)
            return
        for byte in reply.body:
            if self.server.done.wait(reply.drip_s):
                break
            self.wfile.write(bytes([byte]))


@contextmanager
def serving(pages: dict[str, bytes]) -> Iterator[Server]:
    """Run a server until the block ends."""
    server = Server(pages)
    web._HOSTS.start_over()  # a moment ago, nobody may have listened at this port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        thread.join()
        server.server_close()
