"""Pages in, a web server on loopback out that gives them, and refuses in every way asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATUS_PATHS = {f"/status/{code}" for code in (400, 401, 403, 404, 410, 429, 451, 500, 503)}


class Server(ThreadingHTTPServer):
    """Gives `pages` by path, keeps what was `asked` for, and `/slow` waiting for `done`."""

    daemon_threads = True

    def __init__(self, pages: dict[str, bytes]) -> None:
        """Listen on a free port of loopback."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = pages
        self.asked: list[str] = []
        self.done = threading.Event()
        self.has_ranges = True

    @property
    def url(self) -> str:
        """The address of the root, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _answer(self, *, has_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path == "/slow":
            self.server.done.wait(60)
            self.close_connection = True
        elif path in STATUS_PATHS:
            self.send_error(int(path.rpartition("/")[2]))
        elif path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/cut":
            self._send(200, b"only this", length=1_000, has_body=has_body)
        elif path in self.server.pages:
            self._page(self.server.pages[path], has_body=has_body)
        else:
            self.send_error(404)

    def _page(self, data: bytes, *, has_body: bool) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked or not self.server.has_ranges:
            self._send(200, data, length=len(data), has_body=has_body)
            return
        first, _, last = asked.partition("-")
        part = data[int(first) : int(last) + 1 if last else None] if first else data[-int(last) :]
        self._send(206, part, length=len(part), has_body=has_body)

    def _send(self, status: int, data: bytes, *, length: int, has_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if self.server.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if has_body:
            self.wfile.write(data)


@contextmanager
def serving(pages: dict[str, bytes]) -> Iterator[Server]:
    """Run a server until the block ends."""
    server = Server(pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        thread.join()
        server.server_close()
