"""A number in, the bytes of a small picture out: no two alike, the same ones everywhere."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(number: int, *, form: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    """Return an image file of `size` (width, height) in a format of Pillow's."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()
