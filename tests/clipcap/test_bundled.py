"""The bundled model holds its floors on scenes it never saw, and loads as any real model does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipcap import captioner, cards, models
from clipcap.bundled import evaluation, tiny_clip, words
from clipcap.bundled.demo import write_pictures
from clipcap.bundled.evaluation import Figures
from clipcap.bundled.pool import Pool, reduced
from clipcap.bundled.scenes import caption, draw, random_scene
from clipcap.bundled.shapes import PLACES, THINGS
from clipcap.labels import sets

BUNDLED = models.BUNDLED_FOLDER
ENCODER = BUNDLED / "encoder"
CAPTIONER = BUNDLED / "captioner"


@pytest.fixture(scope="module")
def figures() -> Figures:
    """A smaller draw than the build's own, from another seed."""
    return evaluation.evaluate(ENCODER, CAPTIONER, count=150, seed=1)


def test_nine_of_ten_held_out_scenes_are_captioned_exactly_right(figures: Figures) -> None:
    assert figures.caption_exact >= 0.90


def test_the_place_of_95_of_100_held_out_scenes_is_right(figures: Figures) -> None:
    assert figures.place_top1 >= 0.95


def test_the_thing_of_95_of_100_held_out_scenes_is_right(figures: Figures) -> None:
    assert figures.thing_top1 >= 0.95


def test_the_published_figures_hold_the_floors() -> None:
    published = json.loads((BUNDLED / "evaluation.json").read_text())
    assert published["scenes"] == 1_000
    assert published["caption_exact"] >= 0.90
    assert published["place_top1"] >= 0.95
    assert published["thing_top1"] >= 0.95


def test_all_weights_are_safetensors_of_at_most_12_megabytes() -> None:
    found = [path for folder in (ENCODER, CAPTIONER) for path in folder.rglob("*")]
    files = [path for path in found if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def test_open_clip_loads_the_encoder_in_float32() -> None:
    model = tiny_clip.load(ENCODER)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_language_model_loads_in_float32() -> None:
    loaded = captioner.load(str(CAPTIONER))
    assert {p.dtype for p in loaded.language_model.parameters()} == {torch.float32}


def test_training_pictures_are_preprocessed_as_open_clip_does() -> None:
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{ENCODER}")
    rng = np.random.default_rng(0)
    for size in ((64, 64), (100, 150), (225, 97)):
        image = draw(random_scene(rng), rng, size)
        pixels = torch.from_numpy(np.asarray(reduced(image)).copy())[None]
        assert torch.allclose(preprocess(image), tiny_clip.normalised(pixels)[0], atol=1e-6)


def test_an_unknown_word_becomes_the_unknown_token() -> None:
    tokens = open_clip.get_tokenizer(f"local-dir:{ENCODER}")(["a picture of a zebra."])[0].tolist()
    known = words.vocabulary()
    assert [known[token] for token in tokens[:8]] == [
        "<start>", "a", "picture", "of", "a", "<unk>", ".", "<end>",
    ]  # fmt: skip


def test_every_caption_survives_the_tokenizer() -> None:
    tokenizer = words.tokenizer(for_clip=False)
    rng = np.random.default_rng(0)
    for text in (caption(random_scene(rng)) for _ in range(200)):
        tokens = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens) == text


def test_the_bundled_label_sets_name_what_is_drawn() -> None:
    wanted = {
        "scene_things": (list(THINGS), list(words.THING_TEMPLATES)),
        "scene_places": (list(PLACES), list(words.PLACE_TEMPLATES)),
    }
    for name, (names, templates) in wanted.items():
        found = sets.load(name)
        assert (list(found.names), list(found.templates)) == (names, templates)


def test_the_captioner_fits_the_encoder() -> None:
    encoder, card = models.encoder("bundled"), cards.read_card(str(CAPTIONER))
    cards.require_fit(
        card,
        model_id=encoder.model_id,
        sha256=encoder.sha256,
        preprocess_sha256=encoder.preprocess_sha256,
        dim=encoder.dim,
    )
    assert "photographs need a real model" in card.note


def test_one_demo_picture_is_cut_short_and_one_is_turned(tmp_path: Path) -> None:
    write_pictures(tmp_path, seed=0)
    broken, turned = [], []
    for path in sorted(p for p in tmp_path.iterdir() if p.suffix != ".txt"):
        try:
            with Image.open(path) as image:
                image.load()
                if image.getexif():
                    turned.append(path.name)
        except OSError:
            broken.append(path.name)
    assert (len(broken), len(turned)) == (1, 1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 600_000


def test_training_twice_from_one_seed_gives_the_same_weights() -> None:
    rng = np.random.default_rng(0)
    scenes = tuple(random_scene(rng, split="train") for _ in range(32))
    pool = Pool(scenes, np.stack([np.asarray(draw(scene, rng, 64)) for scene in scenes]))
    recipe = tiny_clip.Recipe(epochs=2, batch_size=16)
    first, second = (tiny_clip.train(pool, recipe).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
