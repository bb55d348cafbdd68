"""`clipcap labels evaluate`: figures, page and score file of an output; what it cannot judge."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import storage, tables
from clipcap.encoders import openclip
from clipcap.labels import bank
from clipcap.labels.bank import Bank
from clipcap.labels.sets import LabelSet
from tests.command import clipcap
from tests.nights import Tiny, draw, make_tiny, night
from tests.outputs import change

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> [bold]{{ 7 * 7 }}"
IMAGES = 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of eight images in three shards; the odd ones lie in a folder `cat`."""
    folder = tmp_path_factory.mktemp("labels")
    for n in range(IMAGES):
        draw(folder / "in" / ("cat" if n % 2 else "all sorts") / f"{n}.png", n)
    night(folder / "in", folder / "out", tiny, max_images=3)
    return folder / "out"


@pytest.fixture
def label_set(tmp_path: Path) -> str:
    """Two pets, one of a hostile name."""
    found = {"names": ["cat", HOSTILE], "threshold": 0.5}
    (tmp_path / "pets.json").write_text(json.dumps(found))
    return str(tmp_path / "pets.json")


@pytest.fixture
def truth(tmp_path: Path) -> str:
    """Half cats, a quarter of the hostile name, a quarter none of these."""
    rows = [
        {"image": f"{n}.png", "label": "cat" if n % 2 else HOSTILE if n % 4 else ""}
        for n in range(IMAGES)
    ]
    (tmp_path / "truth.json").write_text(json.dumps([*rows, {"image": "nine", "label": "cat"}]))
    return str(tmp_path / "truth.json")


def evaluated(out: Path, label_set: str, tiny: Tiny, *more: object) -> dict[str, Any]:
    """Return what `labels evaluate --json` prints."""
    model = ("--model", tiny.encoder.model)
    ended = clipcap("labels", "evaluate", out, label_set, *model, "--json", *more)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def refused(*words: object) -> str:
    """Return what a command says that ends with 2."""
    ended = clipcap("labels", "evaluate", *words)
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err
    return ended.err


def embeddings(out: Path) -> dict[str, Any]:
    """Return each embedding by the name of its file."""
    names = {
        row["image_id"]: row["source_uri"].rpartition("/")[2]
        for path in sorted((out / "manifest").rglob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    }
    return {
        names[row["image_id"]]: np.array(row["embedding"], np.float32)
        for path in sorted((out / "embeddings").rglob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    }


def test_figures_are_of_the_stored_embeddings_and_no_image_is_touched(
    finished: Path, label_set: str, truth: str, tiny: Tiny, tmp_path: Path
) -> None:
    with (
        patch.object(openclip.Encoder, "encode_pixels", side_effect=AssertionError("embedded")),
        patch.object(storage, "read_range", side_effect=reads_no_tar),
    ):
        found = evaluated(finished, label_set, tiny, "--truth", truth, "--scores",
                          tmp_path / "scores.parquet")  # fmt: skip
    table = pq.read_table(tmp_path / "scores.parquet")
    rows = {row["source_uri"].rpartition("/")[2]: row for row in table.to_pylist()}
    assert len(rows) == IMAGES
    for n in range(IMAGES):
        row = rows[f"{n}.png"]
        assert row["truth"] == (["cat"] if n % 2 else [HOSTILE] if n % 4 else [])
        assert row["right"] == (row["truth"] == [row["label"]])
        assert row["scores"] == sorted(row["scores"], reverse=True)
    told = {one["metric"]: one for one in found["figures"]}
    right = sum(row["right"] for row in rows.values())
    assert (told["top1"]["share"]["hits"], told["top1"]["share"]["among"]) == (right, 6)
    accepted = [row for row in rows.values() if row["accepted_label"] is not None]
    assert told["coverage"]["share"]["hits"] == len(accepted)
    wrong = sum(row["wrong_label"] is not None for row in rows.values())
    assert told["precision"]["share"]["hits"] == len(accepted) - wrong
    assert (found["images"], found["none_of_these"], found["missing_images"]) == (8, 2, 1)
    assert found["signature"] == tables.metadata(table)["signature"]
    assert re.search(r"labels:pets@\w{12}\|model:.*@\w{12}\|truth:\w{12}\|images:8\|",
                     found["signature"])  # fmt: skip


_READ_RANGE = storage.read_range


def reads_no_tar(url: str, start: int, length: int | None) -> bytes:
    """Read a part of a table; of a tar nothing."""
    assert not url.endswith(".tar")
    return _READ_RANGE(url, start, length)


def test_the_page_shows_pictures_and_hostile_names_as_text(
    finished: Path, label_set: str, truth: str, tiny: Tiny, tmp_path: Path
) -> None:
    evaluated(finished, label_set, tiny, "--truth", truth, "--page", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "Given: the best label, whatever its score, of images that have a label." in page
    assert page.count("data:image/jpeg;base64,") >= 2
    assert page.count("<svg") == 2
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_folders_may_be_the_truth_and_people_can_read_what_is_told(
    finished: Path, tiny: Tiny
) -> None:
    words = ("labels", "evaluate", finished, tiny.label_set, "--model", tiny.encoder.model)
    ended = clipcap(*words, "--truth", "folder")
    assert ended.code == 0, ended.err
    assert re.search(r"top1 +[01]\.\d{4} +[01]\.\d+ to [01]\.\d+ +\d / 4", ended.out)
    assert "4 images judged, 0 of them none of these; left out: 0 not embedded, 4 with" in ended.out
    assert "none_recall" in ended.out
    assert "no such image" in ended.out
    assert "lacks 1 labels ('all sorts' ...)" in ended.err


def test_a_fitted_set_knows_its_embeddings_and_ranks_as_it_says(
    finished: Path, truth: str, tmp_path: Path, tiny: Tiny
) -> None:
    """A bank whose vectors are images themselves; the name of the model need not be given."""
    by_name = embeddings(finished)
    footer = tables.footer(str(next((finished / "embeddings").rglob("*.parquet"))))[0]
    made = Bank(
        label_set=LabelSet.model_validate({"name": "own", "names": ["cat", HOSTILE]}),
        vector_CD=np.stack([by_name["1.png"], by_name["2.png"]]),
        gain_C=np.full(2, 20, np.float32),
        shift_C=np.zeros(2, np.float32),
        threshold_N=np.full(2, np.nan, np.float32),
        activation="softmax",
        model_id=footer["model_id"],
        model_sha256=footer["model_sha256"],
        fit="{}",
    )
    (tmp_path / "own.parquet").write_bytes(bank.to_bytes(made))
    words = ("labels", "evaluate", finished, tmp_path / "own.parquet", "--truth", truth, "--json")
    ended = clipcap(*words)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["images"] == IMAGES
    assert {one["label"] for one in found["labels"]} == {"cat", HOSTILE}
    assert found["model_id"] == footer["model_id"]


def test_what_is_accepted_is_what_the_label_stage_accepted(
    finished: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """Also of a set whose names are no label of the truth: every image is none of these."""
    rows = [{"image": f"{n}.png", "label": ""} for n in range(IMAGES)]
    (tmp_path / "none.json").write_text(json.dumps(rows))
    words = ("--truth", tmp_path / "none.json", "--scores", tmp_path / "a.parquet")
    evaluated(finished, tiny.label_set, tiny, *words)
    stored = {
        row["image_id"]: row["label"]
        for path in sorted((finished / "labels" / "labelset=pets").rglob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
        if row["accepted"]
    }
    found = {
        row["image_id"]: row["accepted_label"]
        for row in pq.read_table(tmp_path / "a.parquet").to_pylist()
        if row["accepted_label"] is not None
    }
    assert found == stored


def test_embeddings_of_other_weights_are_refused(
    finished: Path, truth: str, label_set: str, tiny: Tiny, tmp_path: Path
) -> None:
    other = make_tiny(tmp_path / "other", seed=5)
    with pytest.raises(AssertionError, match="none is embedded by this model"):
        evaluated(finished, label_set, other, "--truth", truth)


def test_images_that_changed_or_have_no_embedding_are_counted(
    finished: Path, label_set: str, truth: str, tiny: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    first, second, *_ = sorted((tmp_path / "out" / "embeddings").rglob("*.parquet"))
    gone = pq.ParquetFile(first).metadata.num_rows
    first.unlink()
    kept = pq.ParquetFile(second).read()["image_id"][0].as_py()

    def outdate(row: dict[str, Any]) -> None:
        if row["image_id"] == kept:
            row["content_sha256"] = "0" * 64

    change(second, outdate)
    found = evaluated(tmp_path / "out", label_set, tiny, "--truth", truth)
    assert (found["images"], found["not_embedded"]) == (IMAGES - gone - 1, gone + 1)


def test_what_cannot_be_judged_is_said(
    finished: Path, label_set: str, truth: str, tiny: Tiny, tmp_path: Path
) -> None:
    model = ("--model", tiny.encoder.model)
    assert "--truth FILE" in refused(finished, label_set, *model)
    (tmp_path / "bad.csv").write_text("picture,kind\n1.png,cat\n")
    said = refused(finished, label_set, *model, "--truth", tmp_path / "bad.csv")
    assert "the columns are picture, kind" in said
    assert "image,label" in said
    (tmp_path / "bad.csv").write_text("image,label\n1.png,cats\n")
    said = refused(finished, label_set, *model, "--truth", tmp_path / "bad.csv")
    assert "Did you mean 'cat'?" in said
    assert "there is no such setting" not in said
    assert "No label set 'dogz'" in refused(finished, "dogz", "--truth", truth)


@pytest.mark.parametrize("option", ["--scores", "--page"])
def test_nothing_is_written_over_the_truth(
    finished: Path, label_set: str, truth: str, option: str
) -> None:
    before = Path(truth).read_bytes()
    assert "another one than the truth" in refused(
        finished, label_set, "--truth", truth, option, f"file://{truth}"
    )
    for words in (("fit", finished, label_set), ("learn", finished)):
        kept = Path(truth).with_name("truth.parquet")
        kept.write_bytes(before)
        ended = clipcap("labels", *words, "--truth", kept, "--to", kept)
        assert (ended.code, kept.read_bytes()) == (2, before)
        assert "another one than the truth" in ended.err
    assert Path(truth).read_bytes() == before


def test_numbers_that_are_none_are_refused(
    finished: Path, label_set: str, truth: str, tiny: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    path = next((tmp_path / "out" / "embeddings").rglob("*.parquet"))
    change(path, lambda row: row.update(embedding=[float("nan")] * len(row["embedding"])))
    model = ("--model", tiny.encoder.model)
    ended = clipcap("labels", "evaluate", tmp_path / "out", label_set, *model, "--truth", truth)
    assert ended.code == 4
    assert "must be numbers, but some are not" in ended.err


def test_a_score_file_has_the_types_that_readers_know(
    finished: Path, label_set: str, truth: str, tiny: Tiny, tmp_path: Path
) -> None:
    evaluated(finished, label_set, tiny, "--truth", truth, "--scores", tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.field("right").type == pa.bool_()
    assert schema.field("scores").type.value_type == pa.float32()
