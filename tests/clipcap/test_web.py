"""What storage says of the web: pages by address, and an error of ours for every refusal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clipcap import storage
from clipcap.errors import AccessDeniedError, NotFoundError, StorageError, TransientStorageError
from tests.servers import free_ports
from tests.web import Server, serving


@pytest.fixture
def web() -> Iterator[Server]:
    with serving({"/a.png": b"0123456789", "/a b/ü.png": b"odd", "/empty": b""}) as server:
        yield server


def test_a_page_is_read_whole_and_by_range(web: Server) -> None:
    assert storage.read(f"{web.url}/a.png") == b"0123456789"
    assert storage.read_range(f"{web.url}/a.png", 2, 3) == b"234"
    assert storage.read_range(f"{web.url}/a.png", 7, 0) == b""
    assert storage.read(f"{web.url}/empty") == b""


def test_a_query_is_part_of_the_address(web: Server) -> None:
    assert storage.read(f"{web.url}/a.png?width=300&fit=crop") == b"0123456789"
    assert web.asked == ["GET /a.png?width=300&fit=crop"]


def test_a_server_without_ranges_is_told_from_one_with(web: Server) -> None:
    """The whole of a tar must never be taken for one of its members."""
    web.has_ranges = False
    with pytest.raises(StorageError, match="sends the whole"):
        storage.read_range(f"{web.url}/a.png", 2, 3)


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
        ("/status/429", TransientStorageError),
        ("/status/500", TransientStorageError),
        ("/status/503", TransientStorageError),
        ("/cut", TransientStorageError),
    ],
)
def test_every_refusal_is_an_error_of_ours(
    web: Server, path: str, expected: type[StorageError]
) -> None:
    with pytest.raises(StorageError) as caught:
        storage.read(f"{web.url}{path}")
    assert type(caught.value) is expected
    assert str(caught.value).startswith(f"Cannot get {web.url}{path}: ")


def test_a_server_that_does_not_answer_has_a_deadline(
    web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "DEADLINE_S", 0.3)
    with pytest.raises(TransientStorageError, match="did not answer"):
        storage.read(f"{web.url}/slow")


def test_a_host_that_is_not_there_may_be_there_later() -> None:
    (port,) = free_ports(1)
    with pytest.raises(TransientStorageError):
        storage.read(f"http://127.0.0.1:{port}/a.png")


@pytest.mark.parametrize("url", ["http://", "https://[::1/x", "http://h:99999/"])
def test_what_is_no_address_is_not_there(url: str) -> None:
    with pytest.raises(NotFoundError):
        storage.read(url)
