"""Bytes of a file in; an RGB image and what can be read off it out, or an `ImageError`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from clipcap.errors import ImageError
from clipcap.settings import Settings

HEAD_BYTES: Final = 16
_EXIF_TEXT: Final = 200  # characters kept of one EXIF value
_PHASH_SIDE: Final = 32
_SEEN_SIDE: Final = 64  # flags are judged on a picture of this side
_DARK: Final = 0.32 * 255  # the 99th percentile of brightness below this: dark (CleanVision's rule)
_LIGHT: Final = 0.95 * 255 * 0.95  # the 5th percentile above this: light
_LOW_ENTROPY: Final = 0.3 * 8  # bits of an 8-bit histogram
_ODD_RATIO: Final = 4.0
_GRAY_LEVELS: Final = 2

# What Pillow's decoders were seen to raise on broken files. A decode error is never our own bug
# hidden: only Pillow's open, load, transpose and convert run inside.
_DECODE_ERRORS: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    EOFError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_Exif = dict[str, str | int | float]

_decoding = threading.BoundedSemaphore(os.cpu_count() or 1)  # bounds memory: one image per core


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


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the manifest says of an image; in pixels, `width` and `height` after EXIF turning."""

    format: Format
    content_sha256: str
    width: int
    height: int
    original_width: int
    original_height: int
    phash: str
    flags: tuple[str, ...]
    exif: str | None
    taken_at: datetime | None


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
    with _decoding:
        return _decode(data, settings, draft_px)[0]


def inspect(data: bytes, settings: ImageSettings) -> Inspected:
    """Decode an image whole and return what the manifest says of it.

    Raises:
        ImageError: why it cannot be used.
    """
    with _decoding:  # until nothing of the decoded image is held any more
        image, found, original_size, values = _decode(data, settings)
        return Inspected(
            format=found,
            content_sha256=hashlib.sha256(data).hexdigest(),
            width=image.width,
            height=image.height,
            original_width=original_size[0],
            original_height=original_size[1],
            phash=phash(image),
            flags=tuple(_flags(image)),
            exif=json.dumps(values, sort_keys=True) if values else None,
            taken_at=_taken_at(values),
        )


def _decode(
    data: bytes, settings: ImageSettings, draft_px: int | None = None
) -> tuple[Image.Image, Format, tuple[int, int], _Exif]:
    found = sniff(data)
    if len(data) > settings.max_bytes:
        raise ImageError("too_large", f"{len(data)} bytes are more than {settings.max_bytes}.")
    try:
        with Image.open(io.BytesIO(data), formats=[found.pillow]) as opened:
            _check_size(opened.size, settings)
            if draft_px is not None:
                opened.draft("RGB", (draft_px, draft_px))
            size, exif = _load(opened, keep_gps=settings.keep_gps)
            return _rgb(opened), found, size, exif
    except Image.DecompressionBombError as error:
        raise ImageError("decompression_bomb", str(error)) from error
    except MemoryError as error:
        raise ImageError("oom", "Decoding needed more memory than there is.") from error
    except UnidentifiedImageError as error:
        raise ImageError("decode_failed", f"Not a readable {found.media_type} file.") from error
    except _DECODE_ERRORS as error:
        text = f"{type(error).__name__}: {error}"[:300]
        cut = "truncated" in text.lower() or "unexpected end" in text.lower()
        raise ImageError("truncated" if cut else "decode_failed", text) from error


def _load(opened: Image.Image, *, keep_gps: bool) -> tuple[tuple[int, int], _Exif]:
    """Decode; return the size as stored, and the EXIF entries."""
    size = opened.size
    if opened.format != "TIFF":
        opened.load()
        return size, _exif_values(opened, keep_gps=keep_gps)
    exif = _exif_values(opened, keep_gps=keep_gps)  # a loaded TIFF is closed, and turned already
    opened.load()
    return size[::-1] if exif.get("Orientation") in (5, 6, 7, 8) else size, exif


def _rgb(opened: Image.Image) -> Image.Image:
    try:
        turned = ImageOps.exif_transpose(opened)
    except _DECODE_ERRORS:  # broken EXIF: the picture itself is whole, so it stays as it lies
        turned = opened
    return turned.convert("RGB")


def _check_size(size: tuple[int, int], settings: ImageSettings) -> None:
    width, height = size
    if width * height > settings.max_pixels:
        message = f"{width} x {height} pixels are more than {settings.max_pixels}."
        raise ImageError("decompression_bomb", message)
    if min(width, height) < settings.min_side_px:
        message = f"{width} x {height} pixels: a side is under {settings.min_side_px}."
        raise ImageError("too_small", message)


def _dct_matrix(side: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    k = np.arange(side)[:, None]
    n = np.arange(side)[None, :]
    return 2 * np.cos(np.pi * k * (2 * n + 1) / (2 * side))


_DCT: Final = _dct_matrix(_PHASH_SIDE)


def phash(image: Image.Image) -> str:
    """Return the 64-bit perceptual hash in hex: low DCT frequencies against their median."""
    small = image.convert("L").resize((_PHASH_SIDE, _PHASH_SIDE), Image.Resampling.LANCZOS)
    frequencies = _DCT @ np.asarray(small, dtype=np.float64) @ _DCT.T
    low = np.round(frequencies[:8, :8], 6)  # zeros of a flat picture are noise of 1e-13 before that
    bits = (low > np.median(low)).flatten()
    return np.packbits(bits).tobytes().hex()


def _flags(image: Image.Image) -> list[str]:
    small = image.resize((_SEEN_SIDE, _SEEN_SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float64)
    bright = np.sqrt(rgb**2 @ np.array([0.241, 0.691, 0.068]))
    counts = np.bincount(np.asarray(small.convert("L")).ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    ratio = max(image.size) / min(image.size)
    judged = {
        "dark": np.percentile(bright, 99) < _DARK,
        "light": np.percentile(bright, 5) > _LIGHT,
        "low_information": float(-(share * np.log2(share)).sum()) < _LOW_ENTROPY,
        "grayscale": float(np.ptp(rgb, axis=2).max()) <= _GRAY_LEVELS,
        "odd_aspect_ratio": ratio > _ODD_RATIO,
    }
    return [name for name, holds in judged.items() if holds]


def _exif_values(opened: Image.Image, *, keep_gps: bool) -> _Exif:
    """Return the EXIF entries that are text or numbers, by standard name; GPS only if asked for."""
    parts = [(None, ExifTags.TAGS), (ExifTags.IFD.Exif, ExifTags.TAGS)]
    parts += [(ExifTags.IFD.GPSInfo, ExifTags.GPSTAGS)] if keep_gps else []
    named: dict[str, Any] = {}
    for part, names in parts:
        with suppress(*_DECODE_ERRORS):  # broken EXIF: the picture itself may be whole
            exif = opened.getexif()
            values = dict(exif) if part is None else exif.get_ifd(part)
            named |= {names.get(tag, str(tag)): value for tag, value in values.items()}
    pointers = ("GPSInfo", "ExifOffset", "MakerNote", "XMLPacket", "PrintImageMatching")
    kept = {name: _plain(value) for name, value in named.items() if name not in pointers}
    return {name: value for name, value in kept.items() if value is not None}


def _plain(value: object) -> str | int | float | None:
    if isinstance(value, str):
        text = value.replace("\x00", "").strip()[:_EXIF_TEXT]
        return text.encode("utf-8", "replace").decode() or None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, tuple):
        return " ".join(str(_plain(part)) for part in value)[:_EXIF_TEXT]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) else None


def _taken_at(values: _Exif) -> datetime | None:
    """Return when the photograph was taken; EXIF has no time zone, so the clock is read as UTC."""
    text = str(values.get("DateTimeOriginal") or values.get("DateTime") or "")
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
