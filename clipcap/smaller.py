"""A decoded picture in, the smaller JPEG that a tar keeps in its place out."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image

QUALITY: Final = 95  # at full colour resolution: hardly any loss is left to see


def smaller(image: Image.Image, size: tuple[int, int], profile: bytes | None) -> bytes:
    """Return a picture in another size.

    Args:
        image: RGB, upright, decoded at no less than that size.
        size: width and height of the result, in pixels.
        profile: the colour profile of the picture, of RGB.
    """
    stream = io.BytesIO()
    resized = image.resize(size, Image.Resampling.BICUBIC)
    resized.save(stream, "JPEG", quality=QUALITY, subsampling=0, icc_profile=profile)
    return stream.getvalue()
