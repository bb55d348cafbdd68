"""An HTTP server's address and faults in, an address that fails in those ways out.

Each connection carries one request: it is read whole, sent on, answered, and both ends are closed,
so that every answer can be cut, changed or held back at any byte.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

STATUSES: Final = {"500": "Internal Server Error", "503": "Slow Down", "429": "Too Many Requests"}
THERE: Final = "flipped bit on the way there"
OF_BODIES: Final = ("reset in the body", "truncated", "flipped bit")
FAULTS: Final = (
    *STATUSES,
    "reset in the body",
    "response lost",
    "byte a second",
    "frozen",
    "truncated",
    "flipped bit",
    THERE,
)
"""Ways to fail. A lost response and a cut one come after the server has done what it was asked."""
CONDITIONS: Final = (b"\r\nif-none-match:", b"\r\nif-match:")
_CODES: Final = {"500": "InternalError", "501": "NotImplemented"}
_RESET: Final = struct.pack("ii", 1, 0)  # closing sends RST
_CHUNK: Final = 2**16

Choose = Callable[[str, str], str]
"""What becomes of a request, by method and path: one of `FAULTS`, or nothing."""


class Proxy:
    """Stands before a server; `choose` may be replaced at any time, `done` counts faults.

    What would happen to a body and meets a message without one is no fault, and is not counted.
    """

    def __init__(self, endpoint: str) -> None:
        """Listen on a free port of this machine."""
        place = urlsplit(endpoint)
        self._server = (place.hostname or "", place.port or 80)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.choose: Choose = lambda _method, _path: ""
        self.knows_conditions = True
        """Without them, a write on a condition is answered with 501, as some servers do."""
        self.done: Counter[str] = Counter()
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Answer nothing any more; let go of whoever was left hanging."""
        self._ended.set()
        self._socket.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(60)
            request = _request(client)
            if not request:
                return
            method, path, _ = request.split(b" ", 2)
            if method == b"PUT" and not self.knows_conditions and _is_conditional(request):
                self.done["501"] += 1
                client.sendall(_refusal("501"))
                return
            fault = self.choose(method.decode(), path.decode())
            if fault == "frozen":
                self.done[fault] += 1
                self._ended.wait(60)
            elif fault in STATUSES:
                self.done[fault] += 1
                client.sendall(_refusal(fault))
            else:
                self._answer(client, request, fault)

    def _answer(self, client: socket.socket, request: bytes, fault: str) -> None:
        if fault == THERE:
            request = _flipped(request)
        answer = self._asked(request)
        head_bytes = answer.find(b"\r\n\r\n") + 4
        half = head_bytes + (len(answer) - head_bytes) // 2
        self.done[fault] += _meets(fault, request, answer)
        if fault == "response lost":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif fault == "reset in the body":
            client.sendall(answer[:half])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif fault == "truncated":
            client.sendall(answer[:half])
        elif fault == "byte a second":
            for at in range(len(answer)):
                client.sendall(answer[at : at + 1])
                if self._ended.wait(1):
                    return
        else:
            client.sendall(_flipped(answer) if fault == "flipped bit" else answer)

    def _asked(self, request: bytes) -> bytes:
        """Return what the server answers."""
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection")]
        with socket.create_connection(self._server, timeout=60) as server:
            server.sendall(b"\r\n".join([*lines, b"connection: close", b"", body]))
            parts = []
            while part := server.recv(_CHUNK):
                parts.append(part)
        return b"".join(parts)


def _request(client: socket.socket) -> bytes:
    """Return one whole request; nothing where the client has none."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(_CHUNK)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = _length(head)
    parts, have = [body], len(body)
    while have < length:
        part = client.recv(_CHUNK)
        if not part:
            return b""
        parts.append(part)
        have += len(part)
    return head + b"\r\n\r\n" + b"".join(parts)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _flipped(message: bytes) -> bytes:
    """Return a message with one bit of its body changed; without a body as it is."""
    if not _has_body(message):
        return message
    start = message.find(b"\r\n\r\n") + 4
    at, bit = random.randrange(start, len(message)), random.randrange(8)
    return message[:at] + bytes([message[at] ^ 1 << bit]) + message[at + 1 :]


def _meets(fault: str, request: bytes, answer: bytes) -> bool:
    """Tell whether there is what a fault needs."""
    if fault == THERE:
        return _has_body(request)
    return bool(fault) and (fault not in OF_BODIES or _has_body(answer))


def _has_body(message: bytes) -> bool:
    return message.find(b"\r\n\r\n") + 4 < len(message)


def _is_conditional(request: bytes) -> bool:
    head = request.partition(b"\r\n\r\n")[0].lower()
    return any(name in head for name in CONDITIONS)


def _refusal(status: str) -> bytes:
    body = f"<Error><Code>{_CODES.get(status, 'SlowDown')}</Code></Error>".encode()
    head = f"HTTP/1.1 {status} {STATUSES.get(status, 'Not Implemented')}\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


@contextmanager
def proxy(endpoint: str) -> Iterator[Proxy]:
    """Stand before a server."""
    found = Proxy(endpoint)
    try:
        yield found
    finally:
        found.close()
