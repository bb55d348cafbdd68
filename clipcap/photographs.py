"""A seed and a size in, a made-up picture with the detail of a photograph out, to measure with.

What costs time in a photograph is its size and its detail, so both are made as cameras make them:
noise whose amplitude falls with the frequency, smooth light, hard edges, the noise of a sensor.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

QUALITY: Final = 88
"""Of JPEG 4:2:0; about 2.4 bits per pixel."""
MEGAPIXELS: Final = 0.67
"""The mean size of what `sizes` gives."""
_LONG_SIDE_PX: Final = (256, 2_000)
_SHORT_TO_LONG: Final = (2 / 3, 0.75, 2 / 3, 0.5625, 1.0, 0.5625)
_BANK_PX: Final = 2_048
_SENSOR_NOISE: Final = 2.0  # of 255 levels, one standard deviation
_ROUND: Final = 0.4  # share of the shapes
_Pixels = NDArray[np.float32]


def sizes(count: int, *, megapixels: float, seed: int) -> list[tuple[int, int]]:
    """Return widths and heights as collections have them, in an order of the seed's.

    Long sides are log-uniform from 256 to 2,000 pixels, shapes from 16:9 to 1:1, which has a mean
    of 0.67 megapixels; another mean scales every side.
    """
    rng = np.random.default_rng(seed)
    low, high = np.log(_LONG_SIDE_PX)
    scale = (megapixels / MEGAPIXELS) ** 0.5
    found = []
    for number, place in enumerate((rng.permutation(count) + 0.5) / count):
        long_px = scale * float(np.exp(low + place * (high - low)))
        short_px = long_px * _SHORT_TO_LONG[number % len(_SHORT_TO_LONG)]
        size = (round(long_px), round(short_px))
        found.append(size if number % 3 else size[::-1])
    return found


def jpeg(picture: Image.Image) -> bytes:
    """Return a picture as a file, as cameras write it."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY, subsampling=2)
    return stream.getvalue()


def photograph(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a picture of `size` (width, height) with the detail of a photograph."""
    width, height = size
    contrast = np.float32(rng.uniform(6, 30))
    pixels: _Pixels = _cut(_texture(int(rng.integers(3))), rng, size) * contrast
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    light = rng.uniform(-40, 40, (3, 2)).astype(np.float32)
    pixels += down[:, None, None].astype(np.float32) * light[:, 0]
    pixels += across[None, :, None].astype(np.float32) * light[:, 1]
    pixels += rng.uniform(80, 170, 3).astype(np.float32)
    pixels = _with_edges(pixels, rng)
    pixels += _cut(_sensor(), rng, size) * np.float32(rng.uniform(0.5, 1.5))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _with_edges(pixels: _Pixels, rng: np.random.Generator) -> _Pixels:
    """Return the picture with things in it: shapes of one colour, half seen through."""
    height, width = pixels.shape[:2]
    shapes = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    pen = ImageDraw.Draw(shapes)
    for _ in range(int(rng.integers(4, 14))):
        middle = rng.uniform(0, 1, 2) * (width, height)
        reach = rng.uniform(0.03, 0.35) * min(width, height)
        colour = (*map(int, rng.integers(0, 256, 3)), int(rng.integers(120, 230)))
        corners = middle + rng.uniform(-reach, reach, (int(rng.integers(3, 7)), 2))
        if rng.random() < _ROUND:
            box = (*map(float, middle - reach / 2), *map(float, middle + reach / 2))
            pen.ellipse(box, fill=colour)
        else:
            pen.polygon([(float(x), float(y)) for x, y in corners], fill=colour)
    drawn = np.asarray(shapes).astype(np.float32)
    share = drawn[..., 3:] / 255
    return (pixels * (1 - share) + drawn[..., :3] * share).astype(np.float32)


def _cut(bank: _Pixels, rng: np.random.Generator, size: tuple[int, int]) -> _Pixels:
    """Return a piece of a bank, which repeats itself without a seam."""
    across = (np.arange(size[0]) + rng.integers(_BANK_PX)) % _BANK_PX
    down = (np.arange(size[1]) + rng.integers(_BANK_PX)) % _BANK_PX
    piece: _Pixels = bank[down[:, None], across]
    return piece


@cache
def _texture(number: int) -> _Pixels:
    """Return noise of power 1/f^2, RGB of mean 0 and deviation 1, its channels much alike."""
    rng = np.random.default_rng((number, _BANK_PX))
    down, across = np.fft.fftfreq(_BANK_PX)[:, None], np.fft.rfftfreq(_BANK_PX)[None, :]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    channels = []
    for _ in range(4):
        phase = np.exp(2j * np.pi * rng.random(frequency.shape))
        found = np.fft.irfft2(phase / frequency, s=(_BANK_PX, _BANK_PX))
        channels.append(found / found.std())
    shared = channels.pop()
    mixed = np.stack([0.9 * shared + 0.44 * own for own in channels], axis=-1)
    return mixed.astype(np.float32)


@cache
def _sensor() -> _Pixels:
    rng = np.random.default_rng(_BANK_PX)
    noise = rng.standard_normal((_BANK_PX, _BANK_PX, 3), dtype=np.float32)
    return np.asarray(noise * _SENSOR_NOISE, dtype=np.float32)
