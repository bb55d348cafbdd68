"""Azure's blob storage, as its emulator has it: every promise of the storage, and a whole night."""

from __future__ import annotations

import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipcap import storage, verify
from clipcap.errors import AccessDeniedError, NotFoundError, SettingsError, TransientStorageError
from flows.nightly import nightly
from tests.azurite import ACCOUNT, KEY
from tests.clipcap.test_storage_answers import ALL_CALLS
from tests.nights import draw, make_tiny
from tests.settings import nightly_settings
from tests.tables import glob

LARGE_BYTES = 40 * 2**20


def test_an_object_is_written_read_listed_and_removed(container: str) -> None:
    url = f"{container}/a b/ü.bin"
    storage.write(url, b"01234", b"56789")
    assert storage.read(url) == b"0123456789"
    assert storage.read_range(url, 2, 3) == b"234"
    assert storage.read_range(url, -3, None) == b"789"
    assert storage.read_range(url, 20, 3) == b""
    assert list(storage.stream(url, 1, 8, 3)) == [b"123", b"456", b"78"]
    found = storage.info(url)
    assert found is not None
    assert [found] == list(storage.list_objects(container))
    assert (found.size_bytes, found.etag) == (10, storage.read_part(url, 0, 1).etag.strip('"'))
    storage.delete(url)
    storage.delete(url)
    assert storage.info(url) is None
    with pytest.raises(NotFoundError, match="Cannot get"):
        storage.read(url)


def test_a_large_object_goes_in_parts_and_a_listing_has_pages(container: str) -> None:
    data = secrets.token_bytes(2**20) * (LARGE_BYTES // 2**20)
    storage.write(f"{container}/large", data)
    assert storage.read(f"{container}/large") == data
    names = [f"{container}/many/{number:04d}" for number in range(1_010)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda url: storage.write(url, b"1"), names))
    assert [one.url for one in storage.list_objects(f"{container}/many")] == names


def test_of_many_who_create_one_object_one_does(container: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: storage.create(f"{container}/a", b"%d" % n), range(8)))
    assert made.count(True) == 1
    assert storage.read(f"{container}/a") == b"%d" % made.index(True)


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(container: str) -> None:
    storage.write(f"{container}/a", bytes(100))
    pieces = storage.stream(f"{container}/a", 0, None, 10)
    assert next(pieces) == bytes(10)
    storage.write(f"{container}/a", b"1" * 100)
    with pytest.raises(TransientStorageError, match="replaced"):
        list(pieces)


def test_refusals_say_what_was_refused_and_no_key(
    container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = f"{container}-typo"
    with pytest.raises(NotFoundError):
        storage.read(f"{missing}/a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY[:-6] + "AAAA==")
    for name, call in ALL_CALLS.items():
        if name != "require":
            with pytest.raises(AccessDeniedError) as refused:
                call(f"{container}/a")
            assert "AZURE_STORAGE_ACCOUNT_KEY" in str(refused.value)
            assert KEY[:20] not in str(refused.value)


@pytest.mark.parametrize("name", ALL_CALLS)
def test_a_store_that_froze_ends_every_call(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"http://127.0.0.1:{frozen.getsockname()[1]}/{ACCOUNT}"
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", address)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        monkeypatch.setattr(storage, "DEADLINE_S", 1.0)
        began = time.monotonic()
        with pytest.raises(TransientStorageError, match="az://"):
            ALL_CALLS[name]("az://container/a.bin")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("protocol", ["abfs", "abfss"])
def test_the_other_name_of_azure_is_the_same_place(container: str, protocol: str) -> None:
    storage.write(f"{container}/a", b"1")
    other = f"{protocol}://{container.removeprefix('az://')}"
    assert storage.canonical(f"{other}/a") == f"{container}/a"
    assert storage.read(f"{other}/a") == b"1"
    assert [one.url for one in storage.list_objects(other)] == [f"{container}/a"]


def test_an_account_in_an_address_is_refused_with_the_way_to_say_it() -> None:
    with pytest.raises(SettingsError, match=r"az://photos/2026.*AZURE_STORAGE_ACCOUNT_NAME"):
        storage.canonical("abfss://photos@myaccount.dfs.core.windows.net/2026")


@pytest.mark.slow
def test_a_night_from_a_container_to_a_container(container: str, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "models")
    settings = nightly_settings(tiny)
    for n in range(5):
        draw(tmp_path / "a.png", n)
        storage.write(f"{container}/in/{n}.png", (tmp_path / "a.png").read_bytes())
    source, out = f"{container}/in", f"{container}/out"

    nightly.fn(source, out, settings)
    storage.delete(f"{source}/0.png")
    second = nightly.fn(source, out, settings).night.plan

    assert second is not None
    assert (second.new, second.deleted, second.unchanged) == (0, 1, 4)
    assert sorted(glob(out, "captions")["source_uri"].to_pylist()) == [
        f"{source}/{n}.png" for n in range(1, 5)
    ]
    assert verify.verify(out).problems == ()
