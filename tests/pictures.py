"""A number in, the bytes of a small picture out: no two alike, the same ones everywhere."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, features

FORMS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", *(["AVIF"] if features.check("avif") else [])]
"""Every format that is read, by Pillow's name, as far as this Pillow has it."""


def picture(number: int, *, form: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    """Return an image file of `size` (width, height) in a format of Pillow's."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Return an image as a file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def flat(width: int, height: int, colour: tuple[int, int, int] = (10, 200, 30)) -> Image.Image:
    """Return an image of one colour."""
    return Image.new("RGB", (width, height), colour)
