"""A folder in, a small finished output of three nights out, by the real stages.

Drawings of the picture book in several formats, one turned by EXIF, captions beside some, broken
files, names that are HTML; then a night on which one image is new, one changed and two are gone;
then one with nothing new.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipcap import storage
from clipcap.bundled.scenes import caption, draw, random_scene
from clipcap.outcomes import Night
from clipcap.stages.publish import Published
from tests.nights import Tiny, make_tiny, night

NIGHTS = ("2026-11-18", "2026-11-19", "2026-11-20")
SCRIPT = "<script>alert(1)</script>"
_FORMATS = ("JPEG", "PNG", "WEBP")
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_SIZES = ((128, 128), (160, 120), (96, 144))
_MODEL_TAG, _ORIENTATION_TAG, _TURN_RIGHT = 0x0110, 0x0112, 6


@dataclass(frozen=True)
class Output:
    """A finished output: `url` is canonical; the nights are in order of their dates."""

    url: str
    source: Path
    tiny: Tiny
    nights: tuple[tuple[Night, Published], ...]

    @property
    def folder(self) -> Path:
        """The output as a path."""
        path = storage.local_path(self.url)
        assert path is not None
        return path


def build(folder: Path, *, pictures: int = 10) -> Output:
    """Make the source, the models and the output below `folder`; takes some seconds."""
    source, out, tiny = folder / "in", folder / "out", make_tiny(folder / "models")
    fill(source, pictures)
    spoil(source)
    nights = [night(source, out, tiny, dt=NIGHTS[0])]
    (source / "scene-01.png").unlink()
    (source / "empty.jpg").unlink()
    save(source / "scene-02.webp", 102)
    save(source / "scene-late.png", 103)
    nights.append(night(source, out, tiny, dt=NIGHTS[1]))
    nights.append(night(source, out, tiny, dt=NIGHTS[2]))
    return Output(storage.canonical(str(out)), source, tiny, tuple(nights))


def fill(source: Path, pictures: int) -> None:
    """Write drawings; every third has captions beside it, the last two are near-duplicates."""
    last = source
    for number in range(pictures):
        form = _FORMATS[number % len(_FORMATS)]
        path = source / f"scene-{number:02d}.{_ENDINGS[form]}"
        said, last = save(path, number), path
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"{said}\n{SCRIPT} a second caption\n")
    with Image.open(last) as opened:
        opened.convert("RGB").save(source / "scene-again.jpg", quality=90)


def save(path: Path, seed: int) -> str:
    """Draw one scene into a file, its format by the ending; return its true caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 7])
    scene = random_scene(rng)
    draw(scene, rng, _SIZES[seed % len(_SIZES)]).save(path)
    return caption(scene)


def spoil(source: Path) -> None:
    """Add what a bucket holds besides good images, and one good image with hostile words."""
    exif = Image.Exif()
    exif[_MODEL_TAG] = SCRIPT
    exif[_ORIENTATION_TAG] = _TURN_RIGHT
    stream = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 120, 40)).save(stream, "JPEG", exif=exif)
    name = SCRIPT.replace("/", "\u2215")
    (source / f"{name}.jpg").write_bytes(stream.getvalue())
    (source / f"{name} broken.jpg").write_bytes(stream.getvalue()[:400])
    (source / "cut.jpg").write_bytes((source / "scene-00.jpg").read_bytes()[:900])
    (source / "empty.jpg").write_bytes(b"")
    (source / "page.png").write_bytes(b"<html>not an image</html>")
    Image.new("RGB", (5, 3)).save(source / "speck.png")


def footers_of(out: Output) -> dict[str, object]:
    """Return the newest list of every object."""
    latest = json.loads((out.folder / "_latest.json").read_text())
    listed: dict[str, object] = json.loads(
        (out.folder / "_manifests" / f"{latest['run_id']}.json").read_text()
    )
    return listed


if __name__ == "__main__":
    import sys

    build(Path(sys.argv[1]))
