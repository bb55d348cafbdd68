"""A seed and a number in, a damaged picture file out: the same one everywhere.

Small valid pictures of every format that is read, and whatever other files are given, are cut,
spliced, overwritten, and their chunks doubled, dropped and swapped.
"""

from __future__ import annotations

import io
import itertools
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

MOST_BYTES = 2**20  # of one case
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
"""What lengths and offsets break on."""

Change = Callable[[bytearray, random.Random], bytearray]


def pictures() -> dict[str, bytes]:
    """Return small valid pictures of every format, by name."""
    return {name: _saved(image, form, **given) for name, image, form, given in _drawn()}


def _saved(image: Image.Image, form: str, **given: Any) -> bytes:  # noqa: ANN401
    stream = io.BytesIO()
    more = [other.copy() for other in given.get("append_images", ())]
    image.copy().save(stream, form, **given | {"append_images": more})  # each format leaves marks
    return stream.getvalue()


def _drawn() -> Iterator[tuple[str, Image.Image, str, dict[str, Any]]]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    y, x = np.mgrid[0:40, 0:56]
    noise[..., 0], noise[..., 1] = x * 4, y * 6  # some smooth, some not
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[..., :3].copy())
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(180)]}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "Kamera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:01:02 03:04:05"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    more: dict[str, Any] = {"exif": exif.tobytes()}
    more["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "jpeg", rgb, "JPEG", {}
    yield "jpeg progressive", rgb, "JPEG", {"progressive": True, "subsampling": 0}
    yield "jpeg restarts", rgb, "JPEG", {"restart_marker_blocks": 2}
    yield "jpeg gray", rgb.convert("L"), "JPEG", {}
    yield "jpeg CMYK", rgb.convert("CMYK"), "JPEG", {}
    yield "jpeg several", rgb, "MPO", frames
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"png {mode}", rgba.convert(mode), "PNG", {}
    yield "png 16 bits", deep, "PNG", {}
    yield "png transparent colour", rgb, "PNG", {"transparency": (0, 0, 0)}
    yield "gif", rgb.convert("P"), "GIF", {"transparency": 3}
    yield "webp lossless", rgba, "WEBP", {"lossless": True}
    yield "tiff 16 bits", deep, "TIFF", {}
    yield "tiff float", rgb.convert("F"), "TIFF", {}
    yield "tiff CMYK", rgb.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}
    for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"tiff {how}", rgb, "TIFF", {"compression": how}
    yield "tiff fax", rgb.convert("1"), "TIFF", {"compression": "group4"}
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp {mode}", rgba.convert(mode), "BMP", {}
    for form in ("PNG", "GIF", "WEBP", "AVIF", "TIFF"):
        yield f"{form} animated", rgb, form, frames
    for form in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
        yield f"{form} with EXIF and ICC", rgb, form, more


def case(bases: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return damaged file `number` of a seed."""
    draw = random.Random(f"{seed}/{number}")
    data = bytearray(draw.choice(bases))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        if draw.random() < 0.1:
            data = _spliced(data, bytearray(draw.choice(bases)), draw)
        else:
            data = draw.choice(CHANGES)(data, draw)
    if draw.random() < 0.7:
        _mend_sums(data)
    return bytes(data[:MOST_BYTES])


def _place(data: bytearray, draw: random.Random) -> int:
    """Return an offset; every second one among the first bytes, where sizes and counts stand."""
    return draw.randrange(min(len(data), draw.choice((64, 512, len(data)))) or 1)


def _span(data: bytearray, draw: random.Random) -> slice:
    at = _place(data, draw)
    return slice(at, at + draw.choice((1, 2, 4, 8, 64, 1024)))


def _cut(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data) + 1)]


def _flip(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 2, 8, 64))):
        if data:
            data[_place(data, draw)] ^= 1 << draw.randrange(8)
    return data


def _overwrite(data: bytearray, draw: random.Random) -> bytearray:
    span = _span(data, draw)
    size = len(data[span])
    data[span] = draw.choice((bytes(size), b"\xff" * size, draw.randbytes(size)))
    return data


def _number(data: bytearray, draw: random.Random) -> bytearray:
    number, form = draw.choice(NUMBERS), draw.choice(("<I", ">I", "<H", ">H", "B"))
    size = struct.calcsize(form)
    at = _place(data, draw)
    data[at : at + size] = struct.pack(form, number & (1 << 8 * size) - 1)
    return data


def _insert(data: bytearray, draw: random.Random) -> bytearray:
    at = _place(data, draw)
    data[at:at] = draw.choice((data[_span(data, draw)], draw.randbytes(8), bytes(4096)))
    return data


def _drop(data: bytearray, draw: random.Random) -> bytearray:
    del data[_span(data, draw)]
    return data


def _chunk(data: bytearray, draw: random.Random) -> bytearray:
    """Double, drop, swap or move whole chunks, segments or boxes."""
    parts = chunks(bytes(data))
    at, other = draw.randrange(len(parts)), draw.randrange(len(parts))
    match draw.randrange(4):
        case 0:
            parts[at:at] = [parts[at]] * draw.choice((1, 2, 50))
        case 1:
            del parts[at]
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            parts.insert(other, parts.pop(at))
    return bytearray(b"".join(parts))


CHANGES: tuple[Change, ...] = (_cut, _flip, _overwrite, _number, _number, _insert, _drop, _chunk)


def _spliced(data: bytearray, other: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def chunks(data: bytes) -> list[bytes]:
    """Return the parts that a file's format has, with its head; joined they are the file."""
    if data.startswith(b"\x89PNG"):
        starts = _starts(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    elif data.startswith(b"RIFF"):
        starts = _starts(data, 12, lambda at: 8 + int.from_bytes(data[at + 4 : at + 8], "little"))
    elif data[4:8] == b"ftyp":
        starts = _starts(data, 0, lambda at: max(int.from_bytes(data[at : at + 4], "big"), 8))
    elif data.startswith(b"\xff\xd8"):
        starts = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    else:
        starts = list(range(0, len(data), max(len(data) // 16, 1)))
    edges = sorted({0, *starts, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)] or [data]


def _starts(data: bytes, at: int, length: Callable[[int], int]) -> list[int]:
    found: list[int] = []
    while at < len(data) and len(found) < 1000:
        found.append(at)
        at += length(at)
    return found


def _mend_sums(data: bytearray) -> None:
    """Make the check sums of a PNG right again, so that what is inside is looked at."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
