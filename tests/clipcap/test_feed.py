"""Tars in, batches of pixels out: whole, in order, bounded, and honest about what it waited for."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from clipcap import feed, pixels, ranges, shards, storage
from clipcap.errors import NotFoundError, StorageError, TransientStorageError
from clipcap.feed import Batch, Feed, Part
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.windows import Grid
from clipcap.workers import WorkerSettings

WANTED = Preprocess(32, 32, "bicubic", "shortest", 0)
DECODE = WorkerSettings(processes=2)


@dataclass(frozen=True)
class Tar:
    """A tar on this machine, its manifest rows, and the bytes of its images."""

    url: str
    rows: pa.Table
    images: tuple[bytes, ...]

    @property
    def part(self) -> Part[str]:
        """What the feed is given."""
        return Part(self.url, self.url, self.rows)


def picture(seed: int) -> bytes:
    """Return a drawing that differs with `seed`."""
    image = Image.new("RGB", (90, 60), (seed * 53 % 256, seed * 97 % 256, 80))
    ImageDraw.Draw(image).ellipse((seed % 40, 5, 50, 50), fill=(255 - seed, 90, seed))
    stream = io.BytesIO()
    image.save(stream, "JPEG" if seed % 2 else "PNG")
    return stream.getvalue()


def tar(path: Path, images: list[bytes]) -> Tar:
    """Write images into a tar."""
    data, members = shards.pack([(f"{n:04}", "jpg", image) for n, image in enumerate(images)])
    path.write_bytes(data)
    rows = pa.table(
        {
            "member": [member.name for member in members],
            "member_offset": pa.array([member.offset for member in members], pa.int64()),
            "member_bytes": pa.array([member.length for member in members], pa.int64()),
            "content_sha256": [hashlib.sha256(image).hexdigest() for image in images],
        }
    )
    return Tar(storage.canonical(str(path)), rows, tuple(images))


@pytest.fixture
def tars(tmp_path: Path) -> list[Tar]:
    counts = (5, 0, 7, 1)
    starts = (0, 5, 5, 12)
    return [
        tar(tmp_path / f"{n}.tar", [picture(start + k) for k in range(count)])
        for n, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]


def fed(prefetch: int | None = None, decode: WorkerSettings = DECODE) -> Feed[str]:
    return Feed(WANTED, PixelSettings(), decode, batch_size=3, prefetch=prefetch)


def everything(tars: list[Tar], prefetch: int | None = None) -> list[Batch[str]]:
    """Return all batches, with pixels of their own."""
    with fed(prefetch) as source:
        return [
            replace(batch, pixels_BHWC=batch.pixels_BHWC.copy())
            for batch in source.batches(one.part for one in tars)
        ]


@pytest.fixture
def like_a_store() -> Iterator[list[tuple[int, int | None]]]:
    """Have tars read by ranges, as from a bucket; the ranges that were asked for."""
    asked: list[tuple[int, int | None]] = []
    real = storage.read_range

    def read_range(url: str, offset: int, length: int | None) -> bytes:
        asked.append((offset, length))
        return real(url, offset, length)

    with (
        patch.object(storage, "local_path", return_value=None),
        patch.object(storage, "read_range", read_range),
    ):
        yield asked


def require_all(batches: list[Batch[str]], tars: list[Tar]) -> None:
    assert [len(batch.errors) for batch in batches] == [3, 2, 0, 3, 3, 1, 1]
    assert [batch.is_last for batch in batches] == [False, True, True, False, False, True, True]
    for one in tars:
        mine = [batch for batch in batches if batch.of == one.url]
        found = np.concatenate([batch.pixels_BHWC for batch in mine])
        assert len(found) == len(one.images)
        for pixels_HWC, data in zip(found, one.images, strict=True):
            assert np.array_equal(pixels_HWC, pixels.pixels(data, WANTED))
        assert all(error is None for batch in mine for error in batch.errors)


def test_every_image_comes_once_with_its_part_and_in_its_order(tars: list[Tar]) -> None:
    require_all(everything(tars), tars)


def test_a_tar_on_a_store_gives_the_same(
    tars: list[Tar], like_a_store: list[tuple[int, int | None]]
) -> None:
    batches = everything(tars)
    require_all(batches, tars)
    assert len(like_a_store) == 6, "neighbours must come in one request"


def test_images_far_apart_are_not_read_with_what_lies_between(
    tmp_path: Path, like_a_store: list[tuple[int, int | None]]
) -> None:
    whole = tar(tmp_path / "wide.tar", [picture(1), bytes(2**20), picture(2), picture(3)])
    few = Tar(whole.url, whole.rows.take([3, 0, 2]), whole.images)
    [batch] = everything([few])
    assert sum(length or 0 for _, length in like_a_store) < 2**16
    assert batch.rows["member"].to_pylist() == ["0000.jpg", "0002.jpg", "0003.jpg"]
    assert np.array_equal(batch.pixels_BHWC[2], pixels.pixels(picture(3), WANTED))


def test_the_caller_may_use_a_batch_while_the_next_one_is_there(tars: list[Tar]) -> None:
    kept: list[tuple[Batch[str], np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]] = []
    with fed(prefetch=3) as source:
        for batch in source.batches(one.part for one in tars * 3):
            time.sleep(0.02)  # workers have time to write where they must not
            for before, copy in kept[-1:]:
                assert np.array_equal(before.pixels_BHWC, copy)
            kept.append((batch, batch.pixels_BHWC.copy()))
    assert len(kept) == 7 * 3


def test_what_is_held_ahead_is_bounded(tars: list[Tar]) -> None:
    begun = 0
    real = Feed._begin

    def begin(self: Feed[str], *given: object) -> object:
        nonlocal begun
        begun += 1
        return real(self, *given)  # type: ignore[arg-type]

    with patch.object(Feed, "_begin", begin), fed(prefetch=3) as source:
        for n, _ in enumerate(source.batches(one.part for one in tars * 5)):
            time.sleep(0.005)
            assert begun <= n + 3


def test_a_broken_image_leaves_a_hole_and_its_reason(tmp_path: Path) -> None:
    images = [picture(1), picture(2)[:200], b"no picture", picture(3)]
    batches = everything([tar(tmp_path / "broken.tar", images)])
    reasons = [error and error.reason for batch in batches for error in batch.errors]
    assert reasons == [None, "truncated", "not_an_image", None]
    assert np.array_equal(batches[1].pixels_BHWC[0], pixels.pixels(images[3], WANTED))


@pytest.mark.parametrize("on_store", [False, True])
def test_a_tar_that_was_changed_is_told_of(
    tars: list[Tar], on_store: bool, request: pytest.FixtureRequest
) -> None:
    if on_store:
        request.getfixturevalue("like_a_store")
    path = Path(tars[2].url.removeprefix("file://"))
    data = bytearray(path.read_bytes())
    data[tars[2].rows["member_offset"][4].as_py() + 30] ^= 1
    path.write_bytes(data)
    require_failure(everything(tars), tars, StorageError, "must hold 0004.jpg with the content dig")


@pytest.mark.parametrize("on_store", [False, True])
def test_a_tar_that_was_cut_is_told_of(
    tars: list[Tar], on_store: bool, request: pytest.FixtureRequest
) -> None:
    if on_store:
        request.getfixturevalue("like_a_store")
    path = Path(tars[2].url.removeprefix("file://"))
    path.write_bytes(path.read_bytes()[: tars[2].rows["member_offset"][5].as_py() + 10])
    require_failure(everything(tars), tars, StorageError, "must hold 0005.jpg")


def test_a_tar_that_is_gone_is_told_of(tars: list[Tar]) -> None:
    Path(tars[2].url.removeprefix("file://")).unlink()
    require_failure(everything(tars), tars, NotFoundError, "it is not there")


def require_failure(
    batches: list[Batch[str]], tars: list[Tar], kind: type[StorageError], text: str
) -> None:
    """Require that the third tar failed, and no other."""
    failed = [batch for batch in batches if batch.failure is not None]
    assert {batch.of for batch in failed} == {tars[2].url}
    assert isinstance(failed[0].failure, kind)
    assert text in str(failed[0].failure)
    assert batches[-1].of == tars[3].url
    assert [batch.is_last for batch in batches] == [False, True, True, False, False, True, True]


def test_a_store_that_says_later_ends_it(
    tars: list[Tar], like_a_store: list[tuple[int, int | None]]
) -> None:
    def later(*_: object) -> bytes:
        raise TransientStorageError("Later.")

    with (
        patch.object(storage, "read_range", later),
        pytest.raises(TransientStorageError, match="Later"),
    ):
        everything(tars)


def test_files_that_are_held_ahead_are_bounded_by_their_bytes(tars: list[Tar]) -> None:
    with patch.object(ranges, "MOST", 1), patch.object(feed, "_ALL_BYTES", 4_000), fed(4) as source:
        sizes = [len(batch.errors) for batch in source.batches([tars[2].part])]
    assert sum(sizes) == len(tars[2].images)
    assert max(sizes) < 3


def test_leaving_in_the_middle_leaves_nothing_open(tars: list[Tar]) -> None:
    counts = []
    for _ in range(4):
        with fed(decode=WorkerSettings(processes=1)) as source:
            next(source.batches(one.part for one in tars))
        counts.append(open_files())
    assert counts == counts[:1] * 4  # after the first, the worker is there


def open_files() -> int:
    """Return how many files this process has open; 0 where the kernel does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_it_tells_whether_reading_or_decoding_was_waited_for(
    tars: list[Tar], like_a_store: list[tuple[int, int | None]]
) -> None:
    real = storage.read_range

    def slow(url: str, offset: int, length: int | None) -> bytes:
        time.sleep(0.3)
        return real(url, offset, length)

    with patch.object(storage, "read_range", slow), fed() as source:
        list(source.batches([tars[0].part]))
    assert source.waits.read_s > 0.2
    assert source.waits.decode_s < source.waits.read_s


@pytest.mark.parametrize(
    ("batch_size", "image_bytes", "processes", "batches"),
    [(64, 150_528, 2, 4), (64, 150_528, 32, 18), (1, 150_528, 2, 66), (4096, 150_528, 8, 4)],
)
def test_it_holds_enough_to_keep_every_process_busy(
    batch_size: int, image_bytes: int, processes: int, batches: int
) -> None:
    assert feed.ahead(batch_size, image_bytes, processes) == batches


def test_with_a_grid_each_window_is_a_row_and_a_bad_image_leaves_holes(tmp_path: Path) -> None:
    images = [picture(1), b"no image", picture(2), picture(3)]
    lying = tar(tmp_path / "windows.tar", images)
    grid = Grid(2, 2)
    wanted = replace(WANTED, grid=grid)
    windowed: Feed[str] = Feed(wanted, PixelSettings(), DECODE, batch_size=9)
    with windowed as source:
        batches = [
            replace(batch, pixels_BHWC=batch.pixels_BHWC.copy())
            for batch in source.batches([lying.part, lying.part])
        ]
    assert [len(batch.errors) for batch in batches] == [8, 8] * 2  # two images of nine slots fit
    for batch in batches:
        assert batch.rows[feed.WINDOW].to_pylist() == [0, 1, 2, 3] * 2
        members = batch.rows["member"].to_pylist()
        for n, (member, window) in enumerate(zip(members, [0, 1, 2, 3] * 2, strict=True)):
            data = images[int(member[:4])]
            assert (batch.errors[n] is None) == (data != b"no image")
            if data != b"no image":
                levels = list(pixels.windowed(data, WANTED, PixelSettings(), grid))
                assert np.array_equal(batch.pixels_BHWC[n], levels[window])
