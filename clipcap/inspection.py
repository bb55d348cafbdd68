"""Bytes of a file in, what the manifest says of it out: size, digest, hash, flags, EXIF.

`work` is what worker processes run (`clipcap.workers`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image

from clipcap import colours, images, sharedmemory, smaller
from clipcap.errors import ImageError
from clipcap.images import DECODE_ERRORS, ImageSettings

_EXIF_TEXT: Final = 200  # characters kept of one EXIF value
_EXIF_VALUES: Final = 256  # kept of one file: cameras write about 60, a hostile one 65,535
_PHASH_SIDE: Final = 32
_SEEN_SIDE: Final = 64  # flags are judged on a picture of this side, a JPEG is decoded for it
_DARK: Final = 0.32 * 255  # the 99th percentile of brightness below this: dark (CleanVision's rule)
_LIGHT: Final = 0.95 * 255 * 0.95  # the 5th percentile above this: light
_LOW_ENTROPY: Final = 0.3 * 8  # bits of an 8-bit histogram
_ODD_RATIO: Final = 4.0
_GRAY_LEVELS: Final = 2
_PLAIN: Final = ("RGB", "L", "P", "1", "CMYK", "YCbCr")
_MOST_KEPT: Final = 2**25  # bytes of a smaller file: it is sent in one answer
_LYING: Final = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MIRRORED: Final = (2, 3, 6, 7)  # that bring to the left what lay right or below
_UPSIDE_DOWN: Final = (3, 4, 7, 8)  # that bring to the top what lay right or below

_Exif = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the manifest says of an image; in pixels, `width` and `height` after EXIF turning."""

    media_type: str
    extension: str
    content_sha256: str
    width: int
    height: int
    original_width: int
    original_height: int
    phash: str
    flags: tuple[str, ...]
    exif: str | None
    taken_at: datetime | None
    smaller: bytes | None = None
    """The file that is kept in the place of one that is larger than asked for."""


def work(shared: dict[str, Any], item: list[Any]) -> dict[str, Any]:
    """Inspect the bytes at `[path, offset, length]`; `shared` has the settings."""
    settings = ImageSettings.model_validate(shared["settings"])
    found = inspect(sharedmemory.part(*item), settings, resize_px=shared.get("resize_px"))
    return asdict(found) | {
        "taken_at": found.taken_at and found.taken_at.isoformat(),
        "smaller": found.smaller and base64.b64encode(found.smaller).decode(),
    }


def received(answer: dict[str, Any]) -> Inspected:
    """Return what `work` answered in another process."""
    at, data = answer["taken_at"], answer["smaller"]
    return Inspected(
        **answer
        | {
            "flags": tuple(answer["flags"]),
            "taken_at": None if at is None else datetime.fromisoformat(at),
            "smaller": None if data is None else base64.b64decode(data),
        }
    )


def inspect(data: bytes, settings: ImageSettings, *, resize_px: int | None = None) -> Inspected:
    """Decode an image and return what the manifest says of it.

    With `resize_px` one whose shorter side is longer is made smaller, unless it is transparent, has
    more than 8 bits, or would need more bytes; the manifest is then about the file that is kept.

    Every byte of the picture is decoded, so that a broken one is known; the pixels of a JPEG are
    made at a fraction of their number, which is half of the work.

    Raises:
        ImageError: why it cannot be used.
    """
    found = images.sniff(data)
    side_px = max(_SEEN_SIDE, resize_px or 0)
    try:
        seen = _seen(data, settings, side_px if found.pillow == "JPEG" else None)
    except ImageError as error:
        if found.pillow != "JPEG" or error.reason != "decode_failed":
            raise
        seen = _seen(data, settings, None)  # lossless: libjpeg makes no fraction
    upright = seen.size[::-1] if seen.lies else seen.size
    whole = Inspected(
        media_type=found.media_type,
        extension=found.extension,
        content_sha256=hashlib.sha256(data).hexdigest(),
        width=upright[0],
        height=upright[1],
        original_width=seen.size[0],
        original_height=seen.size[1],
        phash=phash(seen.image, seen.extent),
        flags=tuple(_flags(seen.image, ratio=max(upright) / min(upright))),
        exif=json.dumps(seen.exif, sort_keys=True) if seen.exif else None,
        taken_at=_taken_at(seen.exif),
    )
    if resize_px is None or min(upright) <= resize_px or not seen.is_plain:
        return whole
    width, height = (max(round(side * resize_px / min(upright)), 1) for side in upright)
    kept = smaller.smaller(seen.image, (width, height), seen.profile)
    if len(kept) >= min(len(data), _MOST_KEPT):
        return whole
    return replace(
        whole,
        media_type="image/jpeg",
        extension="jpg",
        content_sha256=hashlib.sha256(kept).hexdigest(),
        width=width,
        height=height,
        smaller=kept,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture in RGB, upright, perhaps small; and what its file says, before turning."""

    image: Image.Image
    extent: tuple[float, float, float, float] | None
    size: tuple[int, int]
    lies: bool
    exif: _Exif
    profile: bytes | None
    is_plain: bool
    """Whether a JPEG can be made of it: neither transparent nor of more than 8 bits."""


def _seen(data: bytes, settings: ImageSettings, side_px: int | None) -> _Seen:
    """Decode; with `side_px` no larger than a JPEG's fractions need be for that."""
    with images.reading(data, settings) as opened:
        size, is_tiff = opened.size, opened.format == "TIFF"
        drafted = opened.draft("RGB", (side_px, side_px)) if side_px else None
        if not is_tiff:  # one that is loaded is closed
            opened.load()  # before its EXIF, for which Pillow loads a PNG: an error would be lost
        values = _exif_values(opened, keep_gps=settings.keep_gps)
        orientation = _orientation(opened)
        profile = opened.info.get("icc_profile") if opened.mode == "RGB" else None
        is_plain = opened.mode in _PLAIN and not colours.is_transparent(opened)
        image = images.upright(opened).convert("RGB")
    lies = orientation in _LYING
    if is_tiff:  # Pillow turns it as it opens or loads it
        size = image.size[::-1] if lies else image.size
    extent = _extent(image, drafted[1], orientation) if drafted else None
    return _Seen(image, extent, size, lies, values, profile, is_plain)


def _orientation(opened: Image.Image) -> int:
    with suppress(*DECODE_ERRORS):
        return int(opened.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _extent(
    image: Image.Image, box: tuple[float, float, float, float], orientation: int
) -> tuple[float, float, float, float] | None:
    """Return the part of an upright picture that the file has; `box` is it before turning.

    A decoder that makes an eighth of 805 pixels makes 101 of them, the last of five eighths.
    """
    width, height = (box[3], box[2]) if orientation in _LYING else (box[2], box[3])
    left = image.width - width if orientation in _MIRRORED else 0
    top = image.height - height if orientation in _UPSIDE_DOWN else 0
    is_turned = 0 <= image.width - width < 1 and 0 <= image.height - height < 1
    return (left, top, left + width, top + height) if is_turned else None


def _dct_matrix(side: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    k = np.arange(side)[:, None]
    n = np.arange(side)[None, :]
    return 2 * np.cos(np.pi * k * (2 * n + 1) / (2 * side))


_DCT: Final = _dct_matrix(_PHASH_SIDE)


def phash(image: Image.Image, extent: tuple[float, float, float, float] | None = None) -> str:
    """Return the 64-bit perceptual hash in hex: low DCT frequencies against their median.

    `extent` is the part to look at, in pixels and parts of them; without it, all.
    """
    side = (_PHASH_SIDE, _PHASH_SIDE)
    small = image.convert("L").resize(side, Image.Resampling.LANCZOS, extent)
    frequencies = _DCT @ np.asarray(small, dtype=np.float64) @ _DCT.T
    low = np.round(frequencies[:8, :8], 6)  # zeros of a flat picture are noise of 1e-13 before that
    bits = (low > np.median(low)).flatten()
    return np.packbits(bits).tobytes().hex()


def _flags(image: Image.Image, *, ratio: float) -> list[str]:
    small = image.resize((_SEEN_SIDE, _SEEN_SIDE), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float64)
    bright = np.sqrt(rgb**2 @ np.array([0.241, 0.691, 0.068]))
    counts = np.bincount(np.asarray(small.convert("L")).ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
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
        with suppress(*DECODE_ERRORS):  # broken EXIF: the picture itself may be whole
            exif = opened.getexif()
            values = dict(exif) if part is None else exif.get_ifd(part)
            named |= {names.get(tag, str(tag)): value for tag, value in values.items()}
    pointers = ("GPSInfo", "ExifOffset", "MakerNote", "XMLPacket", "PrintImageMatching")
    kept = {name: _plain(value) for name, value in named.items() if name not in pointers}
    whole = ((name, value) for name, value in kept.items() if value is not None)
    return dict(islice(whole, _EXIF_VALUES))


def _plain(value: object) -> str | int | float | None:
    if isinstance(value, str):
        text = value.replace("\x00", "").strip()[:_EXIF_TEXT]
        return text.encode("utf-8", "replace").decode() or None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, tuple):
        return " ".join(str(_plain(part)) for part in value[:_EXIF_TEXT])[:_EXIF_TEXT]
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
