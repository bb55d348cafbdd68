"""Training from an output: pairs joined by image, nothing trained twice, a captioner that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipcap import cards, layout, storage
from clipcap.errors import SettingsError
from clipcap.layout import Run
from clipcap.stages import train
from clipcap.stages.caption import CaptionSettings
from clipcap.training import TrainSettings as LoopSettings
from tests.nights import Tiny, draw, make_tiny, night

LOOP = LoopSettings(steps=6, batch_size=4, learning_rate=1e-3, validation_share=0.2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def captioned(folder: Path, tiny: Tiny, texts: list[str]) -> Run:
    """Make an output of drawings, each with a caption by a person unless its text is empty."""
    for n, text in enumerate(texts):
        draw(folder / "in" / f"drawing-{n}.png", n)
        if text:
            (folder / "in" / f"drawing-{n}.txt").write_text(text)
    return night(folder / "in", folder / "out", tiny)[0].run


def settings(tiny: Tiny, **changed: object) -> train.TrainSettings:
    """Return settings that start from the tiny captioner."""
    given = {"name": "mine", "start": tiny.captioner.captioner, "prefix_length": 3, "loop": LOOP}
    return train.TrainSettings.model_validate(given | changed)


def test_a_captioner_is_trained_once_and_captions(tmp_path: Path, tiny: Tiny) -> None:
    texts = ["a red ball.", "two cats.", "", "a boat on the sea.", "a tree.", "a dog."]
    run = captioned(tmp_path, tiny, texts)
    done = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    assert (done.images, done.captions, done.was_there) == (5, 5, False)
    assert done.folder == layout.captioner(run.out, "mine")
    before = cards.captioner_digest(done.folder)
    again = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    assert again.was_there
    assert cards.captioner_digest(done.folder) == before
    local = str(storage.local_path(done.folder))
    chosen = Tiny(tiny.encoder, CaptionSettings(captioner=local), tiny.label_set)
    night(tmp_path / "in", tmp_path / "out", chosen)
    assert list((tmp_path / "out" / "captions" / "captioner=mine").rglob("*.parquet"))


def test_the_same_data_and_seed_give_the_same_captioner(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a house."])
    made = [
        train.train(run, settings=settings(tiny, name=name), encoder=tiny.encoder)
        for name in ("one", "two")
    ]
    mappers = [storage.read(f"{one.folder}/{cards.MAPPER_NAME}") for one in made]
    assert mappers[0] == mappers[1]


def test_another_caption_trains_anew(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats."])
    train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    (tmp_path / "in" / "drawing-1.txt").write_text("a black dog.")
    run = night(tmp_path / "in", tmp_path / "out", tiny, dt="2026-11-21")[0].run
    assert not train.train(run, settings=settings(tiny), encoder=tiny.encoder).was_there


def test_an_output_without_captions_says_what_to_do(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["", ""])
    with pytest.raises(SettingsError, match=r"No image in .* has captions to learn from"):
        train.train(run, settings=settings(tiny), encoder=tiny.encoder)
