"""`clipcap ask`: what images answer to questions, with scores that mean something, and no twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import asking, embedding, likelihood, tables
from clipcap import captioner as captioners
from clipcap.asking import Asker
from clipcap.bundled.scenes import Scene, draw, random_scene
from clipcap.choosing import ByClip, Images
from clipcap.embedding import EmbedSettings, Speed
from clipcap.encoders.openclip import Encoder
from clipcap.metrics.clipscore import WEIGHT
from clipcap.questions import understood
from clipcap.stages.caption import CaptionSettings
from tests.command import Ended, clipcap
from tests.nights import Tiny, make_tiny, night
from tests.nights import draw as drawing

IMAGES = 6
CATS, SCENES = 30, 90
COLOURED = ("--question", "what colour is the car?", "--answers", "red,blue,green")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of six images in two shards."""
    folder = tmp_path_factory.mktemp("ask")
    for n in range(IMAGES):
        drawing(folder / "in" / f"drawing-{n}.png", n)
    night(folder / "in", folder / "out", tiny)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of source and output that may be changed."""
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Scene]]:
    """An output of scenes that the bundled model knows, a third with a cat, and what they show."""
    folder = tmp_path_factory.mktemp("book")
    rng = np.random.default_rng(3)
    scenes: dict[str, Scene] = {}
    (folder / "in").mkdir()
    while len(scenes) < SCENES:
        scene = random_scene(rng, split="held_out")
        if ("cat" in scene.things) == (len(scenes) < CATS):
            name = f"scene-{len(scenes):03d}"
            draw(scene, rng).save(folder / "in" / f"{name}.png")
            scenes[name] = scene
    bundled = Tiny(EmbedSettings(), CaptionSettings(), "scene_things")
    night(folder / "in", folder / "out", bundled, max_images=SCENES)
    return folder / "out", scenes


def ask(place: Path, tiny: Tiny, *more: object) -> Ended:
    words = ["ask", place / "out", "--to", place / "to", "--model", tiny.encoder.model]
    return clipcap(*words, "--captioner", tiny.captioner.captioner, "--json", *more)


def told(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return what was written, by image, question and rank."""
    parts = [pq.ParquetFile(path).read() for path in folder.rglob("*.parquet")]
    order = [(name, "ascending") for name in ("key", "question_index", "rank")]
    found: list[dict[str, Any]] = pa.concat_tables(parts).sort_by(order).to_pylist()
    return found


def vectors(place: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the embedding of each image."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for path in (place / "out" / "embeddings").rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        found |= zip(table["key"].to_pylist(), tables.vectors(table), strict=True)
    return found


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    power = np.exp(x - x.max())
    return np.asarray(power / power.sum())


# --- answers --------------------------------------------------------------------------------------


def answers_of(out: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Ask the scenes, and return the first answer of each to each question."""
    ended = clipcap("ask", out, "--to", folder, "--json", *words)
    assert ended.code == 0, ended.err
    return [row for row in rows(folder) if row["rank"] == 1]


def test_scenes_answer_what_they_show_and_nothing_else(
    book: tuple[Path, dict[str, Scene]], tmp_path: Path
) -> None:
    out, scenes = book
    places = sorted({scene.place for scene in scenes.values()})
    found = answers_of(
        out, tmp_path / "to", "--question", "is there a cat?", "--answers", "yes,no",
        "--question", "where is the cat?", "--answers", json.dumps(places),
    )  # fmt: skip
    right, wrong, silly = 0, 0, 0
    for row in found:
        scene = scenes[row["key"].rpartition("-")[0]]
        has_cat = "cat" in scene.things
        if row["question_index"] == 0:
            wrong += row["answer"] != ("yes" if has_cat else "no")
            assert row["accepted"]
        elif has_cat:
            right += row["accepted"] and row["answer"] == scene.place
        else:
            silly += row["accepted"]
    assert wrong <= 0.05 * SCENES
    assert right >= 0.85 * CATS
    assert silly <= 0.05 * (SCENES - CATS)


def test_scores_say_how_often_they_are_right(
    book: tuple[Path, dict[str, Scene]], tmp_path: Path
) -> None:
    out, scenes = book
    colours = "red,orange,yellow,green,blue,purple,pink,brown,black,white"
    error = {}
    for typical in ("0", "256"):
        words = (
            "--question",
            "what colour is the cat?",
            "--answers",
            colours,
            "--typical",
            typical,
        )
        found = answers_of(out, tmp_path / typical, *words)
        right = []
        for row in found:
            scene = scenes[row["key"].rpartition("-")[0]]
            cats = [n for n, thing in enumerate(scene.things) if thing == "cat"]
            right.append([scene.colours[n] for n in cats] == [row["answer"]])
        error[typical] = abs(np.mean(right) - np.mean([row["score"] for row in found]))
    assert error["256"] < 0.08 < error["0"]


def test_with_a_captioner_its_likelihood_compares_the_answers(
    book: tuple[Path, dict[str, Scene]], tmp_path: Path
) -> None:
    out, scenes = book
    words = ("--question", "how many cats are there?", "--answers", "0,1,2,3", "--by", "logprob")
    found = answers_of(out, tmp_path / "to", *words, "--captioner", "bundled", "--typical", "90")
    counts = {
        name: dict(zip(scene.things, scene.counts, strict=True)).get("cat", 0)
        for name, scene in scenes.items()
    }
    right = [row["answer"] == str(counts[row["key"].rpartition("-")[0]]) for row in found]
    assert np.mean(right) >= 0.9
    assert {row["captioner_id"] for row in found} == {"clipcap-tiny"}
    assert all(row["logprob"] is None or row["logprob"] < 0 for row in found)


def test_the_numbers_of_a_row_are_what_the_documentation_says(place: Path, tiny: Tiny) -> None:
    done = told(ask(place, tiny, *COLOURED))
    assert (done["images"], done["computed"], done["written"]) == (IMAGES, IMAGES, 2)
    encoder, question = (
        embedding.load(tiny.encoder, Speed()),
        understood(COLOURED[1], COLOURED[3].split(",")),
    )

    def mean(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        text_TD = encoder.encode_texts([f"{text}." for text in texts]).numpy()
        unit_TD = text_TD / np.linalg.norm(text_TD, axis=1, keepdims=True)
        return np.asarray(unit_TD.mean(axis=0))

    scale, found = encoder.logit_scale, rows(place / "to")
    assert len(found) == 3 * IMAGES
    for key, vector_D in vectors(place).items():
        unit_D = vector_D / np.linalg.norm(vector_D)
        cosine_C = [float(mean(texts) @ unit_D) for texts in question.statements]
        clear = float((mean(question.subject) - mean(question.neutral)) @ unit_D)
        sense = 1 / (1 + np.exp(-scale * clear))
        score_C = sense * softmax(scale * np.array(cosine_C))
        mine = [row for row in found if row["key"] == key]
        order = np.argsort(-score_C)
        assert [row["rank"] for row in mine] == [1, 2, 3]
        assert [row["answer"] for row in mine] == [question.answers[n] for n in order]
        assert [row["answer_index"] for row in mine] == order.tolist()
        np.testing.assert_allclose([row["score"] for row in mine], score_C[order], atol=1e-4)
        np.testing.assert_allclose([row["makes_sense"] for row in mine], sense, atol=1e-4)
        clip_score_C = WEIGHT * np.maximum(np.array(cosine_C), 0)
        np.testing.assert_allclose(
            [row["clip_score"] for row in mine], clip_score_C[order], atol=1e-5
        )
        second = max(score_C[order[1]], 1 - sense)
        assert mine[0]["margin"] == pytest.approx(score_C[order[0]] - second, abs=1e-4)
        assert mine[0]["accepted"] == (score_C[order[0]] >= max(0.5, 1 - sense))
        assert not any(row["accepted"] for row in mine[1:])
        assert {row["logprob"] for row in mine} == {None}
    given = done["questions"][0]
    assert sum(given["answers"].values()) + given["unknown"] == IMAGES
    assert given["kind"] == "quality"


def test_both_multiplies_what_clip_and_the_captioner_find(place: Path, tiny: Tiny) -> None:
    scores = {}
    for by in ("clip_score", "logprob", "both"):
        told(ask(place, tiny, *COLOURED, "--by", by))
        scores[by] = {(row["key"], row["answer"]): row for row in rows(place / "to")}
    for key in vectors(place):
        rivals = [(key, answer) for answer in ("red", "blue", "green")]
        parts = [np.array([scores[by][one]["score"] for one in rivals]) for by in scores]
        product = parts[0] * parts[1]
        sense = scores["both"][rivals[0]]["makes_sense"]
        np.testing.assert_allclose(parts[2], sense * product / product.sum(), rtol=1e-3)
        said = scores["logprob"][rivals[0]]["logprob"]
        captioner = captioners.load(tiny.captioner.captioner)
        texts = understood(COLOURED[1], ["red"]).statements[0]
        tokens = likelihood.tokenised(captioner, texts, ends=False)
        import torch

        one = likelihood.of_images(
            captioner, torch.tensor(vectors(place)[key])[None], None, [tokens]
        )
        assert said == pytest.approx(np.logaddexp.reduce(one[0].sum_C), abs=1e-4)


def test_counting_and_yes_or_no_need_no_answers(place: Path, tiny: Tiny) -> None:
    done = told(ask(place, tiny, "--question", "how many cats?", "--question", "is there a cat?"))
    assert list(done["questions"][0]["answers"]) == [str(n) for n in range(11)]
    assert list(done["questions"][1]["answers"]) == ["yes", "no"]
    for row in rows(place / "to"):
        if row["question_index"] == 1:
            other = row["makes_sense"] if row["answer"] == "yes" else 1 - row["makes_sense"]
            assert row["score"] == pytest.approx(other, abs=1e-6)
            assert (row["clip_score"] is None) == (row["answer"] == "no")
    yes_no = [row for row in rows(place / "to") if row["question_index"] == 1]
    assert all(row["accepted"] for row in yes_no if row["rank"] == 1)


def test_one_answer_alone_has_a_probability(place: Path, tiny: Tiny) -> None:
    told(ask(place, tiny, "--question", "what is this?", "--answers", "cat"))
    found = rows(place / "to")
    assert len(found) == IMAGES
    assert all(row["score"] == row["makes_sense"] < 1 for row in found)


def test_below_the_threshold_there_is_no_answer(place: Path, tiny: Tiny) -> None:
    done = told(ask(place, tiny, *COLOURED, "--threshold", "1"))
    assert done["questions"][0]["unknown"] == IMAGES
    assert not any(row["accepted"] for row in rows(place / "to"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused_and_can_be_mended(
    place: Path, tiny: Tiny, bad: float
) -> None:
    """NaN would be the score of every label and answer of such an image, without a word."""
    out = place / "out"
    shutil.rmtree(out)
    night(place / "in", out, tiny)
    path = sorted((out / "embeddings").rglob("*.parquet"))[0]
    table = tables.read(str(path))
    vector_BD = tables.vectors(table)
    vector_BD[1, 3] = bad
    field = table.schema.field("embedding")
    flat = pa.array(vector_BD.ravel().astype(np.float16))
    broken = pa.FixedSizeListArray.from_arrays(flat, vector_BD.shape[1]).cast(field.type)
    at = table.schema.get_field_index("embedding")
    footer = {name: text for name, text in tables.metadata(table).items() if name != "contract"}
    path.write_bytes(tables.to_bytes(table.set_column(at, field, broken), footer))
    shutil.rmtree(out / "labels")

    labelled = clipcap("label", out, "--model", tiny.encoder.model, "--label-set", tiny.label_set)
    for ended in (labelled, ask(place, tiny, *COLOURED)):
        assert ended.code == 2
        assert f"{path} are not. `clipcap verify OUT --repair`" in ended.err
    assert not list((place / "to").rglob("*.parquet"))
    clipcap("verify", out, "--repair")
    night(place / "in", out, tiny, dt="2026-11-21")
    assert told(ask(place, tiny, *COLOURED))["computed"] == IMAGES


# --- what is there already ------------------------------------------------------------------------


def test_only_what_is_new_is_computed_and_what_is_gone_is_removed(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "out")
    night(place / "in", place / "out", tiny)
    told(ask(place, tiny, *COLOURED, "--by", "both"))
    before = {path: path.read_bytes() for path in (place / "to").rglob("*.parquet")}
    with (
        patch.object(Encoder, "encode_texts", side_effect=AssertionError),
        patch.object(captioners, "load", side_effect=AssertionError),
    ):
        done = told(ask(place, tiny, *COLOURED, "--by", "both"))
    assert (done["images"], done["computed"], done["unchanged"]) == (IMAGES, 0, 2)
    assert {path: path.read_bytes() for path in before} == before
    old = {row["key"]: row for row in rows(place / "to") if row["rank"] == 1}
    for name in ("drawing-1.png", "drawing-4.png", "drawing-5.png"):  # the last two: a whole shard
        (place / "in" / name).unlink()
    drawing(place / "in" / "drawing-late.png", 9)
    night(place / "in", place / "out", tiny, dt="2026-11-21")
    done = told(ask(place, tiny, *COLOURED, "--by", "both"))
    assert (done["images"], done["computed"], done["written"], done["removed"]) == (4, 1, 2, 1)
    new = {row["key"]: row for row in rows(place / "to") if row["rank"] == 1}
    assert len(set(new) - set(old)) == 1
    assert all(new[key] == old[key] for key in set(new) & set(old))


@pytest.mark.parametrize(
    "other",
    [("--top-k", "2"), ("--threshold", "0.9"), ("--typical", "2"), ("--by", "both"),
     ("--question", "is there a cat?")],
    ids=lambda other: other[0],
)  # fmt: skip
def test_other_settings_ask_again(place: Path, tiny: Tiny, other: tuple[str, str]) -> None:
    told(ask(place, tiny, *COLOURED))
    assert told(ask(place, tiny, *COLOURED, *other))["computed"] == IMAGES
    assert told(ask(place, tiny, *COLOURED, *other))["computed"] == 0


def test_a_collection_that_has_grown_tells_what_is_usual(place: Path, tiny: Tiny) -> None:
    """Six images said nothing of it; they must not stand for all that came later."""
    told(ask(place, tiny, *COLOURED))
    for n in range(IMAGES, asking.FEWEST + 2):
        drawing(place / "in" / f"drawing-{n}.png", n)
    night(place / "in", place / "out", tiny, dt="2026-11-21", max_images=100)
    done = told(ask(place, tiny, *COLOURED))
    assert done["computed"] == done["images"] > asking.FEWEST
    grown = [(row["key"], row["score"]) for row in rows(place / "to")]
    shutil.rmtree(place / "to")
    told(ask(place, tiny, *COLOURED))
    assert [(row["key"], row["score"]) for row in rows(place / "to")] == grown


def test_one_stopped_half_way_goes_on(place: Path, tiny: Tiny) -> None:
    told(ask(place, tiny, *COLOURED))
    first, _ = sorted((place / "to").rglob("*.parquet"))
    whole = pq.ParquetFile(first).read().drop_columns("created_at")
    first.unlink()
    done = told(ask(place, tiny, *COLOURED))
    assert (done["written"], done["unchanged"]) == (1, 1)
    assert pq.ParquetFile(first).read().drop_columns("created_at") == whole


def test_statements_are_encoded_once_for_all_questions(place: Path, tiny: Tiny) -> None:
    two = (*COLOURED, "--question", "what colour is the boat?", "--answers", "red,blue")
    with patch.object(
        Encoder, "encode_texts", autospec=True, side_effect=Encoder.encode_texts
    ) as run:
        told(ask(place, tiny, *two))
    assert len(run.call_args_list) == 2  # whether they are read to their end, and the statements
    texts = run.call_args_list[1].args[1]
    assert len(texts) == len(set(texts))


def test_no_folder_leaves_nothing_behind(place: Path, tiny: Tiny) -> None:
    before = sorted((place / "out").rglob("*"))
    ended = clipcap("ask", place / "out", *COLOURED, "--model", tiny.encoder.model)
    assert ended.code == 0, ended.err
    assert "ask       6 images, 1 question by clip_score: 6 computed" in ended.out
    assert "what colour is the car?" in ended.out
    assert sorted((place / "out").rglob("*")) == before
    assert not (place / "to").exists()


# --- how it is asked ------------------------------------------------------------------------------


def test_answers_come_from_a_file_or_a_json_list(place: Path, tiny: Tiny) -> None:
    (place / "colours.txt").write_text("red, or pink\nblue\n\n")
    done = told(ask(place, tiny, *COLOURED[:2], "--answers", f"@{place / 'colours.txt'}"))
    assert list(done["questions"][0]["answers"]) == ["red, or pink", "blue"]
    same = told(ask(place, tiny, *COLOURED[:2], "--answers", '["red, or pink", "blue"]'))
    assert same["computed"] == 0


def test_questions_may_stand_in_a_settings_file(place: Path, tiny: Tiny) -> None:
    (place / "ask.toml").write_text(
        '[[ask.questions]]\nquestion = "what colour is the car?"\nanswers = ["red", "blue"]\n'
        '[[ask.questions]]\nquestion = "is there a cat?"\n'
    )
    done = told(ask(place, tiny, "--settings", place / "ask.toml"))
    assert [one["question"] for one in done["questions"]] == [
        "what colour is the car?", "is there a cat?",
    ]  # fmt: skip


def test_one_list_of_answers_is_for_all_that_imply_none(place: Path, tiny: Tiny) -> None:
    done = told(ask(place, tiny, "--question", "is there a car?", *COLOURED,
                    "--question", "what colour is the boat?"))  # fmt: skip
    found = [list(one["answers"]) for one in done["questions"]]
    assert found == [["yes", "no"], ["red", "blue", "green"], ["red", "blue", "green"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "There must be a question"),
        (("--question", "what colour is the car?"), "implies none"),
        (("--answers", "red"), "1 --answers stand beside 0 --question"),
        ((*COLOURED, "--answers", "a,b"), "2 --answers stand beside 1 --question"),
        (("--question", "what is this?", "--answers", "[red"), "is neither"),
        (("--question", "what is this?", "--answers", "[" * 50_000), "is neither"),
        (("--question", "what is this?", "--answers", '["red", null]'), "texts or numbers"),
        (("--question", "what is this?", "--answers", '[{"a": 1}]'), "texts or numbers"),
        (("--question", "what is this?", "--answers", "@absent.txt"), "absent.txt"),
        (("--question", "what is this?", "--answers", " , "), "all are blank"),
        (("--question", "  ", "--answers", "red"), "asks nothing"),
        (("--question", "why " + "a house " * 30, "--answers", "red"), "does not read this"),
        (("--question", "what is this?", "--answers", f"{'a b ' * 20},{'long' * 30}"), "a b a b"),
        ((*COLOURED, "--by", "logprob", "--captioner", "nobody"), "nobody"),
    ],
)
def test_what_cannot_be_asked_is_said(
    place: Path, tiny: Tiny, words: Sequence[str], said: str
) -> None:
    ended = ask(place, tiny, *words)
    assert ended.code in (2, 4)
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not list((place / "to").rglob("*.parquet"))


def test_a_captioner_of_another_encoder_is_refused(place: Path, tiny: Tiny, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", seed=1).captioner.captioner
    ended = ask(place, tiny, *COLOURED, "--by", "both", "--captioner", other)
    assert ended.code == 2
    assert "does not fit these embeddings" in ended.err


def test_a_folder_of_other_tables_is_left_alone(place: Path, tiny: Tiny) -> None:
    (place / "texts.txt").write_text("a cat\na dog\n")
    words = ("--candidates", place / "texts.txt", "--to", place / "to")
    assert clipcap("choose", place / "out", *words, "--model", tiny.encoder.model).code == 0
    before = {path: path.read_bytes() for path in (place / "to").rglob("*") if path.is_file()}
    ended = ask(place, tiny, *COLOURED)
    assert ended.code == 2
    assert "The answers for" in ended.err
    assert "must have a folder of their own" in ended.err
    assert {path: path.read_bytes() for path in before} == before


def test_an_output_without_images_is_an_error(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "out")
    ended = ask(place, tiny, *COLOURED)
    assert ended.code == 4
    assert "must be images in" in ended.err


# --- levels ---------------------------------------------------------------------------------------


def test_two_kinds_of_numbers_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    number_N = np.concatenate([rng.normal(0, 1, 200), rng.normal(6, 1, 50)])
    gain, shift, apart = asking.split(number_N, np.ones(250))
    assert apart == pytest.approx(6, abs=0.5)
    assert 2.5 < -shift / gain < 4.5
    assert asking.split(number_N[:200], np.ones(200))[2] < asking.CLEAR
    assert asking.split(number_N, np.r_[np.ones(200), np.zeros(50)])[2] < asking.CLEAR


def test_the_same_image_everywhere_is_no_error(tiny: Tiny) -> None:
    encoder = embedding.load(tiny.encoder, Speed())
    embedding_BD = np.repeat(np.eye(16, dtype=np.float32)[:1], 60, 0)
    images = Images(embedding_BD, np.ones(60, np.float32))
    questions = [understood("is the car red?"), understood("how many cats?")]
    asker = Asker(questions, ByClip(encoder, encoder.logit_scale))
    assert [level.separation for level in asker.learn(images)] == [0, 0]
    for found in asker.answered(images):
        assert np.isfinite(found.score_BA).all()
        assert (found.score_BA.sum(axis=1) <= 1 + 1e-9).all()
