"""A number of pictures in, that many made-up photographs out, as files or in WebDataset tars.

    python -m bench.photographs FOLDER --count 2000 --megapixels 0.67
    python -m bench.photographs FOLDER --count 2000 --mixed --tars 4

The pictures are those of `clipcap.photographs`, their mean size what `--megapixels` says.
`--mixed` has the formats of a real collection instead, 1.1 % of them broken.

The same seed, count and mean give the same files.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipcap import photographs, shards
from clipcap.photographs import MEGAPIXELS, QUALITY

FORMATS = {
    "jpeg": 0.710, "jpeg 4:4:4": 0.050, "jpeg progressive": 0.040, "jpeg turned by EXIF": 0.025,
    "jpeg grey": 0.030, "jpeg CMYK": 0.015, "png": 0.040, "png RGBA": 0.014, "png palette": 0.013,
    "webp": 0.052, "cut": 0.004, "empty": 0.002, "html": 0.002, "damaged": 0.003,
}  # fmt: skip
"""The share of each format in a mixed collection."""
BROKEN = ("cut", "empty", "html", "damaged")


@dataclass(frozen=True)
class Made:
    """One file: its extension and bytes, the format that it is of, and its size in pixels."""

    extension: str
    data: bytes
    form: str
    pixels: int


def main() -> None:
    """Read the command line, write, print what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--megapixels", type=float, default=MEGAPIXELS)
    parser.add_argument("--mixed", action="store_true", help="many formats, some files broken")
    parser.add_argument("--tars", type=int, default=0, help="pack them into so many tars")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    files = made(chosen.count, megapixels=chosen.megapixels, mixed=chosen.mixed, seed=chosen.seed)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    seen = list(_in_tars(files, chosen) if chosen.tars else _in_files(files, chosen.folder))
    size, pixels = sum(one[1] for one in seen), sum(one[2] for one in seen)
    print(
        f"{len(seen)} photographs, mean {pixels / len(seen) / 1e6:.2f} megapixels and "
        f"{size / len(seen) / 1e3:.0f} kB, {8 * size / pixels:.1f} bits per pixel: "
        + ", ".join(f"{n} {form}" for form, n in Counter(one[0] for one in seen).most_common())
    )


def made(count: int, *, megapixels: float, mixed: bool, seed: int) -> Iterator[Made]:
    """Yield photographs, the sizes spread evenly over their range, in an order of the seed's."""
    forms = _forms(count, np.random.default_rng(seed)) if mixed else ["jpeg"] * count
    wanted = photographs.sizes(count, megapixels=megapixels, seed=seed)
    for number, (size, form) in enumerate(zip(wanted, forms, strict=True)):
        own = np.random.default_rng((seed, number))
        yield encoded(photographs.photograph(own, size), form, own)


def _forms(count: int, rng: np.random.Generator) -> list[str]:
    """Return the format of each: as many of every one as its share says, in any order."""
    ends = np.cumsum(list(FORMATS.values())) / sum(FORMATS.values())
    places = (np.arange(count) + 0.5) / count
    names = np.array(list(FORMATS))[np.searchsorted(ends, places)]
    return [str(name) for name in rng.permutation(names)]


def encoded(picture: Image.Image, form: str, rng: np.random.Generator) -> Made:
    """Return a picture as a file of one of `FORMATS`."""
    pixels = picture.width * picture.height
    if form.startswith("png"):
        mode = {"png RGBA": "RGBA", "png palette": "P"}.get(form, "RGB")
        return Made("png", _saved(picture.convert(mode), "PNG", compress_level=3), form, pixels)
    if form == "webp":
        return Made("webp", _saved(picture, "WEBP", quality=QUALITY, method=2), form, pixels)
    mode = {"jpeg grey": "L", "jpeg CMYK": "CMYK"}.get(form, "RGB")
    options: dict[str, Any] = {"quality": QUALITY, "subsampling": 0 if "4:4:4" in form else 2}
    if form == "jpeg turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = int(rng.choice((3, 6, 8)))
        options["exif"] = exif
    data = _saved(picture.convert(mode), "JPEG", progressive=form == "jpeg progressive", **options)
    return Made("jpg", _broken(data, form, rng) if form in BROKEN else data, form, pixels)


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def _broken(data: bytes, form: str, rng: np.random.Generator) -> bytes:
    if form == "damaged":
        spoilt = bytearray(data)
        for at in rng.integers(len(data) // 4, len(data), 40):
            spoilt[at] ^= 0xFF
        return bytes(spoilt)
    html = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    return {"cut": data[: len(data) // 3], "empty": b"", "html": html}[form]


def _in_files(made: Iterator[Made], folder: Path) -> Iterator[tuple[str, int, int]]:
    for number, one in enumerate(made):
        (folder / f"{number:06}.{one.extension}").write_bytes(one.data)
        yield one.form, len(one.data), one.pixels


def _in_tars(made: Iterator[Made], chosen: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    each = -(-chosen.count // chosen.tars)
    files: list[tuple[str, str, bytes]] = []
    for number, one in enumerate(made):
        files.append((f"{number:06}", one.extension, one.data))
        if len(files) == each or number == chosen.count - 1:
            tar, _ = shards.pack(files)
            (chosen.folder / f"{number // each:05}.tar").write_bytes(tar)
            files = []
        yield one.form, len(one.data), one.pixels


if __name__ == "__main__":
    main()
