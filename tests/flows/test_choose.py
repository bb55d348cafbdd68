"""`clipcap choose`: what fits each image best among texts that were given, and nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipcap import captioner as captioners
from clipcap import cards, embedding, likelihood, review, tables
from clipcap.embedding import Speed
from clipcap.encoders.openclip import Encoder
from clipcap.metrics.clipscore import clip_score
from clipcap.review import ReviewCard
from tests.command import Ended, clipcap
from tests.nights import Tiny, draw, make_tiny, night

TEXTS = ("a red ball on the grass", "two cats in the snow", "a dog", "one house at night.")
IMAGES = 6


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of six images in two shards."""
    folder = tmp_path_factory.mktemp("choose")
    for n in range(IMAGES):
        draw(folder / "in" / f"drawing-{n}.png", n)
    night(folder / "in", folder / "out", tiny)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of source and output that may be changed, beside a file of candidates."""
    shutil.copytree(finished, tmp_path / "place")
    (tmp_path / "place" / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return tmp_path / "place"


def choose(place: Path, tiny: Tiny, *more: object, file: str = "texts.txt") -> Ended:
    words = ["choose", place / "out", "--candidates", place / file, "--to", place / "to"]
    words += ["--model", tiny.encoder.model, "--captioner", tiny.captioner.captioner, "--json"]
    return clipcap(*words, *more)


def told(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def rows(place: Path) -> list[dict[str, Any]]:
    """Return what was written, by image and rank."""
    parts = [pq.ParquetFile(path).read() for path in (place / "to").rglob("*.parquet")]
    order = [("key", "ascending"), ("rank", "ascending")]
    found: list[dict[str, Any]] = pa.concat_tables(parts).sort_by(order).to_pylist()
    return found


def vectors(place: Path) -> dict[str, tuple[np.ndarray[Any, Any], float]]:
    """Return embedding and norm of each image."""
    found = {}
    for path in (place / "out" / "embeddings").rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        norms = table["embedding_norm"].to_pylist()
        for key, vector, norm in zip(
            table["key"].to_pylist(), tables.vectors(table), norms, strict=True
        ):
            found[key] = (vector, norm)
    return found


def test_by_clip_score_the_nearest_text_is_the_first(place: Path, tiny: Tiny) -> None:
    done = told(choose(place, tiny))
    assert (done["images"], done["computed"], done["written"]) == (IMAGES, IMAGES, 2)
    encoder = embedding.load(tiny.encoder, Speed())
    text_CD = encoder.encode_texts(list(TEXTS)).numpy()
    found = rows(place)
    assert len(found) == IMAGES * len(TEXTS)
    for key, (vector_D, _) in vectors(place).items():
        image_CD = np.repeat(vector_D[None], len(TEXTS), 0)
        wanted_C = clip_score(image_CD, text_CD)
        cosine_C = torch.cosine_similarity(torch.tensor(image_CD), torch.tensor(text_CD)).numpy()
        mine = [row for row in found if row["key"] == key]
        assert [row["rank"] for row in mine] == [1, 2, 3, 4]
        order = [row["candidate_index"] for row in mine]
        assert order == np.argsort(-cosine_C).tolist()
        assert [row["candidate"] for row in mine] == [TEXTS[index] for index in order]
        np.testing.assert_allclose([row["clip_score"] for row in mine], wanted_C[order], atol=1e-6)
        score_C = softmax(encoder.logit_scale * cosine_C)[order]
        np.testing.assert_allclose([row["score"] for row in mine], score_C, atol=1e-4)
        assert mine[0]["margin"] == pytest.approx(mine[0]["score"] - mine[1]["score"], abs=1e-6)
        assert mine[3]["margin"] is None
        assert mine[0]["logprob_sum"] is None
        assert mine[0]["captioner_id"] is None
    assert sum(done["chosen"].values()) == IMAGES
    firsts = [row["candidate"] for row in found if row["rank"] == 1]
    assert done["chosen"] == {text: firsts.count(text) for text in set(firsts)}


def likelihoods(place: Path, tiny: Tiny, texts: tuple[str, ...]) -> dict[str, Any]:
    """Return log p of each text for each image, by key."""
    captioner = captioners.load(tiny.captioner.captioner)
    tokens = likelihood.tokenised(captioner, texts)
    return {
        key: likelihood.of_images(
            captioner, torch.tensor(vector)[None], torch.tensor([norm]), [tokens]
        )[0].sum_C
        for key, (vector, norm) in vectors(place).items()
    }


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    power = np.exp(x - x.max())
    return np.asarray(power / power.sum())


@pytest.mark.parametrize("typical", [0, IMAGES])
def test_by_logprob_the_text_that_the_image_makes_likelier_is_the_first(
    place: Path, tiny: Tiny, typical: int
) -> None:
    told(choose(place, tiny, "--by", "logprob", "--typical", typical))
    sums = likelihoods(place, tiny, TEXTS)
    usual = np.log(np.mean(np.exp(np.stack(list(sums.values()))), axis=0))
    for key, sum_C in sums.items():
        mine = sorted(
            (row for row in rows(place) if row["key"] == key),
            key=lambda row: int(row["candidate_index"]),
        )
        np.testing.assert_allclose([row["logprob_sum"] for row in mine], sum_C, atol=1e-4)
        counts = [row["token_count"] for row in mine]
        assert counts == [7, 6, 3, 5]  # with the stop; the last one has its own
        np.testing.assert_allclose(
            [row["logprob_mean"] for row in mine], sum_C / np.array(counts), atol=1e-5
        )
        evidence_C = sum_C - usual if typical else sum_C
        np.testing.assert_allclose([row["score"] for row in mine], softmax(evidence_C), atol=1e-4)
        said = [row["logprob_typical"] for row in mine]
        if typical:
            np.testing.assert_allclose(said, usual, atol=1e-4)
        else:
            assert said == [None] * 4
        best = min(mine, key=lambda row: int(row["rank"]))
        assert best["candidate_index"] == int(np.argmax(evidence_C))
        assert best["clip_score"] is None


def test_with_both_the_probabilities_are_multiplied(place: Path, tiny: Tiny) -> None:
    scores = {}
    for by in ("clip_score", "logprob", "both"):
        told(choose(place, tiny, "--by", by, "--typical", 3))
        scores[by] = {(row["key"], row["candidate"]): row["score"] for row in rows(place)}
    for key in vectors(place):
        product = np.array(
            [scores["clip_score"][key, text] * scores["logprob"][key, text] for text in TEXTS]
        )
        found = [scores["both"][key, text] for text in TEXTS]
        np.testing.assert_allclose(found, product / product.sum(), rtol=1e-3)


def test_only_what_is_new_is_computed_and_what_is_gone_is_removed(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "out")
    night(place / "in", place / "out", tiny)
    told(choose(place, tiny, "--by", "both"))
    before = {path: path.read_bytes() for path in (place / "to").rglob("*.parquet")}
    with (
        patch.object(Encoder, "encode_texts", side_effect=AssertionError),
        patch.object(captioners, "load", side_effect=AssertionError),
    ):
        done = told(choose(place, tiny, "--by", "both"))
    assert (done["images"], done["computed"], done["unchanged"]) == (IMAGES, 0, 2)
    assert {path: path.read_bytes() for path in before} == before
    old = {row["key"]: row for row in rows(place) if row["rank"] == 1}
    (place / "in" / "drawing-1.png").unlink()
    for name in ("drawing-4.png", "drawing-5.png"):  # a whole shard
        (place / "in" / name).unlink()
    draw(place / "in" / "drawing-late.png", 9)
    night(place / "in", place / "out", tiny, dt="2026-11-21")
    done = told(choose(place, tiny, "--by", "both"))
    assert (done["images"], done["computed"], done["written"]) == (4, 1, 2)
    assert done["removed"] == 1
    new = {row["key"]: row for row in rows(place) if row["rank"] == 1}
    assert len(new) == 4
    assert len(set(new) - set(old)) == 1
    assert all(new[key] == old[key] for key in set(new) & set(old))


@pytest.mark.parametrize(
    "other",
    [("--by", "clip_score"), ("--top-k", "2"), ("--typical", "2"), ("--ends", "false")],
    ids=lambda other: other[0],
)
def test_other_settings_choose_again(place: Path, tiny: Tiny, other: tuple[str, str]) -> None:
    told(choose(place, tiny, "--by", "logprob"))
    assert told(choose(place, tiny, "--by", "logprob", *other))["computed"] == IMAGES
    assert told(choose(place, tiny, "--by", "logprob", *other))["computed"] == 0


def test_one_stopped_half_way_goes_on(place: Path, tiny: Tiny) -> None:
    told(choose(place, tiny))
    first, _ = sorted((place / "to").rglob("*.parquet"))
    whole = first.read_bytes()
    first.unlink()
    done = told(choose(place, tiny))
    assert (done["written"], done["unchanged"]) == (1, 1)
    columns = [name for name in pq.read_schema(first).names if name != "created_at"]
    again = pq.ParquetFile(first).read(columns)
    assert again == pq.read_table(pa.BufferReader(whole), columns=columns)


def test_each_image_may_have_its_own_candidates(place: Path, tiny: Tiny) -> None:
    own = {
        "drawing-0.png": ["a cat", "a dog", "a cat"],
        "drawing-3.png": ["a red ball"],
        "nobody.png": ["a boat"],
        "drawing-5.png": ["", "a dog"],
    }
    (place / "own.json").write_text(json.dumps(own))
    done = told(choose(place, tiny, "--by", "both", file="own.json"))
    assert (done["images"], done["without"]) == (3, 3)
    assert (done["unmatched"], done["blank"], done["chosen"]) == (1, 1, {})
    found = {(row["key"], row["candidate"]): row for row in rows(place)}
    assert sorted(text for _, text in found) == ["a cat", "a dog", "a dog", "a red ball"]
    (place / "some.txt").write_text("a cat\na dog\n")
    told(choose(place, tiny, "--by", "both", file="some.txt"))
    for row in rows(place):
        mine = found.get((row["key"], row["candidate"]))
        if row["key"].startswith("drawing-0"):
            assert mine is not None
            assert mine["score"] == pytest.approx(row["score"], abs=1e-5)
    own["drawing-3.png"].append("a boat")
    (place / "own.json").write_text(json.dumps(own))
    told(choose(place, tiny, "--by", "both", file="own.json"))
    own["drawing-3.png"].append("a car")
    (place / "own.json").write_text(json.dumps(own))
    assert told(choose(place, tiny, "--by", "both", file="own.json"))["computed"] == 1


def test_captions_as_flickr_writes_them_are_candidates_of_their_images(
    place: Path, tiny: Tiny
) -> None:
    (place / "token.txt").write_text("drawing-0.png#0\ta cat\ndrawing-0.png#1\ta dog\n")
    done = told(choose(place, tiny, file="token.txt"))
    assert (done["candidates"], done["images"], done["without"]) == (None, 1, IMAGES - 1)
    assert {row["candidate"] for row in rows(place)} == {"a cat", "a dog"}


def test_candidates_are_encoded_once_for_all_images(place: Path, tiny: Tiny) -> None:
    with patch.object(
        Encoder, "encode_texts", autospec=True, side_effect=Encoder.encode_texts
    ) as run:
        told(choose(place, tiny))
    assert [list(call.args[1]) for call in run.call_args_list] == [list(TEXTS)]


def test_a_person_is_told_what_was_chosen(place: Path, tiny: Tiny) -> None:
    hostile = "[bold]a cat[/bold]"
    (place / "texts.txt").write_text(f"{hostile}\n")
    words = ["--candidates", place / "texts.txt", "--to", place / "to"]
    ended = clipcap("choose", place / "out", *words, "--model", tiny.encoder.model)
    assert ended.code == 0, ended.err
    assert "6 images among 1 candidates by clip_score: 6 computed, 2 tables written" in ended.out
    assert hostile in ended.out
    assert str(place / "to") in ended.out


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("texts.txt", b"\n \n\t\n", "must hold candidates"),
        ("texts.txt", b"", "must hold candidates"),
        ("texts.json", b"[]", "must hold candidates"),
        ("texts.txt", "a caf\xe9".encode("latin-1"), "must be UTF-8, but byte 5"),
        ("texts.csv", b"one,two\n1,2\n", "the columns are one, two"),
        ("own.json", b'{"nobody.png": ["a cat"]}', "none is"),
        ("texts.json", b'["a cat", 3]', "must be COCO's JSON"),
        ("absent.txt", None, "absent.txt"),
    ],
)
def test_a_file_without_candidates_is_refused(
    place: Path, tiny: Tiny, name: str, data: bytes | None, said: str
) -> None:
    if data is not None:
        (place / name).write_bytes(data)
    ended = choose(place, tiny, file=name)
    assert ended.code in (2, 4)
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not (place / "to").exists()


def test_blank_and_repeated_candidates_are_left_out_and_counted(place: Path, tiny: Tiny) -> None:
    (place / "texts.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n a cat \r\na dog\r\n")
    ended = choose(place, tiny)
    done = told(ended)
    assert (done["candidates"], done["blank"], done["repeated"]) == (2, 1, 1)
    assert "1 candidates are blank, 1 stand twice; 2 are left" in ended.err
    (place / "texts.json").write_text(json.dumps(["a cat", "", "a cat", "a dog"]))
    assert told(choose(place, tiny, file="texts.json"))["computed"] == 0


def test_a_candidate_longer_than_the_language_model_reads_is_named(place: Path, tiny: Tiny) -> None:
    (place / "texts.txt").write_text("a cat\nthe sea" + " and a dog" * 20 + "\n")
    ended = choose(place, tiny, "--by", "logprob")
    assert ended.code == 2
    assert "must have at most 45 tokens" in ended.err
    assert "'the sea and a dog" in ended.err
    assert not list((place / "to").rglob("*.parquet"))


def test_a_captioner_of_another_encoder_is_refused(place: Path, tiny: Tiny, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", seed=1)
    ended = choose(place, tiny, "--by", "logprob", "--captioner", other.captioner.captioner)
    assert ended.code == 2
    assert "does not fit these embeddings" in ended.err
    assert not (place / "to").exists()


def test_a_folder_of_other_tables_is_left_alone(place: Path, tiny: Tiny) -> None:
    embeddings = next((place / "out" / "embeddings").glob("model=*"))
    before = {path: path.read_bytes() for path in embeddings.rglob("*.parquet")}
    for by in ("clip_score", "logprob"):
        ended = choose(place, tiny, "--by", by, "--to", embeddings)
        assert ended.code == 2
        assert "must have a folder of their own" in ended.err
    assert {path: path.read_bytes() for path in embeddings.rglob("*") if path.is_file()} == before


def test_choices_for_another_output_are_left_alone(place: Path, tiny: Tiny) -> None:
    told(choose(place, tiny))
    before = rows(place)
    shutil.copytree(place / "out", place / "other")
    ended = clipcap(
        *("choose", place / "other", "--candidates", place / "texts.txt", "--to", place / "to"),
        *("--model", tiny.encoder.model),
    )
    assert ended.code == 2
    assert "must have a folder of their own" in ended.err
    assert rows(place) == before


def test_an_output_without_images_is_an_error(place: Path, tiny: Tiny) -> None:
    shutil.rmtree(place / "out")
    ended = choose(place, tiny)
    assert ended.code == 4
    assert "must be images in" in ended.err


def test_thresholds_of_captions_found_otherwise_do_not_stand_in_the_way(
    place: Path, tiny: Tiny
) -> None:
    folder = shutil.copytree(tiny.captioner.captioner, place / "captioner")
    card = cards.read_card(str(folder))
    measured = ReviewCard(
        captioner_id=card.captioner_id, captioner_sha256="0" * 64, decode=card.decode,
        rank_by="clip_score", model_id=card.encoder.model_id, measured_on="2026-11-20",
        producer="a test", thresholds=(),
    )  # fmt: skip
    review.write_card(str(folder), measured)
    done = told(choose(place, tiny, "--by", "logprob", "--typical", 0, "--captioner", folder))
    assert done["computed"] == IMAGES


def test_the_promoted_captioner_may_be_asked(place: Path, tiny: Tiny) -> None:
    given = ("--by", "logprob", "--typical", 0, "--captioner", "promoted")
    refused = choose(place, tiny, *given)
    assert refused.code == 2
    assert "none was promoted yet" in refused.err
    promoted = clipcap(
        "models", "promote", place / "out", tiny.captioner.captioner, "--force", "it is the only",
        "--model", tiny.encoder.model,
    )  # fmt: skip
    assert promoted.code == 0, promoted.err
    assert told(choose(place, tiny, *given))["computed"] == IMAGES


def test_what_was_taken_down_is_typical_of_nothing(place: Path, tiny: Tiny) -> None:
    words = ("--by", "logprob", "--typical", IMAGES)
    told(choose(place, tiny, *words))
    gone = rows(place)[0]["key"]
    assert clipcap("forget", place / "out", gone, "--yes").code == 0
    done = told(choose(place, tiny, *words))
    assert (done["images"], done["computed"]) == (IMAGES - 1, IMAGES - 1)
    kept = pq.ParquetFile(place / "to" / "_typical_images").read()["key"].to_pylist()
    assert sorted(kept) == sorted({row["key"] for row in rows(place)})
    assert gone not in kept
    assert told(choose(place, tiny, *words))["computed"] == 0


def test_a_folder_within_the_output_is_taken_down_with_it(place: Path, tiny: Tiny) -> None:
    kept = place / "out" / "answers"
    words = ("--by", "logprob", "--typical", IMAGES, "--to", kept)
    told(choose(place, tiny, *words))
    gone = sorted(vectors(place))[IMAGES // 2]
    ended = clipcap("forget", place / "out", gone, "--yes")
    assert ended.code == 0, ended.err
    assert not (kept / "_typical_images").exists()
    assert told(choose(place, tiny, *words))["computed"] == IMAGES - 1
    assert clipcap("forget", place / "out", "--yes").code == 0
