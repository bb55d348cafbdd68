"""A seed in, thousands of drawn scenes as 64-pixel arrays out, drawn in several processes."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipcap.bundled.scenes import Scene, Split, draw, random_scene

SIDE_PX = 64
"""What the tiny CLIP sees."""

_CHUNK = 500
"""Scenes drawn from one seed of their own; part of what the seed means, so do not change it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Drawn scenes, row by row: `pixels` is uint8 of shape (N, 64, 64, 3)."""

    scenes: tuple[Scene, ...]
    pixels: npt.NDArray[np.uint8]


def draw_pool(count: int, *, seed: int, stream: int, split: Split, workers: int = 2) -> Pool:
    """Draw scenes in fresh processes, reduced as the encoder's preprocessing does.

    Args:
        count: How many.
        seed: The build's seed.
        stream: Pools of one seed with different streams have nothing in common.
        split: Which descriptions may occur.
        workers: How many processes; changes only the speed.
    """
    tasks = [
        (seed, stream, first // _CHUNK, min(_CHUNK, count - first), split)
        for first in range(0, count, _CHUNK)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as executor:
        return _join(executor.map(_chunk, tasks))


def _join(chunks: Iterable[Pool]) -> Pool:
    parts = list(chunks)
    scenes = tuple(scene for part in parts for scene in part.scenes)
    return Pool(scenes, np.concatenate([part.pixels for part in parts]))


def _chunk(task: tuple[int, int, int, int, Split]) -> Pool:
    seed, stream, index, count, split = task
    rng = np.random.default_rng([seed, stream, index])
    scenes = [random_scene(rng, split=split) for _ in range(count)]
    pixels = np.stack([np.asarray(reduced(draw(scene, rng, _size(rng)))) for scene in scenes])
    return Pool(tuple(scenes), pixels)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Choose width and height: mostly near the encoder's own size, since small ones draw fast."""
    side = int(rng.choice([64, 80, 96, 128, 160, 224], p=[0.15, 0.2, 0.25, 0.2, 0.12, 0.08]))
    stretch = float(rng.choice([1.0, 1.0, 1.25, 1.5]))
    long_side = round(side * stretch)
    return (long_side, side) if rng.random() < 0.7 else (side, long_side)


def reduced(image: Image.Image) -> Image.Image:
    """Bicubic to 64 pixels on the short side, then the middle square, as open_clip does it."""
    scale = SIDE_PX / min(image.size)
    wide, high = (max(SIDE_PX, int(length * scale)) for length in image.size)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - SIDE_PX) / 2.0), round((high - SIDE_PX) / 2.0)
    return image.crop((left, top, left + SIDE_PX, top + SIDE_PX))
