"""Bytes of a file in, its first frame out, or an `ImageError` that says why it is none."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from clipcap.errors import ImageError
from clipcap.settings import Settings

HEAD_BYTES: Final = 16

# What Pillow's decoders were seen to raise on broken files. A decode error is never our own bug
# hidden: only Pillow's open, load, transpose and convert run inside.
DECODE_ERRORS: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    EOFError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageSettings(Settings):
    """What counts as an image; images that are in the output already are not judged again."""

    max_bytes: int = Field(default=100 * 2**20, gt=0)
    """Largest file, in bytes; a larger one is rejected as `too_large`."""
    max_pixels: int = Field(default=50_000_000, gt=0)
    """Largest width times height; more is rejected as `decompression_bomb`, without decoding."""
    min_side_px: int = Field(default=8, gt=0)
    """Smallest width and height, in pixels; a smaller one is rejected as `too_small`."""
    keep_gps: bool = False
    """Keep the place where a photograph was taken. Off: GPS is dropped before it is written."""


@dataclass(frozen=True, slots=True)
class Format:
    """A file format known by its first bytes; `pillow` is empty where it is not decoded."""

    media_type: str
    extension: str
    pillow: str = ""


_JPEG = Format("image/jpeg", "jpg", "JPEG")
_KNOWN: Final[tuple[tuple[re.Pattern[bytes], Format], ...]] = tuple(
    (re.compile(pattern, re.DOTALL), found)
    for pattern, found in (
        (rb"\xff\xd8\xff", _JPEG),
        (rb"\x89PNG\r\n\x1a\n", Format("image/png", "png", "PNG")),
        (rb"GIF8[79]a", Format("image/gif", "gif", "GIF")),
        (rb"RIFF....WEBP", Format("image/webp", "webp", "WEBP")),
        (rb"....ftypavi[fs]", Format("image/avif", "avif", "AVIF")),
        (rb"....ftypmif1.{4}.{0,16}avif", Format("image/avif", "avif", "AVIF")),
        (rb"(II\*\x00|MM\x00\*)", Format("image/tiff", "tif", "TIFF")),
        (rb"BM.{4}\x00\x00\x00\x00", Format("image/bmp", "bmp", "BMP")),
        (rb"(II\+\x00|MM\x00\+)", Format("image/tiff", "tif")),
        (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", Format("image/heic", "heic")),
        (rb"(\xff\x0a|\x00\x00\x00\x0cJXL )", Format("image/jxl", "jxl")),
        (rb"(\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  )", Format("image/jp2", "jp2")),
        (rb"\x00\x00[\x01\x02]\x00[\x01-\xff]\x00", Format("image/x-icon", "ico")),
        (rb"8BPS\x00", Format("image/vnd.adobe.photoshop", "psd")),
        (rb"P[1-6][\s#]", Format("image/x-portable-anymap", "pnm")),
        (rb"(%!PS|\xc5\xd0\xd3\xc6)", Format("application/postscript", "ps")),
        (rb"\s*(<\?xml.{0,400})?<svg", Format("image/svg+xml", "svg")),
        (rb"v/1\x01", Format("image/x-exr", "exr")),
        (rb"DDS ", Format("image/vnd.ms-dds", "dds")),
        (rb"#\?(RADIANCE|RGBE)", Format("image/vnd.radiance", "hdr")),
        (rb"qoif", Format("image/qoi", "qoi")),
    )
)


def sniff(data: bytes) -> Format:
    """Return the format of a file by its content, whatever its name says.

    Raises:
        ImageError: `empty_file`, `not_an_image` or `unsupported_format`.
    """
    if not data:
        raise ImageError("empty_file", "The file has no bytes.")
    for pattern, found in _KNOWN:
        if pattern.match(data):
            if not found.pillow:
                raise ImageError("unsupported_format", f"{found.media_type} is not read.")
            return found
    raise ImageError("not_an_image", "The first bytes are of no image format.")


def decode(data: bytes, settings: ImageSettings, *, draft_px: int | None = None) -> Image.Image:
    """Return the first frame as RGB, turned by EXIF.

    Colours are converted as open_clip's own preprocessing does (`convert("RGB")`). With `draft_px`
    a JPEG is decoded at a fraction of its size, its sides no shorter than that: four times faster,
    for thumbnails.

    Raises:
        ImageError: why it cannot be used.
    """
    with reading(data, settings) as opened:
        if draft_px is not None:
            opened.draft("RGB", (draft_px, draft_px))
        return upright(opened).convert("RGB")


@contextmanager
def reading(data: bytes, settings: ImageSettings) -> Iterator[Image.Image]:
    """Open an image within the limits, not decoded yet; what Pillow raises inside is translated.

    Raises:
        ImageError: why it cannot be used.
    """
    found = sniff(data)
    if len(data) > settings.max_bytes:
        raise ImageError("too_large", f"{len(data)} bytes are more than {settings.max_bytes}.")
    try:
        with Image.open(io.BytesIO(data), formats=[found.pillow]) as opened:
            _check_size(opened.size, settings)
            yield opened
    except Image.DecompressionBombError as error:
        raise ImageError("decompression_bomb", str(error)) from error
    except MemoryError as error:
        raise ImageError("oom", "Decoding needed more memory than there is.") from error
    except UnidentifiedImageError as error:
        raise ImageError("decode_failed", f"Not a readable {found.media_type} file.") from error
    except DECODE_ERRORS as error:
        text = f"{type(error).__name__}: {error}"[:300]
        cut = "truncated" in text.lower() or "unexpected end" in text.lower()
        raise ImageError("truncated" if cut else "decode_failed", text) from error


def upright(opened: Image.Image) -> Image.Image:
    """Decode, and return the picture the right way up, in the colours that it is stored in."""
    opened.load()
    try:
        return ImageOps.exif_transpose(opened)
    except DECODE_ERRORS:  # broken EXIF: the picture itself is whole, so it stays as it lies
        return opened


def _check_size(size: tuple[int, int], settings: ImageSettings) -> None:
    width, height = size
    if width * height > settings.max_pixels:
        message = f"{width} x {height} pixels are more than {settings.max_pixels}."
        raise ImageError("decompression_bomb", message)
    if min(width, height) < settings.min_side_px:
        message = f"{width} x {height} pixels: a side is under {settings.min_side_px}."
        raise ImageError("too_small", message)
