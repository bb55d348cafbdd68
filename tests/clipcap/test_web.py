"""What storage says of the web: pages by address, and an error of ours for every refusal."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from clipcap import pages, storage
from clipcap import web as web_module
from clipcap.errors import (
    AccessDeniedError,
    ImageError,
    NotFoundError,
    StorageError,
    TransientStorageError,
)
from clipcap.refusals import Refusal
from tests.servers import free_ports
from tests.web import Reply, Server, serving

STRICT = storage.page_form()
HERE = storage.page_form(private=True)
"""Strangers' pages, though they lie on loopback."""
MOST = 1_000


@pytest.fixture
def web() -> Iterator[Server]:
    with serving({"/a.png": b"0123456789", "/a b/ü.png": b"odd", "/empty": b""}) as server:
        yield server


def page(url: str, most: int = MOST) -> bytes:
    """Read a page as a table's row, though it lies on loopback."""
    return storage.read_page(url, HERE, most)


class TestPages:
    """Pages, parts of them, and what is said of them."""

    def test_a_page_is_read_whole_and_by_range(self, web: Server) -> None:
        assert storage.read(f"{web.url}/a.png") == b"0123456789"
        assert storage.read_range(f"{web.url}/a.png", 2, 3) == b"234"
        assert storage.read_range(f"{web.url}/a.png", -3, None) == b"789"
        assert storage.read_range(f"{web.url}/a.png", 7, 0) == b""
        assert storage.read_range(f"{web.url}/a.png", 20, 5) == b""
        assert storage.read(f"{web.url}/empty") == b""
        assert list(storage.stream(f"{web.url}/a.png", 1, 8, 3)) == [b"123", b"456", b"78"]

    def test_an_odd_address_is_asked_for_in_its_own_spelling(self, web: Server) -> None:
        web.pages["/a%20b/%C3%BC.png"] = b"odd"
        for address in ("/a b/ü.png", "/a%20b/%C3%BC.png", "/a b/ü.png#part"):
            assert storage.read(f"{web.url}{address}") == b"odd"

    def test_a_query_is_part_of_the_address(self, web: Server) -> None:
        assert storage.read(f"{web.url}/a.png?width=300&fit=crop") == b"0123456789"
        assert web.asked == ["GET /a.png?width=300&fit=crop"]

    def test_a_server_without_ranges_is_told_from_one_with(self, web: Server) -> None:
        """The whole of a tar must never be taken for one of its members."""
        web.has_ranges = False
        with pytest.raises(StorageError, match="sends the whole"):
            storage.read_range(f"{web.url}/a.png", 2, 3)

    def test_another_range_than_the_wanted_one_is_refused(self, web: Server) -> None:
        web.replies["/a.png"] = [Reply(206, {"Content-Range": "bytes 0-2/10"}, b"012")]
        with pytest.raises(StorageError, match="another part"):
            storage.read_range(f"{web.url}/a.png", 2, 3)

    def test_who_asks_is_told_and_nothing_is_to_be_packed(self, web: Server) -> None:
        page(f"{web.url}/a.png")
        assert web.sent[0]["user-agent"].startswith("clipcap/")
        assert web.sent[0]["accept-encoding"] == "identity"
        assert "authorization" not in web.sent[0]

    def test_size_and_version_come_without_the_page(self, web: Server) -> None:
        web.headers["/a.png"] = {"ETag": '"e1"', "Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT"}
        found = storage.info(f"{web.url}/a.png")
        assert found is not None
        assert (found.size_bytes, found.etag) == (10, "e1")
        assert found.modified_at == datetime(2026, 11, 20, 10, tzinfo=UTC)
        assert storage.look(f"{web.url}/a.png", HERE) == found
        assert web.asked == ["HEAD /a.png"] * 2

    @pytest.mark.parametrize("status", [400, 403, 405, 501])
    def test_a_server_that_knows_no_head_tells_no_version(self, web: Server, status: int) -> None:
        web.replies["/a.png"] = [Reply(status), Reply(status)]
        assert storage.look(f"{web.url}/a.png", HERE) is None
        found = storage.info(f"{web.url}/a.png")
        assert found is not None
        assert found.size_bytes == 10

    def test_the_web_is_only_read(self, web: Server) -> None:
        for call in (
            lambda url: storage.write(url, b"1"),
            lambda url: storage.create(url, b"1"),
            storage.delete,
            lambda url: list(storage.list_batches(url)),
        ):
            with pytest.raises(StorageError, match="can only be read"):
                call(f"{web.url}/a.png")
        assert web.asked == []


class TestRefusals:
    """Every way in which a page may not come."""

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/nothing", NotFoundError),
            ("/status/400", NotFoundError),
            ("/status/404", NotFoundError),
            ("/status/410", NotFoundError),
            ("/loop", NotFoundError),
            ("/status/401", AccessDeniedError),
            ("/status/403", AccessDeniedError),
            ("/status/451", AccessDeniedError),
            ("/status/408", TransientStorageError),
            ("/status/425", TransientStorageError),
            ("/status/429", TransientStorageError),
            ("/status/500", TransientStorageError),
            ("/status/503", TransientStorageError),
            ("/cut", TransientStorageError),
        ],
    )
    def test_every_refusal_is_an_error_of_ours(
        self, web: Server, path: str, expected: type[StorageError]
    ) -> None:
        with pytest.raises(StorageError) as caught:
            page(f"{web.url}{path}")
        assert type(caught.value) is expected
        assert str(caught.value).startswith(f"Cannot get {web.url}{path}: ")
        again = expected is TransientStorageError
        assert len(web.asked) == (3 if again else 6 if path == "/loop" else 1)

    def test_a_server_that_is_busy_is_asked_again(self, web: Server) -> None:
        web.replies["/a.png"] = [Reply(503), Reply(429)]
        assert page(f"{web.url}/a.png") == b"0123456789"

    @pytest.mark.parametrize("is_date", [False, True])
    def test_the_time_that_a_server_wants_is_given(self, web: Server, is_date: bool) -> None:
        then = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
        web.replies["/a.png"] = [Reply(429, {"Retry-After": then if is_date else "2"})]
        began = time.monotonic()
        assert page(f"{web.url}/a.png") == b"0123456789"
        assert time.monotonic() - began >= 1.9

    def test_a_server_that_wants_an_hour_is_left_alone(self, web: Server) -> None:
        web.replies["/a.png"] = [Reply(429, {"Retry-After": "3600"})]
        with pytest.raises(TransientStorageError):
            page(f"{web.url}/a.png")
        assert len(web.asked) == 1

    def test_a_server_that_does_not_answer_has_a_deadline(
        self, web: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(storage, "DEADLINE_S", 0.3)
        with pytest.raises(TransientStorageError, match="did not answer"):
            storage.read(f"{web.url}/slow")

    @pytest.mark.parametrize("part", ["body", "headers"])
    def test_a_server_that_sends_a_byte_now_and_then_has_the_same_deadline(
        self, web: Server, monkeypatch: pytest.MonkeyPatch, part: str
    ) -> None:
        monkeypatch.setattr(storage, "PAGE_S", 1.0)
        web.replies["/a.png"] = [Reply(body=b"1" * 500, drip_s=0.1)]
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
        began = time.monotonic()
        with dripping(answer, 0.1) as dripped, pytest.raises(TransientStorageError):
            page(f"{web.url}/a.png" if part == "body" else dripped)
        assert time.monotonic() - began < 2

    def test_a_host_that_is_not_there_may_be_there_later(self) -> None:
        with pytest.raises(TransientStorageError):
            storage.read(f"http://127.0.0.1:{free_ports(1)[0]}/a.png")

    def test_a_host_without_tls_gives_its_plain_pages_all_the_same(self, web: Server) -> None:
        """As one whose certificate has run out does."""
        with pytest.raises(TransientStorageError, match="ConnectError"):
            page(f"https{web.url.removeprefix('http')}/a.png")
        assert page(f"{web.url}/a.png") == storage.read(f"{web.url}/a.png")

    def test_a_refusal_is_one_sentence_behind_the_other(self, web: Server) -> None:
        web.replies["/a.png"] = [Reply(403)]
        with pytest.raises(AccessDeniedError, match=r"denied \(403\)\. Web addresses are read"):
            page(f"{web.url}/a.png")

    def test_a_host_that_a_person_gave_is_always_tried(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried = connections(monkeypatch)
        for _ in range(2):
            with pytest.raises(TransientStorageError):
                storage.read("http://127.0.0.9:9/a.png")
        assert len(tried) == 6

    def test_a_host_that_is_not_there_is_not_asked_for_every_row(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A dead host with a thousand rows must not cost ten seconds for each of them."""
        (port,) = free_ports(1)
        tried = connections(monkeypatch)
        began = time.monotonic()
        for number in range(20):
            with pytest.raises(TransientStorageError):
                page(f"http://127.0.0.9:{port}/{number}.png")
        assert len(tried) == 1
        assert time.monotonic() - began < 2

    @pytest.mark.parametrize(
        "url",
        ["http://", "https://[::1/x", "http://h:99999/", "http://a..b/", f"http://{'a' * 70}.b/"],
    )
    def test_what_is_no_address_is_not_there(self, url: str) -> None:
        with pytest.raises(NotFoundError):
            storage.read(url)


class TestSize:
    """No more of a page is read than may be taken."""

    def test_a_page_that_says_it_is_too_large_is_not_read(self, web: Server) -> None:
        web.replies["/a.png"] = [Reply(body=b"1" * (MOST + 1), drip_s=0.5)]
        began = time.monotonic()
        with pytest.raises(ImageError, match="1001 bytes are more than 1000") as caught:
            page(f"{web.url}/a.png")
        assert caught.value.reason == "too_large"
        assert time.monotonic() - began < 1

    def test_a_page_that_does_not_say_so_is_read_so_far(self, web: Server) -> None:
        endless = b"HTTP/1.1 200 OK\r\n\r\n" + b"1" * 10 * MOST
        with dripping(endless, 0.0) as url, pytest.raises(ImageError, match="more than 1000"):
            page(url)

    def test_a_page_of_just_the_size_is_taken(self, web: Server) -> None:
        web.pages["/a.png"] = b"1" * MOST
        assert len(page(f"{web.url}/a.png")) == MOST

    @pytest.mark.parametrize("packing", ["gzip", "x-gzip", "deflate"])
    def test_what_is_packed_though_nobody_asked_is_unpacked(
        self, web: Server, packing: str
    ) -> None:
        packed = zlib.compress(b"1" * MOST) if packing == "deflate" else gzip.compress(b"1" * MOST)
        web.replies["/a.png"] = [Reply(headers={"Content-Encoding": packing}, body=packed)]
        assert page(f"{web.url}/a.png") == b"1" * MOST

    def test_a_bomb_is_not_unpacked(self, web: Server) -> None:
        bomb = gzip.compress(bytes(2**28))
        web.replies["/a.png"] = [Reply(headers={"Content-Encoding": "gzip"}, body=bomb)]
        tracemalloc.start()
        try:
            with pytest.raises(ImageError, match="more than") as caught:
                page(f"{web.url}/a.png", most=2**20)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert caught.value.reason == "too_large"
        assert peak < 4 * 2**20

    @pytest.mark.parametrize(
        ("packing", "body", "expected"),
        [
            ("br", b"1", NotFoundError),
            ("gzip", b"no gzip", NotFoundError),
            ("gzip", gzip.compress(b"1" * 99)[:-6], TransientStorageError),
        ],
    )
    def test_what_cannot_be_unpacked_is_refused(
        self, web: Server, packing: str, body: bytes, expected: type[StorageError]
    ) -> None:
        reply = Reply(headers={"Content-Encoding": packing}, body=body)
        web.replies["/a.png"] = [reply] * 3
        with pytest.raises(expected):
            page(f"{web.url}/a.png")


class TestRedirects:
    """A page may lie elsewhere, a few steps away."""

    def test_five_steps_are_followed_and_no_more(self, web: Server) -> None:
        for step in range(6):
            web.replies[f"/{step}"] = [Reply(302, {"Location": f"{step + 1}"})] * 2
        web.pages["/6"] = b"there"
        assert page(f"{web.url}/1") == b"there"
        with pytest.raises(NotFoundError, match="do not end"):
            page(f"{web.url}/0")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_every_kind_of_redirect_is_followed(self, web: Server, status: int) -> None:
        web.replies["/b"] = [Reply(status, {"Location": f"{web.url}/a.png"})]
        assert page(f"{web.url}/b") == b"0123456789"

    @pytest.mark.parametrize(
        "target", ["file:///etc/passwd", "ftp://h/a", "http://me:key@h/a", "http://[", "gopher:x"]
    )
    def test_a_redirect_to_what_is_no_page_is_refused(self, web: Server, target: str) -> None:
        web.replies["/b"] = [Reply(302, {"Location": target})]
        with pytest.raises(NotFoundError) as caught:
            page(f"{web.url}/b")
        assert "key" not in str(caught.value)

    def test_a_safe_connection_is_not_left(self) -> None:
        assert pages.redirected("http://h/a", "https://h/b") == "https://h/b"
        assert pages.redirected("https://h/a", "/b") == "https://h/b"
        with pytest.raises(Refusal):
            pages.redirected("https://h/a", "http://h/b")


class TestOptOut:
    """Who forbids it by header is not read, unless the table says otherwise."""

    @pytest.mark.parametrize(
        ("tags", "is_out"),
        [
            (["noai"], True),
            (["noimageai"], True),
            (["NoIndex, nofollow"], True),
            (["nofollow , noimageindex"], True),
            (["none"], True),
            (["clipcap: noai"], True),
            (["*: noai"], True),
            (["nosnippet", "noai"], True),
            (["googlebot: nofollow", "clipcap: nofollow, noindex"], True),
            (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True),
            (["max-snippet: 20, noimageai"], True),
            ([], False),
            (["all"], False),
            (["nofollow, nosnippet"], False),
            (["googlebot: noindex"], False),
            (["googlebot: noindex", "nofollow"], False),
            (["unavailable_after: noai"], False),
            (["noaim"], False),
        ],
    )
    def test_the_directives(self, web: Server, tags: list[str], is_out: bool) -> None:
        reply = Reply(headers=tuple(("X-Robots-Tag", tag) for tag in tags), body=b"page")
        web.replies["/a.png"] = [reply] * 2
        if is_out:
            with pytest.raises(ImageError, match="X-Robots-Tag") as caught:
                page(f"{web.url}/a.png")
            assert caught.value.reason == "opted_out"
        else:
            assert page(f"{web.url}/a.png") == b"page"
        form = storage.page_form(private=True, honour_opt_out=False)
        web.replies["/a.png"] = [reply]
        assert storage.read_page(f"{web.url}/a.png", form, MOST) == b"page"

    def test_a_page_that_is_gone_is_gone_whatever_else_it_says(self, web: Server) -> None:
        web.replies["/a.png"] = [Reply(404, {"X-Robots-Tag": "noindex"})]
        with pytest.raises(NotFoundError):
            page(f"{web.url}/a.png")


def test_a_host_has_a_few_requests_at_a_time(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most, lock = 0, 0, threading.Lock()
    real = web.RequestHandlerClass._answer  # type: ignore[attr-defined]

    def counted(self: object, **given: object) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        real(self, **given)
        with lock:
            busy -= 1

    monkeypatch.setattr(web.RequestHandlerClass, "_answer", counted)
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(page, [f"{web.url}/a.png"] * 96))
    assert found == [b"0123456789"] * 96
    assert 2 < most <= 8
    assert not web_module._HOSTS._busy


def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return what is connected to from now on; each connection is refused."""
    tried: list[tuple[str, int]] = []

    def refused(address: tuple[str, int], *_: object, **__: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refused)
    return tried


@contextmanager
def dripping(answer: bytes, pause_s: float) -> Iterator[str]:
    """Give the address of a server that sends an answer byte by byte, and closes the connection."""
    done = threading.Event()

    def send(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(65_536)
            pieces = [answer] if not pause_s else [answer[n : n + 1] for n in range(len(answer))]
            for piece in pieces:
                if done.wait(pause_s):
                    return
                try:
                    connection.sendall(piece)
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/a.png"
        finally:
            done.set()
            with socket.create_connection(("127.0.0.1", port), 1):
                pass
            thread.join()
