"""What a training is known by, what it begins from, and what the card says when it is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipcap import cards, embedding, storage
from clipcap.cards import Choice, EncoderFit
from clipcap.errors import SettingsError
from clipcap.materials import Materials
from clipcap.progress import Progress
from clipcap.stages import train
from clipcap.stages.train import TrainSettings
from clipcap.trainer import TrainMetrics
from clipcap.training import TrainSettings as LoopSettings
from tests.clipcap.test_train_stage import captioned
from tests.nights import Tiny, make_tiny
from tests.outputs import change

MAPPER = Choice(name="transformer", settings={"layers": 1, "heads": 2, "clip_length": 2})
FIT = EncoderFit(model_id="m", dim=4)
ROWS = {"image_id": ["a", "b"], "content_sha256": ["1", "2"], "reference_captions": [["x"], ["y"]]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def settings(tiny: Tiny, **changed: object) -> TrainSettings:
    """Return settings that start from the tiny captioner."""
    given = {"name": "mine", "start": tiny.captioner.captioner, "prefix_length": 3}
    return TrainSettings.model_validate(given | changed)


def fit_of(tiny: Tiny) -> EncoderFit:
    """Return the tiny encoder, as a card names it."""
    ref = embedding.reference(tiny.encoder)
    return EncoderFit(
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )


def test_the_fingerprint_is_of_what_changes_the_captioner_and_of_nothing_else(
    tiny: Tiny, tmp_path: Path
) -> None:
    chosen = settings(tiny)
    other = make_tiny(tmp_path, seed=1).captioner.captioner

    def of(chosen: TrainSettings = chosen, recipe: str = "encoder", **rows: object) -> str:
        found = pa.table(ROWS | rows)
        return train._fingerprint(Materials(tiny.encoder, FIT, recipe, found), chosen)

    same = [settings(tiny, **{key: value}) for key, value in (
        ("device", "cpu"), ("checkpoint_steps", 7), ("captions", "elsewhere.csv"),
    )]  # fmt: skip
    assert {of(one) for one in same} == {of()}
    others = {
        of(content_sha256=["1", "3"]),
        of(image_id=["a", "c"]),
        of(reference_captions=[["x"], ["z"]]),
        of(recipe="another encoder"),
        of(settings(tiny, start=other)),
        of(settings(tiny, prefix_length=4)),
        of(settings(tiny, mapper=MAPPER)),
        of(settings(tiny, loop=LoopSettings(seed=1))),
        of(),
    }
    assert len(others) == 9
    began = settings(tiny, start=other)
    before = of(began)
    card = Path(other) / cards.CARD_NAME
    card.write_text(card.read_text().replace('"note": "', '"note": "changed '))
    assert of(began) != before, "the same folder, but another captioner in it"


def test_an_untrained_captioner_is_what_the_settings_say(tiny: Tiny) -> None:
    ref = fit_of(tiny)
    loop = LoopSettings(max_tokens=60, stop="and", seed=3)
    chosen = settings(tiny, mapper=MAPPER, loop=loop)
    made = train._untrained(ref, chosen)
    fit = made.card.encoder
    assert (fit.model_id, fit.sha256) == (ref.model_id, ref.sha256)
    assert (fit.preprocess_sha256, fit.dim) == (ref.preprocess_sha256, ref.dim)
    assert (made.card.prefix_length, made.card.mapper) == (3, MAPPER)
    assert made.card.decode.settings == {"stop": "and", "max_tokens": 46}
    made.require_room(46)
    with pytest.raises(SettingsError, match="at most 46"):
        made.require_room(47)
    short = settings(tiny, loop=LoopSettings(max_tokens=9))
    assert train._untrained(ref, short).card.decode.settings["max_tokens"] == 9

    def weights(seed: int) -> torch.Tensor:
        chosen = settings(tiny, loop=LoopSettings(seed=seed))
        mapper = train._untrained(ref, chosen).mapper
        return torch.cat([one.flatten() for one in mapper.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_training_may_start_from_a_plain_language_model(tiny: Tiny) -> None:
    ref = fit_of(tiny)
    plain = f"{tiny.captioner.captioner}/{cards.LANGUAGE_MODEL_NAME}"
    of_captioner, of_plain = (
        train._untrained(ref, settings(tiny, start=start)).language_model.state_dict()
        for start in (tiny.captioner.captioner, plain)
    )
    assert all(torch.equal(of_plain[name], tensor) for name, tensor in of_captioner.items())
    assert train._start_folder(plain) == plain


def test_the_card_has_the_curve_in_short_and_every_measurement() -> None:
    curve = tuple(
        Progress(
            step=step, steps=950, loss=float(step), learning_rate=0.1,
            validation_loss=0.5 if step % 100 == 0 else None,
            validation_score=1.5 if step % 100 == 0 else None,
        )
        for step in range(1, 951)
    )  # fmt: skip
    metrics = TrainMetrics(curve, 0.5, 40, 4, 1, 0, (3,), best_step=300)
    told = train._told(metrics, TrainSettings(loop=LoopSettings(seed=5)))
    assert 100 <= len(told["losses"]) <= 200
    assert told["losses"][:2] == [3.0, 8.0]  # the means of five steps
    assert [one["step"] for one in told["validation"]] == list(range(100, 901, 100))
    assert told["validation"][0] == {"step": 100, "loss": 0.5, "score": 1.5}
    assert (told["best_step"], told["validation_loss"], told["captions"]) == (300, 0.5, 40)
    assert told["settings"]["seed"] == 5


def test_what_is_returned_is_what_was_trained_also_the_second_time(
    tmp_path: Path, tiny: Tiny
) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.\na ball.", "two cats.", "a house.", "a dog."])
    loop = LoopSettings(steps=4, batch_size=2, learning_rate=1e-2, validation_share=0.25)
    chosen = settings(tiny, loop=loop)
    done = train.train(run, settings=chosen, encoder=tiny.encoder)
    assert (done.images, done.captions, done.was_there) == (4, 5, False)
    card = cards.read_card(done.folder)
    losses = card.training["losses"]
    assert isinstance(losses, list)
    assert losses[0] != losses[-1] == done.loss
    assert done.validation_loss == card.training["validation_loss"]
    again = train.train(run, settings=chosen, encoder=tiny.encoder)
    assert (again.was_there, again.loss) == (True, None)
    assert (again.captions, again.validation_loss) == (5, done.validation_loss)


def test_on_a_store_the_card_is_written_last(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = train._untrained(fit_of(tiny), settings(tiny))
    written: list[str] = []
    monkeypatch.setattr(storage, "write", _told_to(written, storage.write))
    folder = "memory://promises/captioners/mine"
    captioner.write(folder)
    there = [url.removeprefix(f"{folder}/") for url in written if url.startswith(folder)]
    assert there[-1] == cards.CARD_NAME
    assert {cards.MAPPER_NAME, f"{cards.LANGUAGE_MODEL_NAME}/config.json"} <= set(there)
    assert cards.read_card(folder).captioner_id == "mine"


def _told_to(written: list[str], write: object) -> object:
    def told(url: str, *parts: bytes) -> None:
        written.append(url)
        assert callable(write)
        write(url, *parts)

    return told


def test_embeddings_that_are_no_numbers_are_refused(tmp_path: Path, tiny: Tiny) -> None:
    run = captioned(tmp_path, tiny, ["a red ball.", "two cats."])
    for path in (tmp_path / "out" / "embeddings").rglob("*.parquet"):
        change(path, lambda row: row.update(embedding=np.full(16, np.nan, np.float32)))
    with pytest.raises(SettingsError, match="must be finite"):
        train.train(run, settings=settings(tiny, alignment_images=0), encoder=tiny.encoder)
    assert not storage.listed(f"{run.out}/captioners")
