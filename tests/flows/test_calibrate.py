"""`clipcap calibrate-captions`: thresholds of an output's captions, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import captioner, embedding, manifest, review, storage, tables
from clipcap.embedding import Speed
from clipcap.keys import image_id
from clipcap.stages.caption import CaptionSettings
from tests import captioned
from tests.captioners import WORDS
from tests.command import Ended, clipcap
from tests.nights import Tiny

COUNT = 240
QUICK = '{"calibrate": {"thresholds": {"draws": 200}}}'


def captions(count: int = COUNT) -> list[str]:
    """Return captions that differ."""
    words = [word for word in WORDS if word.isalpha()]
    return [f"{words[n % 29]} {words[n // 29]} on the {words[n % 7]}." for n in range(count)]


def is_bad(number: int) -> bool:
    return number % 3 == 0


def said() -> list[dict[str, Any]]:
    """Return captions, a third of them bad: with lower scores, and log-probabilities as any."""
    rng = np.random.default_rng(0)
    return [
        {
            "caption_raw": text,
            "clip_score": float(rng.normal(0.4 if is_bad(n) else 0.9, 0.1)),
            "logprob_mean": float(rng.normal(-1.0, 0.2)),
            "candidates": [],
        }
        for n, text in enumerate(captions())
    ]


@pytest.fixture
def own(tiny: Tiny, tmp_path: Path) -> Tiny:
    """The tiny models with a captioner folder of one's own."""
    folder = shutil.copytree(tiny.captioner.captioner, tmp_path / "captioner")
    return replace(tiny, captioner=CaptionSettings(captioner=str(folder)))


@pytest.fixture
def out(own: Tiny, tmp_path: Path) -> Path:
    """An output of captions that people could judge."""
    captioned.write(tmp_path / "out", own, said())
    return tmp_path / "out"


def calibrate(out: Path, own: Tiny, *more: object) -> Ended:
    """Run the command."""
    quick = out.parent / "quick.json"
    quick.write_text(QUICK)
    return clipcap(
        "calibrate-captions", out, "--captioner", own.captioner.captioner,
        "--model", own.encoder.model, "--settings", quick, *more,
    )  # fmt: skip


def measured(out: Path, own: Tiny, *more: object) -> dict[str, Any]:
    """Return what the command prints as JSON."""
    ended = calibrate(out, own, "--json", *more)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def refused(out: Path, own: Tiny, *more: object) -> str:
    """Return why the command refuses; nothing is kept."""
    ended = calibrate(out, own, *more)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err
    assert not Path(own.captioner.captioner, "review.json").exists()
    return ended.err


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


def by_name(path: Path) -> Path:
    rows = [(f"photo-{n:03d}.jpg", "bad" if is_bad(n) else "good") for n in range(COUNT)]
    return write_csv(path.with_suffix(".csv"), ("File_Name", "Label"), rows)


def by_address(path: Path) -> Path:
    text = "".join(f"{captioned.uri(n)}\t{0 if is_bad(n) else 1}\n" for n in range(COUNT))
    path.write_text(f"source_uri\tgood\n{text}")
    return path


def by_key(path: Path) -> Path:
    columns = {"key": [f"photo-{n:03d}" for n in range(COUNT)]}
    pq.write_table(pa.table(columns | {"good": [not is_bad(n) for n in range(COUNT)]}), path)
    return path


def by_id(path: Path) -> Path:
    rows = [
        {"image_id": image_id(captioned.uri(n)), "verdict": "wrong" if is_bad(n) else "ok"}
        for n in range(COUNT)
    ]
    path.write_text(json.dumps(rows))
    return path


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [by_name, by_address, by_key, by_id])
def test_labels_of_any_form_give_the_same_threshold(
    out: Path, own: Tiny, make: Callable[[Path], Path]
) -> None:
    found = measured(out, own, "--labels", make(out.parent / "labels"), "--dry-run")
    (one,) = found["card"]["thresholds"]
    assert (one["measure"], one["captions"], one["wrong"]) == ("clip_score", COUNT, COUNT // 3)
    assert 0.6 < one["threshold"]["value"] < 0.85
    assert one["precision"]["value"] >= 0.8
    assert one["recall"]["value"] > 0.95
    assert one["precision"]["low"] <= one["precision"]["value"]
    assert "must be bad" in found["not_measured"]["logprob"]
    assert "20 good and 20 bad" in found["not_measured"]["margin"]
    assert found["kept_in"] is None
    assert found["unused_labels"] == 0
    assert (found["bad"], found["captions"]) == (COUNT // 3, COUNT)
    assert found["doubted_bad"] == round(one["recall"]["value"] * COUNT // 3)
    assert found["doubted"] == round(one["flagged"] * COUNT)


def test_what_is_kept_judges_the_captions_without_a_model(
    out: Path, own: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = calibrate(
        out, own, "--labels", by_name(out.parent / "labels"), "--suppress", "low_score"
    )
    assert told.code == 0, told.err
    assert "clip_score" in told.out
    assert f"clipcap caption {out}" in told.out
    card = review.read_card(own.captioner.captioner)
    assert card is not None
    assert (card.captioner_id, card.min_words, len(card.labels_sha256 or "")) == ("tiny", 3, 64)
    monkeypatch.setattr(captioner, "load", None)
    words = ("--captioner", own.captioner.captioner, "--model", own.encoder.model, "--no-server")
    assert clipcap("caption", out, *words).code == 0
    objects = manifest.objects(storage.canonical(str(out)), "captions")
    rows = [row for one in objects for row in tables.read(one.url).to_pylist()]
    low = {row["key"] for row in rows if row["review_reasons"] == ["low_score"]}
    assert low == {row["key"] for row in rows if row["status"] == "suppressed"}
    assert sum(is_bad(int(key[-3:])) for key in low) / len(low) >= 0.8
    assert measured(out, own, "--labels", by_name(out.parent / "labels"))["suppressed"] == 0


def test_labels_of_other_captions_do_not_count(out: Path, own: Tiny) -> None:
    rows = [
        (
            f"photo-{n:03d}",
            text if n % 10 else "another caption",
            "tiny",
            "bad" if is_bad(n) else "",
        )
        for n, text in enumerate(captions())
    ]
    rows += [(f"photo-{n:03d}", "", "tiny", "good") for n in range(COUNT) if not is_bad(n)]
    rows += [("photo-001", "", "somebody else", "bad"), ("photo-999", "", "tiny", "good")]
    columns = ("key", "caption", "captioner_id", "label")
    found = measured(out, own, "--labels", write_csv(out.parent / "l.csv", columns, rows))
    stale = sum(is_bad(n) and n % 10 == 0 for n in range(COUNT))
    assert found["unused_labels"] == stale + 2
    assert found["captions"] == COUNT - stale


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,label\nphoto-001,maybe\n", "must be good or bad"),
        ("key,label\nphoto-001,good\nphoto-001.jpg,bad\n", "both good and bad"),
        ("key,opinion\nphoto-001,good\n", "one of labels .* the columns are: key, opinion"),
        ("name_of_it,label\nphoto-001,good\n", "names the image"),
        ("key,label\nphoto-001,good\n", "20 good and 20 bad"),
        ("key,label\nphoto-001,\n", "20 good and 20 bad"),
        ("", "the columns are: none"),
        ("[1, 2]", "JSON list of objects"),
        ("key,label\ncaf\udce9,good\n", "in UTF-8"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    out: Path, own: Tiny, text: str, message: str
) -> None:
    path = out.parent / "labels.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused(out, own, "--labels", path).replace("\n", " "))


def test_a_file_of_labels_that_is_not_there_is_named(out: Path, own: Tiny) -> None:
    ended = calibrate(out, own, "--labels", out.parent / "no.csv")
    assert ended.code == 4
    assert "no.csv" in ended.err


# --- without labels -------------------------------------------------------------------------------


def seen(own: Tiny, tmp_path: Path, *, shift: int) -> Path:
    """Write an output whose images look as the captions of other images read, `shift` further."""
    texts = captions()
    text_ND = embedding.load(own.encoder, Speed()).encode_texts(texts).numpy()
    noise_ND = np.random.default_rng(1).normal(scale=0.02, size=text_ND.shape)
    image_ND = np.roll(text_ND - text_ND.mean(0), shift, 0) + noise_ND
    image_ND /= np.linalg.norm(image_ND, axis=1, keepdims=True)
    score_N = 2.5 * np.maximum((image_ND * text_ND).sum(1), 0)
    rows = [row | {"clip_score": float(score_N[n])} for n, row in enumerate(said())]
    captioned.write(tmp_path / "seen", own, rows, embedding_ND=image_ND.astype(np.float32))
    return tmp_path / "seen"


def test_captions_of_other_images_say_which_score_is_low(own: Tiny, tmp_path: Path) -> None:
    found = measured(seen(own, tmp_path, shift=0), own)
    score, logprob = found["card"]["thresholds"]
    assert (score["measure"], score["method"]) == ("clip_score", "other_images")
    assert score["wrong"] == 8 * COUNT
    assert score["auc"] > 0.9
    assert (logprob["measure"], logprob["method"]) == ("logprob", "quantile")
    assert logprob["flagged"] == pytest.approx(0.05, abs=0.01)
    assert found["kept_in"] == storage.canonical(f"{own.captioner.captioner}/review.json")
    assert found["reasons"]["low_logprob"] == round(logprob["flagged"] * COUNT)


def test_captions_that_fit_other_images_as_well_are_refused(own: Tiny, tmp_path: Path) -> None:
    out = seen(own, tmp_path, shift=5)
    assert "no CLIPScore tells good ones from wrong ones" in refused(out, own)


def test_too_few_captions_are_refused(own: Tiny, tmp_path: Path) -> None:
    captioned.write(tmp_path / "few", own, said()[:50])
    assert "there must be 200 different captions" in refused(tmp_path / "few", own)
    captioned.write(tmp_path / "none", own, [row | {"caption_raw": " "} for row in said()])
    assert "captions by tiny" in refused(tmp_path / "none", own)


def test_quantiles_are_of_what_was_asked_for(out: Path, own: Tiny) -> None:
    quantiles = ("--quantile", "clip_score", "--quantile", "margin")
    assert "For a margin" in refused(out, own, *quantiles)  # no caption has another candidate
    only = ("--measure", "clip_score")
    (one,) = measured(out, own, *quantiles[:2], *only, "--dry-run")["card"]["thresholds"]
    assert (one["measure"], one["method"]) == ("clip_score", "quantile")
    assert "as a --quantile only" in refused(out, own, "--measure", "margin")


def test_a_sample_looks_at_no_more_captions_than_asked_for(out: Path, own: Tiny) -> None:
    found = measured(out, own, "--quantile", "clip_score", "--sample", 210, "--dry-run")
    assert found["captions"] == 210


def test_scores_that_are_no_numbers_are_refused(own: Tiny, tmp_path: Path) -> None:
    rows = said()
    rows[3]["logprob_mean"] = float("nan")
    captioned.write(tmp_path / "odd", own, rows)
    assert "1 of 240 have none" in refused(tmp_path / "odd", own, "--quantile", "logprob")


def test_captions_of_another_captioner_and_none_are_refused(
    out: Path, own: Tiny, tmp_path: Path
) -> None:
    card = Path(own.captioner.captioner, "captioner.json")
    card.write_text(card.read_text().replace("knows nothing", "knows a bit"))
    said_of = refused(out, own, "--quantile", "clip_score")
    assert "makes them anew" in said_of
    assert "(" in said_of
    card.write_text(card.read_text().replace('"tiny"', '"tiny-2"'))
    assert "must be captions by tiny-2" in refused(out, own)
    assert "clipcap caption" in refused(tmp_path / "nothing", own)


def test_the_bundled_captioner_is_not_written_into(tmp_path: Path) -> None:
    bundled = Tiny(embedding.EmbedSettings(), CaptionSettings(), "")
    ref = embedding.reference(bundled.encoder)
    vector_ND = np.random.default_rng(0).normal(size=(COUNT, ref.dim)).astype(np.float32)
    captioned.write(tmp_path / "out", bundled, said(), embedding_ND=vector_ND)
    ended = clipcap("calibrate-captions", tmp_path / "out", "--quantile", "clip_score")
    assert ended.code == 0, ended.err
    assert "[caption.review]\nmin_clip_score = 0." in ended.out
    assert "part of the program" in ended.out
    shown = ended.out.partition("[caption.review]")
    (tmp_path / "s.toml").write_text("".join(shown[1:]))
    words = ("caption", tmp_path / "out", "--settings", tmp_path / "s.toml", "--no-server")
    assert clipcap(*words).code == 0


def test_the_promoted_captioner_may_be_measured(out: Path, own: Tiny) -> None:
    folder = own.captioner.captioner
    promoted = clipcap(
        "models", "promote", out, folder, "--force", "it is the only", "--model", own.encoder.model
    )
    assert promoted.code == 0, promoted.err
    again = replace(own, captioner=CaptionSettings(captioner="promoted"))
    done = measured(out, again, "--measure", "logprob")
    assert Path(folder, "review.json").exists()
    assert storage.local_path(done["kept_in"]) == Path(folder, "review.json")
