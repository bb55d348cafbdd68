"""A folder of photographs in; speed and exactness of our preprocessing beside open_clip's, out.

    python -m bench.preprocessing PHOTOGRAPHS --megapixels 0.67 12 --repeats 5

Both begin with the bytes of the same JPEG (4:2:0, quality 88: photographs resampled to the size, or
made-up ones where no folder is given) and end with normalised float32, ours in batches of 8, as a
device does it. One thread; images per CPU second, the median of some rounds in which all take turns
at each batch. Then every format: the
largest difference in levels of 255, and 1 - cosine between the embeddings of a ViT-B-32 with random
weights.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torch import Tensor

from clipcap import photographs
from clipcap.forward import normalised
from clipcap.pixels import pixels
from clipcap.preprocessing import PixelSettings, Preprocess

CONFIG = PreprocessCfg()
WANTED = Preprocess.of(asdict(CONFIG))
SCALED = PixelSettings(scaled=True)
REFERENCE = image_transform_v2(CONFIG, is_train=False)
MEAN, STD = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)

BATCH = 8
Files = list[bytes]
Way = Callable[[Files], list[Tensor]]


def main() -> None:
    """Read the command line, measure, print Markdown rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, nargs="?")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.67, 12])
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    _sizes(chosen, model)
    _formats(chosen, model)


def theirs(files: Files) -> list[Tensor]:
    """Open, turn and preprocess as open_clip does."""
    opened = (ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in files)
    return [REFERENCE(image) for image in opened]


def ours(files: Files) -> list[Tensor]:
    """Make the pixels as a worker does, and normalise them as a device does."""
    return _normalised([pixels(data, WANTED) for data in files])


def scaled(files: Files) -> list[Tensor]:
    """Make the pixels from a decode at a fraction."""
    return _normalised([pixels(data, WANTED, SCALED) for data in files])


def _normalised(levels: list[NDArray[np.uint8]]) -> list[Tensor]:
    return list(normalised(torch.from_numpy(np.stack(levels)), MEAN, STD))


def _pictures(chosen: argparse.Namespace, megapixels: float) -> Iterator[Image.Image]:
    """Yield pictures of that many megapixels each."""
    if chosen.photographs is None:
        side = (megapixels * 1e6 / 12) ** 0.5
        for number in range(chosen.count):
            size = (round(4 * side), round(3 * side))
            rng = np.random.default_rng(number)
            yield photographs.photograph(rng, size if number % 3 else size[::-1])
        return
    for path in sorted(chosen.photographs.rglob("*.jpg"))[: chosen.count]:
        image = Image.open(path).convert("RGB")
        ratio = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = (round(image.width * ratio), round(image.height * ratio))
        yield image.resize(size, Image.Resampling.LANCZOS)


def _sizes(chosen: argparse.Namespace, model: Any) -> None:  # noqa: ANN401 - open_clip has no types
    print(
        "| megapixels, bits/pixel | open_clip images/CPU s | ours | | scaled | | 1 - cosine, both |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for megapixels in chosen.megapixels:
        files = [photographs.jpeg(picture) for picture in _pictures(chosen, megapixels)]
        bits = 8 * sum(map(len, files)) / (megapixels * 1e6 * len(files))
        (base, _), *rest = _rates(files, [theirs, ours, scaled], chosen.repeats)
        compared = " | ".join(f"{rate:.0f} | {ratio:.2f} times" for rate, ratio in rest)
        far = ", ".join(f"{_angle(model, files, way):.0e}" for way in (ours, scaled))
        print(f"| {megapixels:g}, {bits:.1f} | {base:.0f} | {compared} | {far} |", flush=True)


def _rates(files: Files, ways: list[Way], repeats: int) -> list[tuple[float, float]]:
    """Return images per CPU second of each way, and its ratio to the first one; medians."""
    rounds = []
    for _ in range(repeats + 1):
        spent = [0.0] * len(ways)
        for at in range(0, len(files), BATCH):
            for number, way in enumerate(ways):
                began = time.process_time()
                way(files[at : at + BATCH])
                spent[number] += time.process_time() - began
        rounds.append(spent)
    rounds = rounds[1:]  # the first one also warms up
    return [
        (
            statistics.median(len(files) / spent[number] for spent in rounds),
            statistics.median(spent[0] / spent[number] for spent in rounds),
        )
        for number in range(len(ways))
    ]


@torch.inference_mode()
def _angle(model: Any, files: Files, way: Way) -> float:  # noqa: ANN401
    """Return the largest 1 - cosine between embeddings of both preprocessings."""
    both = [torch.stack(one(files)) for one in (theirs, way)]
    first_BD, second_BD = (model.encode_image(batch).double() for batch in both)
    return float((1 - torch.cosine_similarity(first_BD, second_BD)).max())


def _formats(chosen: argparse.Namespace, model: Any) -> None:  # noqa: ANN401
    print("\n| format | levels of 255, most | mean | 1 - cosine, most | speed |")
    print("| --- | --- | --- | --- | --- |")
    pictures = list(_pictures(chosen, chosen.megapixels[0]))[:6]
    for name, (form, change, options) in FORMATS.items():
        files = [_saved(change(picture), form, **options) for picture in pictures]
        apart_BCHW = (torch.stack(theirs(files)) - torch.stack(ours(files))).abs()
        levels_BCHW = apart_BCHW * 255 * STD[:, None, None]
        most, mean = float(levels_BCHW.max()), float(levels_BCHW.mean())
        (_, _), (_, ratio) = _rates(files, [theirs, ours], chosen.repeats)
        angle = _angle(model, files, ours)
        print(f"| {name} | {most:.0f} | {mean:.4f} | {angle:.0e} | {ratio:.2f} |", flush=True)


def _same(picture: Image.Image) -> Image.Image:
    return picture


def _with_alpha(picture: Image.Image) -> Image.Image:
    found = picture.copy()
    found.putalpha(picture.convert("L"))
    return found


def _deep(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


_JPEG = {"quality": photographs.QUALITY}
FORMATS: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    "JPEG": ("JPEG", _same, _JPEG),
    "JPEG 4:4:4": ("JPEG", _same, _JPEG | {"subsampling": 0}),
    "JPEG progressive": ("JPEG", _same, _JPEG | {"progressive": True}),
    "JPEG turned by EXIF": ("JPEG", _same, _JPEG | {"exif": _turned()}),
    "JPEG grayscale": ("JPEG", lambda picture: picture.convert("L"), _JPEG),
    "JPEG CMYK": ("JPEG", lambda picture: picture.convert("CMYK"), _JPEG),
    "PNG": ("PNG", _same, {"compress_level": 3}),
    "PNG 16 bits": ("PNG", _deep, {"compress_level": 3}),
    "PNG palette": ("PNG", lambda picture: picture.quantize(256), {}),
    "PNG alpha": ("PNG", _with_alpha, {"compress_level": 3}),
    "WebP": ("WEBP", _same, {"quality": 88, "method": 2}),
    "WebP alpha": ("WEBP", _with_alpha, {"quality": 88, "method": 2}),
    "AVIF": ("AVIF", _same, {"speed": 10}),
    "TIFF": ("TIFF", _same, {}),
    "BMP": ("BMP", _same, {}),
    "GIF": ("GIF", lambda picture: picture.quantize(256), {}),
}


if __name__ == "__main__":
    main()
