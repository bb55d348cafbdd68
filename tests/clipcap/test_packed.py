"""What reading packed bytes promises: rows are read once, in bounded memory, or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap import columnar, packed, storage
from clipcap.errors import ImageError, NotFoundError, TransientStorageError
from clipcap.packed import Reader
from clipcap.sample import Bytes

MOST = 2**30
GROUP = 20
IMAGES = [np.random.default_rng(n).bytes(5_000) for n in range(200)]


def written(path: Path, images: list[bytes] = IMAGES, group: int = GROUP) -> list[Bytes]:
    """Write images into a Parquet file, and return the places of its rows."""
    table = pa.table({"image": [{"bytes": data, "path": "a"} for data in images]})
    pq.write_table(
        table, path, row_group_size=group, data_page_size=50_000, write_batch_size=10,
        use_dictionary=False,
    )  # fmt: skip
    url = storage.canonical(str(path))
    return [packed.parquet_row(url, "image.bytes", row) for row in range(len(images))]


class Counted:
    """The bytes that were read of files while the block ran."""

    def __init__(self) -> None:
        self.bytes = self.longest = self.requests = 0
        self._real = storage.read_range

    def read_range(self, url: str, offset: int, length: int | None) -> bytes:
        data = self._real(url, offset, length)
        self.bytes += len(data)
        self.longest = max(self.longest, len(data))
        self.requests += 1
        return data


@pytest.fixture
def counted() -> Iterator[Counted]:
    found = Counted()
    with patch.object(storage, "read_range", side_effect=found.read_range):
        yield found


def test_rows_are_read_by_many_threads_and_their_file_once(
    tmp_path: Path, counted: Counted
) -> None:
    rows = written(tmp_path / "a.parquet")
    reader = Reader(rows)
    with ThreadPoolExecutor(storage.IN_FLIGHT) as pool:
        assert list(pool.map(lambda at: reader.read(at, MOST), rows)) == IMAGES
    assert counted.bytes <= 1.05 * (tmp_path / "a.parquet").stat().st_size + columnar.FOOTER_BYTES
    assert counted.requests < 3 * len(IMAGES) / GROUP


def test_row_groups_without_a_wanted_row_are_not_read(tmp_path: Path, counted: Counted) -> None:
    rows = written(tmp_path / "a.parquet")
    wanted = [rows[n] for n in (3, 64, 70, 199)]
    reader = Reader(wanted)
    assert [reader.read(at, MOST) for at in wanted] == [IMAGES[n] for n in (3, 64, 70, 199)]
    groups = 3 * GROUP * 5_100
    assert counted.bytes <= groups + columnar.FOOTER_BYTES


@given(order=st.permutations(range(50)), wanted=st.sets(st.integers(0, 49)))
def test_any_order_gives_every_row(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], wanted: set[int]
) -> None:
    rows = written(tmp_path_factory.mktemp("any") / "a.parquet", IMAGES[:50], group=7)
    reader = Reader(rows[n] for n in wanted)
    assert [reader.read(rows[n], MOST) for n in order] == [IMAGES[n] for n in order]
    assert reader.read(rows[order[0]], MOST) == IMAGES[order[0]], "and again"


def test_a_thread_that_is_late_finds_its_row_read(tmp_path: Path, counted: Counted) -> None:
    """Row 19 was asked for after row 20, of the next group, and its own was read again for it."""
    rows = written(tmp_path / "a.parquet")
    reader = Reader(rows)
    order = [*range(15), 25, 20, 17, 19, 18, 15, 16, 26, 60, 45]
    assert [reader.read(rows[n], MOST) for n in order] == [IMAGES[n] for n in order]
    groups = 4 * GROUP * 5_100
    assert counted.bytes <= groups + columnar.FOOTER_BYTES


def test_a_row_group_larger_than_memory_is_read_in_pieces(tmp_path: Path, counted: Counted) -> None:
    """Many writers make one row group of a whole file, of hundreds of megabytes."""
    images = [os.urandom(100_000) for _ in range(600)]
    rows = written(tmp_path / "a.parquet", images, group=10**6)
    reader = Reader(rows)
    before = pa.total_allocated_bytes()
    most = 0
    for at, data in zip(rows, images, strict=True):
        assert reader.read(at, MOST) == data
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < columnar.WINDOW_BYTES + 15_000_000 < 40_000_000
    assert counted.longest <= columnar.WINDOW_BYTES
    assert pa.total_allocated_bytes() - before < 1_000_000, "the last row lets go of the file"


def test_a_damaged_row_group_takes_only_its_own_rows(tmp_path: Path, counted: Counted) -> None:
    path = tmp_path / "a.parquet"
    rows = written(path)
    data = bytearray(path.read_bytes())
    at = data.index(IMAGES[60])
    data[at - 40 : at - 4] = b"\xff" * 36  # the header of the page
    path.write_bytes(data)
    reader, said = Reader(rows), []
    for n, row in enumerate(rows):
        try:
            said.append("right" if reader.read(row, MOST) == IMAGES[n] else "wrong")
        except ImageError as error:
            said.append(error.reason)
    assert said == ["decode_failed" if 60 <= n < 80 else "right" for n in range(200)]
    assert counted.bytes <= 1.05 * len(data) + columnar.FOOTER_BYTES, "and is read once"


def test_damage_behind_a_row_is_not_said_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = written(path, group=100)
    data = bytearray(path.read_bytes())
    at = data.index(IMAGES[80])
    data[at - 40 : at - 4] = b"\xff" * 36
    path.write_bytes(data)
    reader, order = Reader(rows), (10, 120, 15, 45)
    assert [reader.read(rows[n], MOST) for n in order] == [IMAGES[n] for n in order]
    with pytest.raises(ImageError, match="Row group 0"):
        reader.read(rows[85], MOST)


def test_a_store_that_says_later_is_asked_again(tmp_path: Path) -> None:
    rows = written(tmp_path / "a.parquet")
    reader, real = Reader(rows), storage.read_range
    assert reader.read(rows[0], MOST) == IMAGES[0]
    refusal = TransientStorageError("Cannot get it: the store did not answer in time.")
    for refused in (rows[25], rows[26], rows[45]):
        with (
            patch.object(storage, "read_range", side_effect=refusal),
            pytest.raises(TransientStorageError),
        ):
            reader.read(refused, MOST)
    assert storage.read_range is real
    assert [reader.read(at, MOST) for at in rows[1:]] == IMAGES[1:]


def test_a_file_that_is_another_by_now_has_no_such_row(tmp_path: Path, counted: Counted) -> None:
    rows = written(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": IMAGES[:3]}), tmp_path / "a.parquet")
    with pytest.raises(NotFoundError, match="row 7 of"):
        Reader(rows).read(rows[7], MOST)
    plain = packed.parquet_row(rows[0].url.partition("#")[0], "image", 2)
    assert Reader().read(plain, MOST) == IMAGES[2]
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    reader, before = Reader(rows), counted.requests
    for row in rows[7:20]:
        with pytest.raises(ImageError):
            reader.read(row, MOST)
    assert counted.requests - before <= 2, "it is not opened for each row"
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(NotFoundError):
        Reader(rows).read(rows[7], MOST)


def test_a_row_that_became_null_is_an_empty_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [None, b"1"]}), tmp_path / "a.parquet")
    at = packed.parquet_row(storage.canonical(str(tmp_path / "a.parquet")), "image", 0)
    with pytest.raises(ImageError) as caught:
        Reader([at]).read(at, MOST)
    assert caught.value.reason == "empty_file"


def test_odd_names_of_columns_and_files_are_kept_apart(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bild #1 ü": [b"1", b"2"]}), tmp_path / "a#b 1.parquet")
    url = storage.canonical(str(tmp_path / "a#b 1.parquet"))
    assert Reader().read(packed.parquet_row(url, "bild #1 ü", 1), MOST) == b"2"
