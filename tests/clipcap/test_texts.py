"""Texts without images: what a file of them says, where they are moved to, what they teach."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipcap import captioner as captioners
from clipcap import cards, embedding, models, parallel, storage, texts, validation
from clipcap.bundled import evaluation, scenes
from clipcap.captioner import Captioner
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import ClipcapError, NotFoundError, SettingsError
from clipcap.layout import Run
from clipcap.lessons import Examples, plan
from clipcap.progress import Hooks, Progress, State
from clipcap.settings import digest
from clipcap.stages import train as stage
from clipcap.stages.caption import CaptionSettings
from clipcap.trainer import TrainMetrics, learn
from clipcap.training import TextSettings, TrainSettings
from tests.captioners import embeddings, tiny_captioner
from tests.nights import Tiny, draw, make_tiny, night

SAID = [
    f"a {colour} {thing} {place}."
    for colour, thing, place in itertools.product(
        ("red", "blue", "green"), ("ball", "car", "boat"), ("on the sea", "in the snow")
    )
]
WANTED = ["a cat.", "two dogs, one ball."]


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", "a cat.\r\n\r\n  two dogs, one ball.  \na cat.\n"),
        ("mark.txt", "\ufeffa cat.\ntwo dogs, one ball."),
        ("Flickr8k.token.txt", "1.jpg#0\ta cat.\n1.jpg#1\ttwo dogs, one ball.\n"),
        ("captions.txt", 'image,caption\n1.jpg,a cat.\n2.jpg,"two dogs, one ball."\n'),
        ("conceptual.tsv", "a cat.\thttps://x.org/1\ntwo dogs, one ball.\thttps://x.org/2\n"),
        ("alone.csv", 'caption\na cat.\n"two dogs, one ball."\n'),
        ("bare.csv", "caption\na cat.\ntwo dogs, one ball.\n"),
        ("list.json", json.dumps(WANTED)),
        ("names.json", json.dumps({"1.jpg": WANTED})),
        (
            "coco.json",
            json.dumps({"annotations": [{"image_id": 1, "caption": t} for t in WANTED]}),
        ),
    ],
)  # fmt: skip
def test_sentences_are_read_from_lines_and_from_any_file_of_captions(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    assert texts.read(str(tmp_path / name)) == WANTED


def test_sentences_are_read_from_parquet(tmp_path: Path) -> None:
    table = pa.table({"url": ["https://x.org/1", "https://x.org/2"], "caption": WANTED})
    pq.write_table(table, tmp_path / "texts.parquet")
    assert texts.read(str(tmp_path / "texts.parquet")) == WANTED


@pytest.mark.parametrize("at", ["", "/said-0.tar", "/*.tar"])
def test_sentences_are_read_from_tars_with_text(tmp_path: Path, at: str) -> None:
    with tarfile.open(tmp_path / "said-0.tar", "w") as tar:
        for n, text in enumerate(WANTED):
            member = tarfile.TarInfo(f"{n:04}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    assert texts.read(f"{tmp_path}{at}") == WANTED


def test_sentences_are_read_from_data_of_the_original_whatever_they_are_of(tmp_path: Path) -> None:
    said = [
        {"image_id": "1", "caption": text, "clip_embedding": n} for n, text in enumerate(WANTED)
    ]
    data = pickle.dumps({"clip_embedding": torch.randn(2, 4), "captions": said})
    (tmp_path / "said.pkl").write_bytes(data)
    assert texts.read(str(tmp_path / "said.pkl")) == WANTED


def test_a_file_that_is_no_text_or_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("ein Kätzchen".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(SettingsError, match="must be UTF-8"):
        texts.read(str(tmp_path / "latin.txt"))
    with pytest.raises(SettingsError, match="holds none"):
        texts.read(str(tmp_path / "empty.txt"))
    with pytest.raises(NotFoundError):
        texts.read(str(tmp_path / "nowhere.txt"))


# --- what is learned ------------------------------------------------------------------------------


def bundled() -> Captioner:
    """A new mapper before the language model of the bundled captioner."""
    folder = models.captioner_folder(models.BUNDLED)
    language_model, tokenizer = captioners.load_language_model(f"{folder}/language_model")
    ref = embedding.reference(EmbedSettings())
    card = Card(
        captioner_id="of-texts",
        encoder=EncoderFit(model_id=ref.model_id, dim=ref.dim),
        prefix_length=4,
        decode=Choice(name="beam", settings={"max_tokens": 20}),
    )
    return captioners.new(card, language_model, tokenizer, seed=0)


def test_a_captioner_that_saw_texts_alone_captions_images() -> None:
    encoder = embedding.load(EmbedSettings(), Speed(device="cpu"))
    drawn = evaluation.held_out_images(16, seed=5)
    pixels = torch.stack([encoder.preprocess(image) for _, image in drawn])
    image_ND = functional.normalize(encoder.encode_images(pixels))
    rng = np.random.default_rng(0)
    said = sorted({scenes.caption(scenes.random_scene(rng)) for _ in range(250)})
    text_ND = texts.moved(
        texts.embedded(said, encoder, parallel.current(torch.device("cpu"))), image_ND.mean(0)
    )
    captioner = bundled()
    truth = [[scenes.caption(scene)] for scene, _ in drawn]
    score = validation.cider(image_ND, torch.ones(len(drawn)), truth)
    before = score(captioner, range(len(drawn)))
    settings = TrainSettings(epochs=8, batch_size=32, learning_rate=2e-3, precision="fp32")
    metrics = learn(Examples(text_ND, [[t] for t in said], texts=len(said)), captioner, settings)
    assert score(captioner, range(len(drawn))) > before + 2.5  # of at most 10
    assert metrics.validation_loss is not None  # of texts held out: there are no captions
    assert (metrics.captions_trained, metrics.captions_held_out) == (0, len(said) // 20)
    assert metrics.texts_trained == len(said) - len(said) // 20


def apart() -> tuple[Tensor, Tensor]:
    """Embeddings of images, and of their texts: near each other but for one offset, as in CLIP."""
    image_ND = embeddings(len(SAID))
    offset_D = torch.zeros(image_ND.shape[1])
    offset_D[0] = 1.5
    return image_ND, functional.normalize(image_ND + offset_D)


def test_texts_that_lie_beside_the_images_are_moved_there() -> None:
    image_ND, text_ND = apart()
    moved_ND = texts.moved(text_ND, image_ND.mean(0))
    assert torch.allclose(moved_ND.norm(dim=1), torch.ones(len(SAID)))
    near, far = (functional.cosine_similarity(x, image_ND) for x in (moved_ND, text_ND))
    assert float(near.min()) > 0.9 > 0.8 > float(far.max())


def both(**changed: Any) -> tuple[Examples, TrainSettings]:  # noqa: ANN401 - any setting
    """Six images with captions, and twelve texts."""
    rows = 6
    said = [
        [f"a {word}.", f"one {word}."] for word in ("cat", "dog", "boat", "car", "tree", "ball")
    ]
    examples = Examples(embeddings(rows + 12), [*said, *([t] for t in SAID[:12])], texts=12)
    given = {
        "steps": 8, "batch_size": 4, "learning_rate": 1e-2, "validation_share": 0.34,
        "validations": 4, "precision": "fp32", "texts": {"epochs": 2},
    }  # fmt: skip
    return examples, TrainSettings.model_validate(given | changed)


def test_texts_come_before_the_captions_of_images() -> None:
    examples, settings = both(warmup_steps=2)
    metrics = learn(examples, tiny_captioner(), settings)
    assert (metrics.texts_trained, metrics.captions_trained) == (12, 8)
    assert len(metrics.rows_held_out) == 2
    assert max(metrics.rows_held_out) < 6  # images, not texts
    assert len(metrics.curve) == 6 + 8
    shares = [one.learning_rate / settings.learning_rate for one in metrics.curve]
    assert shares[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert shares[6:9] == pytest.approx([0.0, 0.5, 1.0])  # each begins with a warm-up


def test_patience_waits_for_the_captions_of_images() -> None:
    """Texts may well be best, and are kept then; but they end nothing that has not begun."""
    examples, settings = both(patience=2, validations=7)
    scores = iter((9.0, 8.0, 7.0, 1.0, 2.0, 3.0, 4.0))
    hooks = Hooks(score=lambda _captioner, _rows: next(scores))
    metrics = learn(examples, tiny_captioner(), settings, hooks=hooks)
    assert (metrics.best_step, len(metrics.curve)) == (2, 6 + 4)


def test_the_words_of_a_held_out_image_are_not_learned_from_texts() -> None:
    examples, settings = both()
    held = learn(examples, tiny_captioner(), settings).rows_held_out
    said = [*examples.captions[:6], *([text] for n in held for text in examples.captions[n])]
    said += [[text] for text in SAID[:12]]
    more = Examples(embeddings(len(said)), said, texts=len(said) - 6)
    metrics = learn(more, tiny_captioner(), settings)
    assert metrics.rows_held_out == held
    assert metrics.texts_trained == 12


def test_texts_get_noise_of_their_own() -> None:
    def trained(**noise: float) -> Tensor:
        given = {
            "texts": {"epochs": 2, "noise": noise["texts"]},
            "embedding_noise": noise["images"],
        }
        examples, settings = both(**given, steps=1, keep="last", warmup_steps=0)
        captioner = tiny_captioner()
        learn(examples, captioner, settings)
        return torch.cat([p.detach().flatten() for p in captioner.mapper.parameters()])

    plain, again = trained(texts=0.0, images=0.0), trained(texts=0.0, images=0.0)
    assert torch.equal(plain, again)
    assert not torch.equal(plain, trained(texts=0.1, images=0.0))
    assert not torch.equal(plain, trained(texts=0.0, images=0.1))


def test_noise_is_as_large_beside_embeddings_that_are_not_of_length_1() -> None:
    examples, settings = both(texts={"noise": 0.2})
    longer = Examples(10 * examples.embedding_ND, examples.captions, texts=12)
    captioner = tiny_captioner()
    assert plan(longer, captioner, settings).phases[0].noise == 0.2
    captioner.card = captioner.card.model_copy(update={"normalized": False})
    noises = [phase.noise for phase in plan(longer, captioner, settings).phases]
    assert noises == [pytest.approx(2.0), 0.0]


class _StoppedError(ClipcapError):
    """Raised where a kill would be."""


@pytest.mark.parametrize("at", [3, 6, 7, 11])
def test_a_training_killed_among_texts_or_behind_them_goes_on(at: int) -> None:
    examples, settings = both(embedding_noise=0.1)
    whole, again = tiny_captioner(), tiny_captioner()
    metrics = learn(examples, whole, settings)
    held: list[State] = []

    def save(state: State) -> None:
        held.append({name: tensor.detach().clone() for name, tensor in state.items()})

    def stop(progress: Progress) -> None:
        if progress.step == at:
            raise _StoppedError

    hooks = Hooks(on_progress=stop, save=save, save_steps=1)
    with pytest.raises(_StoppedError):
        learn(examples, tiny_captioner(), settings, hooks=hooks)
    found: TrainMetrics = learn(examples, again, settings, hooks=Hooks(load=lambda: held[-1]))
    assert found == metrics
    pairs = zip(whole.mapper.parameters(), again.mapper.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


# --- the stage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def asked(tiny: Tiny, file: Path, **changed: object) -> stage.TrainSettings:
    loop = TrainSettings(steps=4, batch_size=4, learning_rate=1e-3, validation_share=0.2)
    given = {"name": "mine", "start": tiny.captioner.captioner, "prefix_length": 3, "loop": loop}
    return stage.TrainSettings.model_validate(given | {"texts": str(file)} | changed)


def test_an_output_without_captions_is_captioned_after_texts(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(3):
        draw(tmp_path / "in" / f"{n}.png", n)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(SAID))
    run = night(tmp_path / "in", tmp_path / "out", tiny)[0].run
    done = stage.train(run, settings=asked(tiny, file), encoder=tiny.encoder)
    assert (done.images, done.captions, done.texts, done.was_there) == (0, 0, len(SAID), False)
    card: Any = cards.read_card(done.folder).training
    assert (card["texts"], card["captions"], card["captions_held_out"]) == (14, 0, 4)
    local = str(storage.local_path(done.folder))
    night(
        tmp_path / "in",
        tmp_path / "out",
        Tiny(tiny.encoder, CaptionSettings(captioner=local), tiny.label_set),
    )
    assert list((tmp_path / "out" / "captions" / "captioner=mine").rglob("*.parquet"))
    assert stage.train(run, settings=asked(tiny, file), encoder=tiny.encoder).was_there
    file.write_text("\n".join(SAID[:-1]))
    assert not stage.train(run, settings=asked(tiny, file), encoder=tiny.encoder).was_there


def test_texts_and_captions_are_learned_in_one_run(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(3):
        draw(tmp_path / "in" / f"{n}.png", n)
        (tmp_path / "in" / f"{n}.txt").write_text("a dog.")
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(SAID))
    run = night(tmp_path / "in", tmp_path / "out", tiny)[0].run
    done = stage.train(run, settings=asked(tiny, file), encoder=tiny.encoder)
    assert (done.images, done.captions, done.texts) == (3, 3, len(SAID))
    alone = asked(tiny, file, captions="none")
    done = stage.train(run, settings=alone, encoder=tiny.encoder)
    assert (done.images, done.captions, done.texts) == (0, 0, len(SAID))
    with pytest.raises(SettingsError, match="there must be texts"):
        stage.train(run, settings=alone.model_copy(update={"texts": ""}), encoder=tiny.encoder)


@pytest.mark.parametrize(
    ("asked_for", "said"), [({"views": 2}, "`views`"), ({"normalized": False}, "normalized: false")]
)
def test_what_needs_images_is_refused_with_texts_alone(
    tmp_path: Path, tiny: Tiny, asked_for: dict[str, object], said: str
) -> None:
    draw(tmp_path / "in" / "0.png", 0)
    (tmp_path / "texts.txt").write_text("\n".join(SAID))
    run = night(tmp_path / "in", tmp_path / "out", tiny)[0].run
    chosen = asked(tiny, tmp_path / "texts.txt", **asked_for)
    with pytest.raises(SettingsError, match=said):
        stage.train(run, settings=chosen, encoder=tiny.encoder)


def test_texts_are_moved_to_the_mean_of_all_images(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(6):
        draw(tmp_path / "in" / f"{n}.png", n)
    run = night(tmp_path / "in", tmp_path / "out", tiny)[0].run
    ref = embedding.reference(tiny.encoder)
    parts = [pq.read_table(p) for p in (tmp_path / "out" / "embeddings").rglob("*.parquet")]
    every = np.array([row for part in parts for row in part["embedding"].to_pylist()])
    assert len(parts) == 2  # shards of four
    mean_D = texts.images(run.out, ref).mean()
    assert mean_D.numpy() == pytest.approx(every.mean(0), abs=1e-6)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(SAID))
    moved = stage.train(run, settings=asked(tiny, file), encoder=tiny.encoder)
    stay = TrainSettings.model_validate(
        asked(tiny, file).loop.model_dump() | {"texts": {"shift": "none"}}
    )
    staying = asked(tiny, file, loop=stay, name="staying")
    stage.train(run, settings=staying, encoder=tiny.encoder)
    draw(tmp_path / "in" / "more.png", 9)
    run = night(tmp_path / "in", tmp_path / "out", tiny, dt="2026-11-21")[0].run
    again = stage.train(run, settings=asked(tiny, file), encoder=tiny.encoder)
    assert (moved.was_there, again.was_there) == (False, False)  # the mean is another now
    assert stage.train(run, settings=staying, encoder=tiny.encoder).was_there


def test_an_output_without_images_says_that_there_is_nothing_to_move_to(
    tmp_path: Path, tiny: Tiny
) -> None:
    (tmp_path / "texts.txt").write_text("a cat.\n")
    run = Run("run-1", storage.canonical(str(tmp_path / "out")), "2026-11-20")
    with pytest.raises(SettingsError, match=r"where the images of .* lie, but it has none"):
        stage.train(run, settings=asked(tiny, tmp_path / "texts.txt"), encoder=tiny.encoder)


def test_a_training_without_texts_is_what_it_always_was() -> None:
    """The digest of the defaults before there were texts: captioners are not trained anew."""
    known = "c45b284e8c5ff5a693d2d43fd3ff621abaaeda04a364d0836aa9be4aba3a3d48"
    assert digest(TrainSettings().told()) == known
    other = TrainSettings(texts=TextSettings(noise=0.1))
    assert other.told()["texts"] == {"noise": 0.1}
