"""What every store promises, asked of a local folder, fsspec's memory and a real S3 server."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pyarrow as pa
import pytest

from clipcap import filesystems, storage
from clipcap.errors import AccessDeniedError, NotFoundError, SettingsError, StorageError
from clipcap.storage import ObjectInfo

ODD_NAMES = [
    "a b.jpg", "ü-日本-e\u0301.jpg", "100%.jpg", "%41.jpg", "a+b.jpg", "a#b.jpg", "a?b.jpg",
    "a=b&c.jpg", "a'b\".jpg", "[a]*.jpg", "a:b.jpg", "a\\b.jpg", "no-extension", "deep/a b/c.jpg",
]  # fmt: skip


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty place on each kind of store."""
    if request.param == "s3":
        bucket: str = request.getfixturevalue("bucket")
        return f"{bucket}/root"
    if request.param == "memory":
        return f"memory://{secrets.token_hex(6)}/root"
    return str(tmp_path / "root")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A local folder."""
    return tmp_path


class TestEveryStore:
    """Promises that do not depend on the store."""

    def test_what_is_written_is_read(self, place: str) -> None:
        storage.write(f"{place}/a.bin", b"first")
        storage.write(f"{place}/a.bin", b"second")
        assert storage.read(f"{place}/a.bin") == b"second"

    def test_an_empty_object_is_an_object(self, place: str) -> None:
        storage.write(f"{place}/empty", b"")
        assert storage.read(f"{place}/empty") == b""
        assert [found.size_bytes for found in storage.list_objects(place)] == [0]

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [(0, 3, b"012"), (4, 3, b"456"), (4, None, b"456789"), (8, 9, b"89"), (-4, None, b"6789")],
    )
    def test_a_range_is_read_alone(
        self, place: str, offset: int, length: int | None, expected: bytes
    ) -> None:
        storage.write(f"{place}/a.bin", b"0123456789")
        assert storage.read_range(f"{place}/a.bin", offset, length) == expected

    def test_what_lies_beyond_the_end_is_no_bytes(self, place: str) -> None:
        storage.write(f"{place}/a.bin", b"0123456789")
        assert storage.read_range(f"{place}/a.bin", 10, None) == b""
        assert storage.read_range(f"{place}/a.bin", 12, 4) == b""

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [(0, None, b"0123456789"), (3, 5, b"34567"), (3, 50, b"3456789"), (-4, None, b"6789")],
    )
    @pytest.mark.parametrize("chunk", [1, 3, 4, 100])
    def test_a_stream_gives_the_same_bytes_in_pieces(
        self, place: str, offset: int, length: int | None, expected: bytes, chunk: int
    ) -> None:
        storage.write(f"{place}/a.bin", b"0123456789")
        pieces = list(storage.stream(f"{place}/a.bin", offset, length, chunk))
        assert b"".join(pieces) == expected
        assert all(len(piece) <= chunk for piece in pieces) or offset < 0

    def test_a_stream_of_no_bytes_is_empty(self, place: str) -> None:
        storage.write(f"{place}/empty", b"")
        assert b"".join(storage.stream(f"{place}/empty")) == b""
        assert list(storage.stream(f"{place}/empty", 0, 0)) == []

    def test_a_tail_longer_than_the_object_is_the_object(self, place: str) -> None:
        storage.write(f"{place}/a.bin", b"012")
        assert storage.read_range(f"{place}/a.bin", -8, None) == b"012"

    def test_reading_what_is_not_there_says_so(self, place: str) -> None:
        storage.write(f"{place}/other", b"1")
        with pytest.raises(NotFoundError, match=r"Cannot get .*/a\.bin"):
            storage.read(f"{place}/a.bin")
        assert storage.info(f"{place}/a.bin") is None

    def test_a_folder_is_no_object(self, place: str) -> None:
        storage.write(f"{place}/folder/a", b"1")
        assert storage.info(f"{place}/folder") is None

    def test_info_says_what_the_listing_says(self, place: str) -> None:
        storage.write(f"{place}/a.bin", b"0123456789")
        found = storage.info(f"{place}/a.bin")
        assert found is not None
        assert (found.size_bytes, bool(found.etag)) == (10, True)
        assert [(o.size_bytes, o.etag) for o in storage.list_objects(place)] == [(10, found.etag)]

    def test_a_changed_object_has_another_etag(self, place: str) -> None:
        storage.write(f"{place}/a.bin", b"first")
        first = storage.info(f"{place}/a.bin")
        storage.write(f"{place}/a.bin", b"other")
        second = storage.info(f"{place}/a.bin")
        assert first is not None
        assert second is not None
        assert first.etag != second.etag

    def test_a_listing_is_sorted_and_stays_below_its_folder(self, place: str) -> None:
        for name in ("b/2", "a", "b/1", "bb/3", "b.x"):
            storage.write(f"{place}/{name}", b"1")
        base = storage.canonical(place)
        assert [o.url for o in storage.list_objects(f"{place}/b")] == [f"{base}/b/1", f"{base}/b/2"]
        urls = [o.url for o in storage.list_objects(place)]
        assert urls == sorted(urls)
        assert len(urls) == 5

    def test_a_listing_in_batches_says_the_same(self, place: str) -> None:
        for name in ("b/2", "a", "b/1", "bb/3", "b.x", "b/.hidden", ".git/x"):
            storage.write(f"{place}/{name}", name.encode())
        batches = list(storage.list_batches(place))
        assert all(batch.schema == storage.LISTED for batch in batches)
        table = pa.Table.from_batches(batches).sort_by("url").to_pylist()
        assert [storage.ObjectInfo(**row) for row in table] == list(storage.list_objects(place))

    def test_the_listing_of_an_object_is_the_object(self, place: str) -> None:
        storage.write(f"{place}/a.bin", b"1")
        found = list(storage.list_objects(f"{place}/a.bin"))
        assert [one.url for one in found] == [f"{storage.canonical(place)}/a.bin"]

    def test_hidden_names_are_not_listed(self, place: str) -> None:
        storage.write(f"{place}/.hidden", b"1")
        storage.write(f"{place}/.git/config", b"1")
        storage.write(f"{place}/deep/er/.x/a", b"1")
        storage.write(f"{place}/seen", b"1")
        assert [o.url for o in storage.list_objects(place)] == [f"{storage.canonical(place)}/seen"]

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_an_odd_name_survives(self, place: str, name: str) -> None:
        """What the listing calls an object can be read under that very URL."""
        base = storage.canonical(place)
        url = storage.canonical(f"{place}/{name}") if "://" not in place else f"{base}/{name}"
        storage.write(url, name.encode())

        [found] = storage.list_objects(place)

        assert found.url == url
        assert storage.name_below(found.url, base) == name
        assert storage.read(found.url) == name.encode()
        storage.delete(found.url)
        assert storage.info(found.url) is None

    def test_create_refuses_a_second_writer(self, place: str) -> None:
        assert storage.create(f"{place}/lease", b"mine")
        assert not storage.create(f"{place}/lease", b"yours")
        assert storage.read(f"{place}/lease") == b"mine"

    def test_deleting_twice_is_no_error(self, place: str) -> None:
        storage.write(f"{place}/a", b"1")
        storage.delete(f"{place}/a")
        storage.delete(f"{place}/a")
        assert storage.info(f"{place}/a") is None

    def test_the_writable_probe_leaves_nothing(self, place: str) -> None:
        storage.write(f"{place}/a", b"1")
        storage.require_writable(place)
        assert [o.url for o in storage.list_objects(place)] == [f"{storage.canonical(place)}/a"]


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_of_many_creators_one_wins(request: pytest.FixtureRequest, kind: str) -> None:
    place = request.getfixturevalue("bucket") if kind == "s3" else request.getfixturevalue("local")
    url = f"{place}/lease"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: storage.create(url, b"%d" % number), range(8)))
    assert won.count(True) == 1
    assert storage.read(url) == b"%d" % won.index(True)


class TestLocal:
    """Promises about a folder on this machine."""

    def test_a_write_leaves_no_temporary_file(self, local: Path) -> None:
        storage.write(str(local / "deep" / "a"), b"1")
        storage.create(str(local / "deep" / "b"), b"1")
        storage.create(str(local / "deep" / "b"), b"2")
        assert sorted(path.name for path in (local / "deep").iterdir()) == ["a", "b"]

    def test_a_failed_write_leaves_the_old_object_and_nothing_else(self, local: Path) -> None:
        storage.write(str(local / "a"), b"old")
        with largest_file(1_000), pytest.raises(StorageError, match="Cannot put"):
            storage.write(str(local / "a"), b"new" * 1_000)
        assert [path.name for path in local.iterdir()] == ["a"]
        assert storage.read(str(local / "a")) == b"old"

    def test_an_output_below_a_file_is_refused(self, local: Path) -> None:
        (local / "file").write_bytes(b"1")
        for call in (storage.write, storage.create):
            with pytest.raises(StorageError, match=r"Cannot put .*file/out"):
                call(str(local / "file" / "out"), b"1")
        with pytest.raises(StorageError, match=r"Cannot put .*file/out"):
            storage.require_writable(str(local / "file" / "out"))

    def test_a_folder_that_is_not_there_is_named(self, local: Path) -> None:
        with pytest.raises(NotFoundError, match="nowhere"):
            list(storage.list_objects(str(local / "nowhere")))

    def test_what_is_no_file_is_not_listed(self, local: Path) -> None:
        (local / "dangling").symlink_to(local / "nothing")
        (local / "seen").write_bytes(b"1")
        assert [found.url for found in storage.list_objects(str(local))] == [f"file://{local}/seen"]

    def test_what_goes_while_it_is_listed_ends_no_listing(self, local: Path) -> None:
        for name in ("folder/a", "other/b", "seen", "went"):
            storage.write(str(local / name), b"1")
        real = os.walk

        def walk(
            top: Path, onerror: Callable[[OSError], None]
        ) -> Iterator[tuple[str, list[str], list[str]]]:
            for at, folders, files in real(top, onerror=onerror):
                if at == str(local):
                    (local / "went").unlink()
                    shutil.rmtree(local / "other")
                yield at, folders, files

        with patch.object(os, "walk", walk):
            found = [storage.name_below(one.url, f"file://{local}") for one in listed(local)]
        assert found == ["folder/a", "seen"]

    def test_a_file_may_be_of_a_year_that_no_calendar_has(self, tmp_path: Path) -> None:
        """Not on every disk: tmpfs, btrfs and ZFS keep such times."""
        storage.write(str(tmp_path / "a"), b"1")
        real = (tmp_path / "a").stat()
        for seconds in (10**12, 10**30, -(10**12)):
            far = os.stat_result((*real[:8], seconds, real[9]), {"st_mtime": float(seconds)})
            with patch.object(os, "stat", return_value=far):
                assert [one.modified_at for one in listed(tmp_path)] == [None]

    def test_files_that_may_not_be_looked_at_are_not_passed_over(self, local: Path) -> None:
        """As in a folder with the right to read it, but not to enter it."""
        storage.write(str(local / "a"), b"1")
        storage.write(str(local / "locked" / "b"), b"1")
        real = os.stat

        def stat(path: str, **chosen: bool) -> os.stat_result:
            if "locked/" in str(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, **chosen)

        with patch.object(os, "stat", stat), pytest.raises(AccessDeniedError, match="Cannot list"):
            listed(local)


def listed(place: Path) -> list[ObjectInfo]:
    return list(storage.list_objects(str(place)))


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/a",
        "s3://b/a?X-Amz-Signature=secret",
        "https://h/a.csv?se=1&SIG=secret",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        storage.canonical(url)
    assert "secret" not in str(refused.value).replace("AWS_SECRET", "")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("s3://bucket/", "s3://bucket"),
        ("gs://bucket/a//", "gs://bucket/a"),
        ("memory:///a/", "memory://a"),
        ("https://host/a/", "https://host/a/"),
        ("file:///a%20b/", "file:///a%20b"),
    ],
)
def test_a_place_has_one_address(url: str, expected: str) -> None:
    """A slash at the end says nothing of a folder, but on the web it is another page."""
    assert storage.canonical(url) == expected


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(SettingsError, match="nosuch://"):
        storage.read("nosuch://a/b")


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger file: a real write that fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("said", "etag", "is_old"),
    [
        ({"mtime": 1_700_000_000}, "3-1700000000", True),
        ({"mtime": datetime(2023, 11, 14, tzinfo=UTC)}, "3-2023-11-14 00:00:00+00:00", True),
        ({"mtime": 1_700_000_000, "ETag": '"a"'}, "a", True),
        ({"mtime": 1e15}, "3-1000000000000000.0", False),
        ({"mtime": "yesterday"}, "3-yesterday", False),
        ({"mtime": 0}, "3-0", False),
        ({}, "3-0", False),
        ({"created": 1_700_000_000.5, "mtime": 5}, "3-1700000000.5", True),
    ],
)
def test_a_filesystem_that_tells_only_mtime_tells_a_time(
    said: dict[str, Any], etag: str, is_old: bool
) -> None:
    """So do SFTP, HDFS and SMB; their etags stay as they were, or every image looks changed."""
    place = filesystems.FsspecPlace("memory://x", fsspec.filesystem("memory"), 9.0)
    with patch.object(place.filesystem, "info", lambda _: {"type": "file", "size": 3} | said):
        found = place.info()
    assert found is not None
    assert found.etag == etag
    assert storage.is_left_over(found) == is_old
