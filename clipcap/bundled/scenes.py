"""A seed in, picture-book scenes with one known caption each out.

A scene says what is to be seen (things, colours, counts, place), `draw` paints it with jitter, and
`caption` says it in words, so that what a captioner writes can be judged without a person. The
bundled model knows such scenes and nothing else. No torch here: tests and benches draw with it too.
"""

import hashlib
import io
import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from clipcap.bundled.shapes import COLOURS, PLACES, RGB, THINGS, Pen

Split = Literal["any", "train", "held_out"]

PLURALS = {thing: "fish" if thing == "fish" else f"{thing}s" for thing in THINGS}
NUMBERS = {1: "one", 2: "two", 3: "three"}

HELD_OUT_SHARE = 0.1
"""Share of all descriptions that no training ever sees."""

_SUPERSAMPLE = 2
"""Drawn at twice the size and reduced, since Pillow's shapes have no smooth edges."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, left to right: one kind up to three times, or two things once each."""

    things: tuple[str, ...]
    colours: tuple[str, ...]
    counts: tuple[int, ...]
    place: str

    def mirrored(self) -> "Scene":
        """The scene that the picture shows when left and right change sides."""
        return Scene(self.things[::-1], self.colours[::-1], self.counts[::-1], self.place)


def phrase(thing: str, colour: str, count: int) -> str:
    """Say one kind of thing: `two red balls`, `an orange cat`."""
    if count == 1:
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {thing}"
    return f"{NUMBERS[count]} {colour} {PLURALS[thing]}"


def caption(scene: Scene) -> str:
    """Say the one true caption, such as `two red balls on the grass.`, ended by a full stop."""
    phrases = map(phrase, scene.things, scene.colours, scene.counts)
    return f"{' and '.join(phrases)} {scene.place}."


def is_held_out(scene: Scene) -> bool:
    """Whether this description is kept from training; a scene and its mirror image agree."""
    parts = sorted(map(phrase, scene.things, scene.colours, scene.counts))
    digest = hashlib.sha256("|".join([*parts, scene.place]).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def random_scene(rng: np.random.Generator, *, split: Split = "any") -> Scene:
    """One scene: half of them one kind of thing, half of them two.

    Args:
        rng: The only source of chance.
        split: `held_out` gives only descriptions that training never sees, `train` only the others.
    """
    while True:
        kinds = int(rng.integers(1, 3))
        scene = Scene(
            things=tuple(map(str, rng.choice(list(THINGS), kinds, replace=False))),
            colours=tuple(map(str, rng.choice(list(COLOURS), kinds))),
            counts=(int(rng.integers(1, 4)),) if kinds == 1 else (1, 1),
            place=str(rng.choice(list(PLACES))),
        )
        if split == "any" or is_held_out(scene) == (split == "held_out"):
            return scene


def draw(scene: Scene, rng: np.random.Generator, size: int | tuple[int, int] = 128) -> Image.Image:
    """Paint the scene.

    Args:
        scene: What to paint.
        rng: Chooses sizes, positions, shades, blur, noise and JPEG quality.
        size: Width and height in pixels, or one number for a square. The things stand in the middle
            square, so that a centre crop loses only background.
    """
    width, height = (size, size) if isinstance(size, int) else size
    canvas = Image.new("RGB", (width * _SUPERSAMPLE, height * _SUPERSAMPLE))
    _place(canvas, scene, rng)
    _things(canvas, scene, rng)
    image = canvas.resize((width, height), Image.Resampling.BOX)
    return _weather(image, rng)


def _place(canvas: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Background over the whole canvas, a little shifted and shaded, with no outlines."""
    wide, high = canvas.size
    scale = rng.uniform(1.0, 1.2)
    left, top = -rng.uniform(0, scale - 1) * wide, -rng.uniform(0, scale - 1) * high / 2
    pen = Pen(ImageDraw.Draw(canvas), left, top, wide * scale, high * scale, (0, 0, 0), 0)
    PLACES[scene.place](pen, rng.uniform(0.5, 0.62))
    shade = np.clip(rng.normal(1.0, 0.03, 3), 0.9, 1.1)
    pixels = np.asarray(canvas, dtype=np.float32) * shade.astype(np.float32)
    canvas.paste(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))


def _things(canvas: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Every thing in its own column of the middle square, from left to right, none over another."""
    wide, high = canvas.size
    side = min(wide, high)
    pairs = zip(scene.things, scene.colours, scene.counts, strict=True)
    row = list(itertools.chain.from_iterable([(t, c)] * n for t, c, n in pairs))
    column = 0.96 * side / len(row)
    left = (wide - side) / 2 + 0.02 * side
    top = (high - side) / 2
    shade = {colour: _stray(COLOURS[colour], rng) for colour in scene.colours}
    common = rng.uniform(0.8, 0.98)  # things of one picture are of about one size
    for index, (thing, colour) in enumerate(row):
        span = min(column, 0.62 * side) * common * rng.uniform(0.92, 1.0)
        wobble = span * rng.uniform(0.92, 1.08)
        x = left + index * column + rng.uniform(0, column - span)
        low, high_edge = 0.62 * side, 0.98 * side
        y = top + max(rng.uniform(low, high_edge), min(wobble + 0.02 * side, high_edge)) - wobble
        outline = (235, 235, 235) if scene.place == "at night" else (25, 25, 25)
        stroke = max(1, round(side * rng.uniform(0.006, 0.012)))
        pen = Pen(ImageDraw.Draw(canvas), x, y, span, wobble, outline, stroke)
        THINGS[thing](pen, shade[colour])


def _stray(colour: RGB, rng: np.random.Generator) -> RGB:
    """A shade near the colour: each channel up to 12 levels away."""
    red, green, blue = (np.asarray(colour) + rng.integers(-12, 13, 3)).clip(0, 255).tolist()
    return (red, green, blue)


def _weather(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur, noise and the loss of a JPEG encoder, each mild enough to leave the caption true."""
    blur_px = max(0.0, rng.uniform(-0.004, 0.006)) * min(image.size)
    if blur_px > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur_px))
    noise = rng.normal(0.0, rng.uniform(0.0, 6.0), (image.height, image.width, 3))
    pixels = np.clip(np.asarray(image, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "JPEG", quality=int(rng.integers(55, 96)))
    with Image.open(packed) as opened:
        return opened.convert("RGB")
