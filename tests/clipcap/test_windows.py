"""Windows are inside the picture, upright, and each goes the way of a whole picture."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipcap import images, pixels, windows
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.sharedmemory import SharedMemory
from clipcap.windows import Grid
from tests.nights import draw

WANTED = Preprocess(32, 32, "bicubic", "shortest", 0)
PLAIN = PixelSettings()


def png(picture: Image.Image, **more: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **more)
    return stream.getvalue()


def drawing(folder: Path, name: str, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    draw(folder / f"{name}.png", 5, size)
    with Image.open(folder / f"{name}.png") as opened:
        return opened.convert(mode)


def test_without_overlap_windows_are_the_cells_and_with_it_twice_as_long_as_a_step() -> None:
    assert Grid(2, 2, overlap=False).boxes(100, 100) == [
        (0, 0, 50, 50), (50, 0, 100, 50), (0, 50, 50, 100), (50, 50, 100, 100),
    ]  # fmt: skip
    boxes = Grid(3, 3).boxes(400, 400)
    assert [box[0] for box in boxes[:3]] == [0, 100, 200]
    assert [box[1] for box in boxes[::3]] == [0, 100, 200]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(200, 200)}


@pytest.mark.parametrize("overlap", [True, False])
def test_windows_have_the_shape_of_the_model_as_far_as_the_picture_goes(overlap: bool) -> None:
    for left, top, right, bottom in Grid(3, 3, overlap=overlap).boxes(600, 300):
        assert right - left == bottom - top == (300 if overlap else 200)
    for left, top, right, bottom in Grid(2, 2, overlap=overlap).boxes(400, 400, ratio=2.0):
        assert right - left == min(2 * (bottom - top), 400)


def test_whatever_the_size_windows_are_inside_and_cover_the_picture() -> None:
    sizes = ((1, 1), (1, 40), (8, 300), (3, 2), (301, 8), (97, 53))
    for size, rows, columns, overlap in product(sizes, (1, 2, 3, 16), (1, 4, 16), (True, False)):
        seen = np.zeros(size[::-1], bool)
        boxes = Grid(rows, columns, overlap=overlap).boxes(*size)
        assert len(boxes) == rows * columns
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            seen[top:bottom, left:right] = True
        assert seen.all(), (size, rows, columns, overlap)


def said(grid: Grid, width: int, height: int) -> list[str]:
    shares = np.array([width, height] * 2)
    return [windows.place(*(np.array(box) / shares)) for box in grid.boxes(width, height)]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("side", [60, 101, 998])
def test_a_place_is_said_in_words_whatever_the_grid(overlap: bool, side: int) -> None:
    assert said(Grid(3, 3, overlap=overlap), side, side) == [
        "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom",
        "bottom right",
    ]  # fmt: skip
    corners = ["top left", "top right", "bottom left", "bottom right"]
    assert said(Grid(2, 2, overlap=overlap), side, side) == corners
    assert said(Grid(4, 4, overlap=overlap), side, side)[5] == "top left"
    five = ["left", "left", "centre", "right", "right"]
    assert said(Grid(1, 5, overlap=overlap), 5 * side, side) == five


def test_windows_that_see_the_whole_height_are_neither_top_nor_bottom() -> None:
    assert said(Grid(3, 3), 256, 128) == ["left", "centre", "right"] * 3
    assert said(Grid(3, 3), 128, 256)[::3] == ["top", "centre", "bottom"]


def test_a_heat_map_parts_half_way_between_the_middles_of_windows() -> None:
    downs, acrosses = Grid(2, 3, overlap=False).borders
    assert downs == pytest.approx([0, 1 / 2, 1])
    assert acrosses == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert Grid(3, 3).borders[0] == pytest.approx([0, 3 / 8, 5 / 8, 1])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_window_goes_the_way_of_a_whole_picture(tmp_path: Path, mode: str, overlap: bool) -> None:
    picture = drawing(tmp_path, "a", (150, 90), mode)
    grid = Grid(2, 3, overlap=overlap)
    found = list(pixels.windowed(png(picture), WANTED, PLAIN, grid))
    for levels, box in zip(found, grid.boxes(150, 90), strict=True):
        assert np.array_equal(levels, pixels.pixels(png(picture.crop(box)), WANTED))


def test_windows_of_a_turned_photograph_are_those_of_the_upright_one(tmp_path: Path) -> None:
    grid = Grid(3, 2)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        stream = io.BytesIO()
        drawing(tmp_path, "a", (120, 70)).save(stream, "JPEG", exif=exif, quality=95)
        found = pixels.windowed(stream.getvalue(), WANTED, PixelSettings(scaled=True), grid)
        upright = png(images.decode(stream.getvalue(), images.ImageSettings()))
        wanted = pixels.windowed(upright, WANTED, PLAIN, grid)
        assert np.array_equal(list(found), list(wanted)), turn


@pytest.mark.parametrize("size", [(8, 8), (9, 400), (2, 1)])
def test_a_picture_smaller_than_its_cells_has_windows(size: tuple[int, int]) -> None:
    data = png(Image.new("RGB", size, (200, 10, 10)))
    found = list(pixels.windowed(data, WANTED, PLAIN, Grid(16, 16)))
    assert len(found) == 256
    assert {levels.shape for levels in found} == {(32, 32, 3)}


def test_a_worker_puts_each_window_into_a_slot_of_its_own(tmp_path: Path) -> None:
    data = png(drawing(tmp_path, "a", (90, 60)))
    grid = Grid(2, 2)
    with SharedMemory(len(data)) as source, SharedMemory(6 * 32 * 32 * 3) as target:
        source.map[:] = data
        shared = {
            "memory": target.path, "serial": 98, "settings": PLAIN.model_dump(),
            "preprocess": asdict(replace(WANTED, grid=grid)),
        }  # fmt: skip
        sha256 = hashlib.sha256(data).hexdigest()
        assert pixels.work(shared, [source.path, 0, len(data), sha256, 1, 0]) is None
        found = np.frombuffer(target.map, np.uint8).reshape(-1, 32, 32, 3).copy()
    assert np.array_equal(found[1:5], list(pixels.windowed(data, WANTED, PLAIN, grid)))
    assert not found[0].any()
    assert not found[5].any()


def test_the_pattern_knows_grids() -> None:
    import re

    for text in ("1", "3", "16", "2x5", "16x16"):
        assert re.match(windows.PATTERN, text)
    for text in ("0", "17", "3x", "x3", "3x0", "-1", "3,3", "3x3x3", ""):
        assert not re.match(windows.PATTERN, text)
    assert Grid.of("2x5", overlap=False) == Grid(2, 5, overlap=False)
    assert Grid.of("4", overlap=True) == Grid(4, 4)
