"""A picture in any mode and colour space in, 8-bit sRGB on white out."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, ImageCms

_SRGB: Final = ImageCms.createProfile("sRGB")
_WHITE: Final = (255, 255, 255)
_DEEP: Final = ("I;16", "I;16B", "I;16L", "I", "F")


def is_transparent(image: Image.Image) -> bool:
    """Tell whether some of a picture may be transparent.

    Pillow's own answer fails on a palette that is broken.
    """
    palette = image.palette.mode if image.palette else ""
    return "transparency" in image.info or image.mode[-1:] in "Aa" or palette[-1:] == "A"


def is_profiled(opened: Image.Image) -> bool:
    """Tell whether a picture has a colour profile of its own."""
    return bool(opened.info.get("icc_profile"))


def managed(image: Image.Image) -> Image.Image:
    """Return a picture in RGB or gray as a viewer that knows colours shows it.

    A profile becomes sRGB, 16 bits are scaled to 8, what is transparent lies on white. A broken
    profile, or one of another kind of picture, is left out.
    """
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP:
        image = _shallow(image)
    if image.mode not in ("RGBA", "LA") and is_transparent(image):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode in ("LA", "1") else "RGB")
    if profile:
        image = _in_srgb(image, profile)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    if alpha is None:
        return image
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size, _WHITE), alpha)


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture in RGB as transformers sees it: what is transparent lies on white."""
    if not is_transparent(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*_WHITE, 255)), image).convert(
        "RGB"
    )


def _shallow(image: Image.Image) -> Image.Image:
    """Return 16 bits, or numbers of any range, as 8: the whole scale of 16 bits, or of 0 to 1."""
    levels = np.nan_to_num(np.asarray(image).astype(np.float64))
    most, top = levels.max(initial=0), 65_535.0
    if image.mode == "F" and most <= 1:
        top = 1.0
    elif image.mode in ("I", "F") and most <= 255:
        top = 255.0
    return Image.fromarray(np.clip(np.rint(levels * (255 / top)), 0, 255).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.profileToProfile(image, own, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return found or image
