"""Bytes of a file in, the pixels that a model looks at out: uint8, as open_clip would make them.

JPEG goes through simplejpeg, and every RGB or gray picture through torch's antialiased resize on
uint8: at most 2 of 255 levels from open_clip's own preprocessing, more than twice as fast. Where
that resize does not agree (palettes, transparency, 1 and 16 bits, CMYK) Pillow's is taken, in
open_clip's own order: first resized, then made RGB. Normalising is left to the device. `work` is
what worker processes run (`clipcap.workers`).
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import PIL
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from clipcap import augmented, colours, images, patches, sharedmemory
from clipcap.images import DECODE_ERRORS, ImageSettings
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.windows import Grid

_ANY_SIZE: Final = ImageSettings(max_bytes=2**40, max_pixels=2**40, min_side_px=1)
"""An image in a manifest has passed the limits of the night that took it in."""
_ENOUGH: Final = 3  # times the model's side: what a scaled decode leaves at least
_MOST: Final = 2**26  # pixels after resizing, about; of a picture so thin only the middle is
_JPEG: Final = ("JPEG", "MPO")  # what phones write: several pictures, the first is the photograph
_PLAIN: Final = ("RGB", "L")  # modes in which torch's resize agrees with Pillow's
_TURNS: Final[dict[int, tuple[bool, int]]] = {
    2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3),
    8: (False, 1),
}  # fmt: skip
"""EXIF orientation: whether to mirror left and right first, then quarter turns to the left."""
_HEIGHT_FIRST: Final = int(PIL.__version__.split(".")[0]) >= 13  # its pull request 9549

CHANGED: Final = "changed"
"""What `work` answers where the bytes are not those of the manifest."""


@dataclass(frozen=True, slots=True)
class _Lying:
    """A picture as it lies in a file, uint8 [H, W, 3], and how to turn it upright."""

    levels: NDArray[np.uint8]
    mirrored: bool = False
    quarters: int = 0


def work(shared: dict[str, Any], item: list[Any]) -> str | None:
    """Put the pixels of the bytes at `[path, offset, length, sha256, slot]` into their slot.

    `shared` has the memory with the slots, the model's preprocessing and the pixel settings. Where
    the item ends with the number of a view other than 0, the pixels are those of that view. With a
    grid each window has a slot, from that one on.
    """
    path, offset, length, sha256, slot, *view = item
    data = sharedmemory.part(path, offset, length)
    if hashlib.sha256(data).hexdigest() != sha256:
        return CHANGED
    wanted = Preprocess.shared(shared["preprocess"])
    slots = _slots(shared["memory"], shared["serial"], wanted.height, wanted.width)
    settings = PixelSettings(**shared["settings"])
    if wanted.grid:
        for place, levels in enumerate(windowed(data, wanted, settings, wanted.grid)):
            slots[slot + place] = levels
    elif any(view):
        slots[slot] = viewed(data, wanted, settings, seed=f"{sha256}/{view[0]}")
    else:
        slots[slot] = pixels(data, wanted, settings)
    return None


@lru_cache(maxsize=2)  # the last batches of one feed overlap with the first of the next
def _slots(path: str, serial: str, height: int, width: int) -> NDArray[np.uint8]:
    """Return shared memory as [slots, H, W, 3]; paths come again, so each has a serial too."""
    del serial
    memory: mmap.mmap = sharedmemory.opened(path)
    return np.frombuffer(memory, np.uint8).reshape(-1, height, width, 3)


def pixels(
    data: bytes,
    wanted: Preprocess,
    settings: PixelSettings = PixelSettings(),  # noqa: B008
) -> NDArray[np.uint8]:
    """Return the first frame, turned by EXIF, resized and cropped: [H, W, 3].

    Raises:
        ImageError: why it cannot be used.
    """
    with images.reading(data, _ANY_SIZE) as opened:
        picture = _picture(data, opened, wanted, settings)
        if isinstance(picture, Image.Image):
            return np.array(_by_pillow(picture, wanted).convert("RGB"))
        return _cut(_resized(picture, wanted), wanted)


def viewed(
    data: bytes, wanted: Preprocess, settings: PixelSettings, *, seed: str
) -> NDArray[np.uint8]:
    """Return an augmented view of the first frame, turned by EXIF: [H, W, 3].

    Raises:
        ImageError: why it cannot be used.
    """
    with images.reading(data, _ANY_SIZE) as opened:
        picture = _picture(data, opened, wanted, settings)
        if isinstance(picture, Image.Image):
            return augmented.view(np.array(picture.convert("RGB")), wanted, seed)
        return augmented.view(_upright(picture), wanted, seed)


def windowed(
    data: bytes, wanted: Preprocess, settings: PixelSettings, grid: Grid
) -> Iterator[NDArray[np.uint8]]:
    """Yield what the model sees through each window of the first frame, turned by EXIF: [H, W, 3].

    The picture is decoded once, and each window of it goes the way of a whole picture.

    Raises:
        ImageError: why it cannot be used.
    """
    ratio, at_full_size = (
        wanted.width / wanted.height,
        settings.model_copy(update={"scaled": False}),
    )
    with images.reading(data, _ANY_SIZE) as opened:
        picture = _picture(data, opened, wanted, at_full_size)
        if isinstance(picture, Image.Image):
            for box in grid.boxes(picture.width, picture.height, ratio):
                yield np.array(_by_pillow(picture.crop(box), wanted).convert("RGB"))
            return
        levels = np.ascontiguousarray(_upright(picture))
        for left, top, right, bottom in grid.boxes(levels.shape[1], levels.shape[0], ratio):
            yield _cut(_resized(_Lying(levels[top:bottom, left:right]), wanted), wanted)


def _upright(picture: _Lying) -> NDArray[np.uint8]:
    levels = picture.levels[:, ::-1] if picture.mirrored else picture.levels
    return np.rot90(levels, picture.quarters)


def _picture(
    data: bytes, opened: Image.Image, wanted: Preprocess, settings: PixelSettings
) -> Image.Image | _Lying:
    """Return the decoded picture; as it lies where torch's resize agrees with Pillow's."""
    is_managed = settings.colours == "managed" and colours.is_profiled(opened)
    if opened.format in _JPEG and opened.mode in _PLAIN and not is_managed:
        found = _jpeg(data, opened, wanted if settings.scaled else None)
        if found is not None:
            return found
    image = images.upright(opened)
    if settings.colours == "managed":
        image = colours.managed(image)
    elif wanted.rules == "transformers":
        image = colours.on_white(image)
    return _Lying(np.array(image.convert("RGB"))) if image.mode in _PLAIN else image


def _jpeg(data: bytes, opened: Image.Image, scaled_for: Preprocess | None) -> _Lying | None:
    """Return a JPEG; None where Pillow shall judge: it is not quite as it should be."""
    mirrored, quarters = _turn(opened)
    height = width = 0
    if scaled_for is not None:
        sides = opened.size if quarters % 2 else opened.size[::-1]
        height, width = scaled_for.resized(*sides)[:: -1 if quarters % 2 else 1]
    try:
        levels = simplejpeg.decode_jpeg(
            data,
            min_height=_ENOUGH * height,
            min_width=_ENOUGH * width,
            min_factor=2,  # others take longer than none
        )
    except ValueError:
        return None
    return _Lying(levels, mirrored, quarters)


def _turn(opened: Image.Image) -> tuple[bool, int]:
    try:
        return _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1), (False, 0))
    except DECODE_ERRORS:  # broken EXIF: the picture itself is whole, so it stays as it lies
        return False, 0


def _resized(picture: _Lying, wanted: Preprocess) -> NDArray[np.uint8]:
    """Return the picture upright and resized, not yet cut to the model's size."""
    left, top, right, bottom = _middle(picture.levels.shape[0], picture.levels.shape[1], wanted)
    levels_HWC = torch.from_numpy(picture.levels[top:bottom, left:right])
    image_BCHW = levels_HWC[None].permute(0, 3, 1, 2)  # torch is quickest where channels lie last
    lying, is_across = (bottom - top, right - left), picture.quarters % 2 == 1
    whole = lying[::-1] if is_across else lying
    size = wanted.resized(*whole)
    ends = [size[::-1] if is_across else size]
    if _is_height_first(whole, size) != is_across:  # torch begins with the width
        ends.insert(0, (ends[0][0], lying[1]))
    for end in ends:
        image_BCHW = interpolate(image_BCHW, end, mode=wanted.interpolation, antialias=True)
    found = image_BCHW[0].permute(1, 2, 0).numpy()
    return np.rot90(found[:, ::-1] if picture.mirrored else found, picture.quarters)


def _is_height_first(whole: tuple[int, int], size: tuple[int, int]) -> bool:
    """Tell whether Pillow resizes the height before the width: both orders round differently."""
    return _HEIGHT_FIRST and whole[0] - size[0] > 2 * max(whole[1] - size[1], 0)


def _middle(height: int, width: int, wanted: Preprocess) -> tuple[int, int, int, int]:
    """Return what to resize: left, top, right, bottom. All, unless it would outgrow memory."""
    grown = math.prod(wanted.resized(height, width))
    longest = max(height, width) * _MOST // max(grown, _MOST)
    across, down = (max(side - longest + 1, 0) // 2 for side in (width, height))
    return across, down, width - across, height - down


def _cut(levels: NDArray[np.uint8], wanted: Preprocess) -> NDArray[np.uint8]:
    """Return a resized picture filled up or cut to the model's size, or in patches."""
    if wanted.resize_mode == "patches":
        return patches.strip(levels, wanted)
    down, across = _missing(levels.shape[0], levels.shape[1], wanted)
    if down or across:
        edges = [(side // 2, (side + 1) // 2) for side in (down, across, 0)]
        levels = np.pad(levels, edges, constant_values=wanted.fill)
    top, left = wanted.corner(levels.shape[0], levels.shape[1])
    return np.ascontiguousarray(levels[top : top + wanted.height, left : left + wanted.width])


def _by_pillow(picture: Image.Image, wanted: Preprocess) -> Image.Image:
    """Return a picture resized, filled up or cut, in the colours in which it is stored."""
    left, top, right, bottom = box = _middle(picture.height, picture.width, wanted)
    size = wanted.resized(bottom - top, right - left)
    picture = picture.resize(size[::-1], Image.Resampling[wanted.interpolation.upper()], box)
    down, across = _missing(*size, wanted)
    if down or across:
        edges = [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2]
        picture = functional.pad(picture, edges, fill=wanted.fill)
    top, left = wanted.corner(picture.height, picture.width)
    return picture.crop((left, top, left + wanted.width, top + wanted.height))


def _missing(height: int, width: int, wanted: Preprocess) -> tuple[int, int]:
    return max(wanted.height - height, 0), max(wanted.width - width, 0)
