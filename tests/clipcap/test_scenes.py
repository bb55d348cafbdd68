"""One seed gives one picture and one true caption, and held-out scenes stay held out."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from clipcap.bundled.pool import draw_pool
from clipcap.bundled.scenes import Scene, caption, draw, is_held_out, random_scene
from clipcap.bundled.shapes import COLOURS, PLACES, THINGS


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene(("ball",), ("red",), (2,), "on the grass"), "two red balls on the grass."),
        (Scene(("fish",), ("blue",), (3,), "on the sea"), "three blue fish on the sea."),
        (
            Scene(("car", "tree"), ("orange", "green"), (1, 1), "at night"),
            "an orange car and a green tree at night.",
        ),
    ],
)
def test_a_caption_says_things_colours_counts_and_place(scene: Scene, text: str) -> None:
    assert caption(scene) == text


def test_there_are_ten_kinds_ten_colours_and_six_places() -> None:
    assert len(THINGS) >= 10
    assert len(COLOURS) == 10
    assert len(PLACES) >= 6


def test_the_same_seed_gives_the_same_picture() -> None:
    scene = random_scene(np.random.default_rng(3))
    first, second, other = (draw(scene, np.random.default_rng(seed), 96) for seed in (5, 5, 6))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("size", [(64, 64), (300, 200), (90, 130)])
def test_a_picture_has_the_size_asked_for(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = draw(random_scene(rng), rng, size)
    assert image.size == size
    assert image.mode == "RGB"


def test_a_scene_of_a_split_is_of_that_split() -> None:
    rng = np.random.default_rng(1)
    assert all(is_held_out(random_scene(rng, split="held_out")) for _ in range(100))
    assert not any(is_held_out(random_scene(rng, split="train")) for _ in range(100))


def test_a_tenth_of_all_descriptions_is_held_out() -> None:
    every = itertools.product(THINGS, COLOURS, (1, 2, 3), PLACES)
    held_out = [
        is_held_out(Scene((thing,), (colour,), (count,), place))
        for thing, colour, count, place in every
    ]
    assert 0.08 < sum(held_out) / len(held_out) < 0.12


def test_a_mirror_image_is_held_out_with_its_scene() -> None:
    """Training mirrors pictures; a mirrored one must not show it a held-out description."""
    rng = np.random.default_rng(2)
    for scene in (random_scene(rng) for _ in range(300)):
        assert is_held_out(scene) == is_held_out(scene.mirrored())


def test_a_pool_is_the_same_for_any_number_of_processes() -> None:
    one, two = (
        draw_pool(501, seed=0, stream=9, split="train", workers=workers) for workers in (1, 2)
    )
    assert one.scenes == two.scenes
    assert np.array_equal(one.pixels, two.pixels)


def test_scenes_load_no_torch() -> None:
    code = "import clipcap.bundled.scenes, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
