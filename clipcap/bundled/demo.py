"""A seed in, a small folder of pictures out, as a bucket has them, for the demo.

Held-out scenes in several formats and sizes, some with a caption beside them, one turned by its
EXIF orientation, and one cut short, so that the demo shows a reject as well.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from clipcap.bundled.scenes import caption, draw, random_scene

PICTURES = 24
_SIZES = ((200, 200), (240, 180), (224, 224), (180, 240), (320, 240), (160, 160))
_TURNED, _CUT_SHORT = 4, 18
_ORIENTATION_TAG, _TURN_RIGHT = 0x0112, 6


def write_pictures(folder: Path, *, seed: int) -> None:
    """Write the demo's pictures; the same seed gives the same pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 11])
    for number in range(1, PICTURES + 1):
        scene = random_scene(rng, split="held_out")
        image = draw(scene, rng, _SIZES[number % len(_SIZES)])
        path = _save(image, folder, number)
        if number % 4 == 1 and number != _CUT_SHORT:
            path.with_suffix(".txt").write_text(caption(scene) + "\n")


def _save(image: Image.Image, folder: Path, number: int) -> Path:
    stem = folder / f"scene-{number:02d}"
    if number == _TURNED:
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = _TURN_RIGHT
        path = stem.with_suffix(".jpg")
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=85, exif=exif)
    elif number % 6 == 5:  # 160 x 160: a noisy PNG is large
        path = stem.with_suffix(".png")
        image.save(path, optimize=True)
    elif number % 6 == 3:
        path = stem.with_suffix(".webp")
        image.save(path, quality=80)
    else:
        path = stem.with_suffix(".jpg")
        image.save(path, quality=85)
    if number == _CUT_SHORT:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return path
