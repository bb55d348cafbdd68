"""Training from an output: pairs joined by image, nothing trained twice, a captioner that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clipcap import cards, layout, promotions, storage, verify
from clipcap.errors import ClipcapError, SettingsError
from clipcap.layout import Run
from clipcap.resume import Checkpoint
from clipcap.settings import digest as plain_digest
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
    assert "mine learned from 4 captions of images." in storage.read(done.report_url).decode()
    before = cards.captioner_digest(done.folder)
    again = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    assert (again.was_there, again.report_url) == (True, "")
    assert cards.captioner_digest(done.folder) == before
    local = str(storage.local_path(done.folder))
    chosen = Tiny(tiny.encoder, CaptionSettings(captioner=local), tiny.label_set)
    night(tmp_path / "in", tmp_path / "out", chosen)
    assert list((tmp_path / "out" / "captions" / "captioner=mine").rglob("*.parquet"))


def test_the_card_counts_what_was_cut_blank_and_held_out(tmp_path: Path, tiny: Tiny) -> None:
    long = "a cat and a dog and a ball and a tree."
    run = captioned(tmp_path, tiny, ["a red ball.", f"two cats.\n{long}", "a house.", "a dog."])
    loop = LOOP.model_copy(update={"max_tokens": 9, "validation_share": 0.25})
    done = train.train(run, settings=settings(tiny, loop=loop), encoder=tiny.encoder)
    told: Any = cards.read_card(done.folder).training
    held = told["captions_held_out"]
    assert (told["captions"] + held, told["captions_cut"], told["captions_blank"]) == (5, 1, 0)
    assert held in (1, 2)  # the captions of one image


def test_a_training_forgets_what_was_measured_on_the_old_captions(
    tmp_path: Path, tiny: Tiny
) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a tree."])
    done = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    url = f"{done.folder}/{cards.REVIEW_NAME}"
    storage.write(url, b"{}")
    assert train.train(run, settings=settings(tiny), encoder=tiny.encoder).was_there
    assert storage.info(url) is not None
    train.train(run, settings=settings(tiny, prefix_length=2), encoder=tiny.encoder)
    assert storage.info(url) is None


def test_a_training_killed_as_it_writes_leaves_no_captioner_of_two_halves(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a tree."])
    done = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    stray = f"{done.folder}/{cards.LANGUAGE_MODEL_NAME}/added_tokens.json"
    storage.write(stray, b"{}")  # of the old captioner alone
    with monkeypatch.context() as patch:
        patch.setattr("clipcap.captioner.write_card", None)
        with pytest.raises(TypeError):
            train.train(run, settings=settings(tiny, prefix_length=2), encoder=tiny.encoder)
    with pytest.raises(SettingsError, match="not a captioner folder"):
        cards.read_card(done.folder)
    assert storage.info(stray) is None
    assert not train.train(run, settings=settings(tiny), encoder=tiny.encoder).was_there


def test_a_captioner_that_is_promoted_while_another_is_trained_stays(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a tree."])
    done = train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    digest = cards.captioner_digest(done.folder)
    refusals = iter((None, SettingsError("mine is the promoted captioner")))

    def require_free(*_: object) -> None:
        if (refusal := next(refusals)) is not None:
            raise refusal

    monkeypatch.setattr(promotions, "require_free", require_free)
    with pytest.raises(SettingsError, match="is the promoted captioner"):
        train.train(run, settings=settings(tiny, prefix_length=2), encoder=tiny.encoder)
    assert cards.captioner_digest(done.folder) == digest


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


def test_captions_of_a_file_take_the_place_of_those_of_the_images(
    tmp_path: Path, tiny: Tiny
) -> None:
    run = captioned(tmp_path, tiny, ["", "two cats.", "", ""])
    file = tmp_path / "captions.csv"
    file.write_text(
        "image,caption\ndrawing-0.png,a red ball.\ndrawing-0.png,a ball.\n"
        "drawing-2.png,a tree.\nother.png,a car.\n"
    )
    chosen = settings(tiny, captions=str(file))
    done = train.train(run, settings=chosen, encoder=tiny.encoder)
    assert (done.images, done.captions, done.captions_unmatched) == (2, 3, 1)
    moved = file.rename(tmp_path / "moved.csv")
    chosen = settings(tiny, captions=str(moved))
    assert train.train(run, settings=chosen, encoder=tiny.encoder).was_there


def test_validation_by_cider_is_in_the_card_and_chooses(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a boat.", "a tree.", "a dog."])
    loop = LOOP.model_copy(update={"measure": "cider", "validation_share": 0.4, "validations": 3})
    done = train.train(run, settings=settings(tiny, loop=loop), encoder=tiny.encoder)
    told: Any = cards.read_card(done.folder).training
    assert [one["step"] for one in told["validation"]] == [2, 4, 6]
    scores = [one["score"] for one in told["validation"]]
    assert all(score >= 0.0 for score in scores)
    assert told["best_step"] == 2 * (1 + scores.index(max(scores)))


def test_cider_of_one_image_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a boat."])
    loop = LOOP.model_copy(update={"measure": "cider", "validation_share": 0.3})
    with pytest.raises(SettingsError, match="at least two images held out"):
        train.train(run, settings=settings(tiny, loop=loop), encoder=tiny.encoder)


class _KilledError(ClipcapError):
    """Raised where a kill would be."""


def test_a_killed_training_goes_on_and_leaves_nothing(
    tmp_path: Path,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="clipcap.trainer")
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats.", "a boat.", "a tree."])
    whole = train.train(run, settings=settings(tiny, name="whole"), encoder=tiny.encoder)
    again = settings(tiny, name="killed", checkpoint_steps=2)
    url = layout.training(run.out, "killed")
    real = storage.write

    def write(target: str, *parts: bytes) -> None:
        real(target, *parts)
        if target == url:
            raise _KilledError

    monkeypatch.setattr(storage, "write", write)
    with pytest.raises(_KilledError):
        train.train(run, settings=again, encoder=tiny.encoder)
    monkeypatch.undo()
    assert storage.info(url) is not None
    assert not [one for one in verify.verify(run.out).problems if "_training" in str(one)]
    other = again.model_copy(update={"checkpoint_steps": 3})  # changes no result
    done = train.train(run, settings=other, encoder=tiny.encoder)
    assert "training goes on after step" in caplog.text
    assert storage.info(url) is None
    mappers = [storage.read(f"{one.folder}/{cards.MAPPER_NAME}") for one in (whole, done)]
    assert mappers[0] == mappers[1]


def test_what_is_kept_of_other_data_is_not_gone_on_from(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats."])
    url = layout.training(run.out, "mine")
    Checkpoint(url, "of other captions").save({"weights.0": torch.zeros(3)})
    train.train(run, settings=settings(tiny), encoder=tiny.encoder)
    assert storage.info(url) is None


@pytest.mark.parametrize("name", ["../x", "a b", "_mine", "mine_", "bundled", "promoted", "none"])
def test_a_name_that_is_no_folder_of_its_own_is_refused_at_once(tiny: Tiny, name: str) -> None:
    with pytest.raises(ValidationError, match="a letter or digit first and last"):
        settings(tiny, name=name)


def test_an_output_without_captions_says_what_to_do(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["", ""])
    with pytest.raises(SettingsError, match=r"No image in .* has captions to learn from"):
        train.train(run, settings=settings(tiny), encoder=tiny.encoder)


def test_what_nobody_asked_for_is_in_no_fingerprint(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new version trains every captioner anew."""
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats."])
    told: list[set[str]] = []

    def digest(value: list[Any]) -> str:
        told.append({key for part in value if isinstance(part, dict) for key in part})
        return plain_digest(value)

    monkeypatch.setattr(train, "digest", digest)
    new = {"embeddings", "normalized", "views", "alignment_images"}
    for changed in ({}, {"alignment_images": 0, "normalized": False}):
        train.train(run, settings=settings(tiny, **changed), encoder=tiny.encoder)
    assert [one & new for one in told] == [set(), {"normalized"}]
