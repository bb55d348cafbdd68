"""`clipcap evaluate` and `clipcap compare`: figures of an output, to people, machines and files."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipcap import metrics
from clipcap.keys import path_name
from clipcap.metrics import scorefile
from clipcap.stages.evaluate import CLIP_METRICS, JAVA_METRICS
from tests.command import Ended, clipcap
from tests.nights import Tiny, draw, night
from tests.outputs import change

SAID = ("a red ball on the grass", "two cats in the snow", "a dog and a car", "one house at night")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> [bold]{{ 7 * 7 }}"
IMAGES = 6


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of six images; four have two references each, and captions that fit half way."""
    folder = tmp_path_factory.mktemp("evaluate")
    for n in range(IMAGES):
        draw(folder / "in" / f"drawing-{n}.png", n)
    for n, text in enumerate(SAID):
        (folder / "in" / f"drawing-{n}.txt").write_text(f"{text}\nanother picture\n")
    night(folder / "in", folder / "out", tiny)

    def say(row: dict[str, Any]) -> None:
        number = int(re.findall(r"drawing-(\d)", row["source_uri"])[0])
        row["caption"] = SAID[number] if number < 2 else "a green boat at the sea"

    for path in (folder / "out" / "captions").rglob("*.parquet"):
        change(path, say)
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the output that may be changed."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def captioned(out: Path) -> list[Path]:
    """Return the files of the captions table."""
    return sorted((out / "captions").rglob("*.parquet"))


def second(out: Path, name: str, text: str) -> None:
    """Give an output captions by another captioner, all of them the same."""
    for path in captioned(out):
        folder = path.parents[1].with_name(f"captioner={name}") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
        change(folder / path.name, lambda row: row.update(caption=text))


def evaluated(out: Path, tiny: Tiny, *more: object) -> dict[str, Any]:
    """Return what `evaluate --json` prints."""
    ended = clipcap("evaluate", out, "--model", tiny.encoder.model, "--json", *more)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return the values by metric."""
    return {one["metric"]: one["value"] for one in found["figures"]}


def test_figures_are_those_of_the_captions_joined_by_image(finished: Path, tiny: Tiny) -> None:
    found = evaluated(finished, tiny)
    captions = [*SAID[:2], *["a green boat at the sea"] * 2]
    expected = metrics.score(captions, [[text, "another picture"] for text in SAID])
    told = figures(found)
    for name, value in expected.figures.items():
        assert told[name] == pytest.approx(value), name
    assert set(told) == {*metrics.TEXT_METRICS, *CLIP_METRICS, *JAVA_METRICS}
    assert (found["images"], found["without_references"], found["without_caption"]) == (4, 2, 0)
    assert found["empty"] == 0
    assert all(
        one["signature"].startswith(f"{one['metric']}|images:4|") for one in found["figures"]
    )


def test_clip_scores_come_from_the_table_and_the_text_encoder(finished: Path, tiny: Tiny) -> None:
    told = figures(evaluated(finished, tiny))
    stored = {
        row["image_id"]: row["clip_score"]
        for path in captioned(finished)
        for row in pq.ParquetFile(path).read().to_pylist()
    }
    judged = [
        row["image_id"]
        for path in (finished / "manifest").rglob("*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
        if row["reference_captions"]
    ]
    mean = sum(stored[image_id] for image_id in judged) / len(judged)
    assert told["clip_score"] == pytest.approx(mean)
    assert 0 < told["ref_clip_score"] < 1.5


def test_java_metrics_are_not_computed_and_never_zero_without_their_package(
    finished: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    found = [one for one in evaluated(finished, tiny)["figures"] if one["metric"] in JAVA_METRICS]
    assert [one["value"] for one in found] == [None, None]
    assert all("pip install pycocoevalcap" in one["reason"] for one in found)
    ended = clipcap("evaluate", finished, "--model", tiny.encoder.model)
    assert ended.out.count("not computed") == 2
    assert "pip install pycocoevalcap" in ended.out


def test_another_encoder_than_the_captions_gives_a_reason_not_a_number(finished: Path) -> None:
    ended = clipcap("evaluate", finished, "--json")
    one = {one["metric"]: one for one in json.loads(ended.out)["figures"]}["ref_clip_score"]
    assert one["value"] is None
    assert "name that encoder with --model" in one["reason"]


def test_people_are_told_figures_counts_and_the_signature(finished: Path, tiny: Tiny) -> None:
    ended = clipcap("evaluate", finished, "--model", tiny.encoder.model)
    assert ended.code == 0, ended.err
    assert re.search(r"cider_d +\d\.\d{4}", ended.out)
    assert "4 images judged" in ended.out
    assert "2 without references" in ended.out
    assert re.search(r"signature +images:4\|references:[0-9a-f]{12}\|tokenizer:ptb-", ended.out)


def test_scores_hold_every_image_and_what_they_were_made_by(
    finished: Path, tmp_path: Path, tiny: Tiny
) -> None:
    told = evaluated(finished, tiny, "--scores", tmp_path / "scores.parquet")
    table = scorefile.read(str(tmp_path / "scores.parquet"))
    rows = table.to_pylist()
    assert len(rows) == 4
    mean = sum(row["cider_d"] for row in rows) / 4
    assert mean == pytest.approx(figures(told)["cider_d"])
    assert [row["bleu_1"] for row in rows if row["caption"] in SAID] == pytest.approx([1, 1])
    assert all(row["meteor"] is None for row in rows) or figures(told)["meteor"] is not None
    footer = table.schema.metadata
    assert json.loads(footer[b"figures"]) == told["figures"]
    assert footer[b"captioner_id"].decode() == told["captioner_id"]


def test_suppressed_captions_count_as_empty_and_stale_ones_not_at_all(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    whole = figures(evaluated(out, tiny))

    def suppress(row: dict[str, Any]) -> None:
        if row["caption"] == SAID[0]:
            row["caption"] = None
        if row["caption"] == SAID[1]:
            row["content_sha256"] = "0" * 64

    for path in captioned(out):
        change(path, suppress)
    found = evaluated(out, tiny, "--scores", tmp_path / "scores.parquet")
    rows = scorefile.read(str(tmp_path / "scores.parquet")).to_pylist()
    empty = next(row for row in rows if row["caption"] is None)
    assert (empty["clip_score"], empty["ref_clip_score"], empty["cider_d"]) == (0, 0, 0)
    assert (found["images"], found["empty"], found["without_caption"]) == (3, 1, 1)
    assert figures(found)["rouge_l"] < whole["rouge_l"]


def ended_badly(*words: object) -> Ended:
    """Return how a command ended that must say why in a sentence."""
    ended = clipcap(*words)
    assert ended.code == 2
    assert ended.err.startswith("Error: ")
    assert "Traceback" not in ended.err
    return ended


def test_what_cannot_be_judged_is_said_with_what_is_there(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    name = json.loads(clipcap("evaluate", out, "--json").out)["captioner_id"]
    assert f"It has captions by: {name}" in ended_badly("evaluate", out, "--captioner", "x").err
    near = ended_badly("evaluate", out, "--captioner", f"{name}x").err
    assert f"Did you mean {name}?" in near
    second(out, "other", "a cat")
    several = ended_badly("evaluate", out).err
    assert f"{name}, other" in several or f"other, {name}" in several
    assert "--captioner" in several
    for path in (out / "manifest").rglob("*.parquet"):
        change(path, lambda row: row.update(reference_captions=["  "]))
    assert "people wrote" in ended_badly("evaluate", out, "--captioner", name).err
    shutil.rmtree(out / "captions")
    assert "clipcap caption" in ended_badly("evaluate", out).err
    assert "captions" in ended_badly("evaluate", tmp_path / "nothing").err


def test_compare_says_which_captioner_of_an_output_is_better(out: Path, tiny: Tiny) -> None:
    name = path_name(json.loads(clipcap("evaluate", out, "--json").out)["captioner_id"])
    second(out, "poor", "word word")
    ended = clipcap("compare", "--out", out, "poor", name, "--json", "--draws", 200)
    assert ended.code == 0, ended.err
    found = {one["metric"]: one for one in json.loads(ended.out)}
    assert found["bleu_1"]["verdict"] == "better"
    back = clipcap("compare", "--out", out, name, "poor", "--draws", 200)
    assert re.search(r"bleu_1 .* worse", back.out)
    assert "200 draws of 4 images" in back.out


def test_compare_takes_score_files_and_judges_the_images_that_both_captioned(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    name = evaluated(out, tiny, "--scores", tmp_path / "a.parquet")["captioner_id"]
    second(out, "some", "two cats in the snow")
    same = clipcap("compare", tmp_path / "a.parquet", tmp_path / "a.parquet", "--json")
    assert {one["verdict"] for one in json.loads(same.out)} == {"not worse"}

    def outdate(row: dict[str, Any]) -> None:
        if "drawing-0" in row["source_uri"]:
            row["content_sha256"] = "0" * 64

    for path in (out / "captions" / "captioner=some").rglob("*.parquet"):
        change(path, outdate)
    evaluated(out, tiny, "--captioner", "some", "--scores", tmp_path / "b.parquet")
    refused = ended_badly("compare", tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert "same images" in refused.err
    found = json.loads(clipcap("compare", "--out", out, name, "some", "--json").out)
    assert {one["images"] for one in found} == {3}
    assert "There is no score file" in ended_badly("compare", "no", "such").err


def test_the_page_shows_pictures_and_hostile_captions_as_text(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    name = json.loads(clipcap("evaluate", out, "--json").out)["captioner_id"]
    second(out, "hostile", HOSTILE)
    for path in (out / "manifest").rglob("*.parquet"):
        change(path, lambda row: row.update(reference_captions=[HOSTILE, "a cat"]))
    one = clipcap(
        "evaluate", out, "--captioner", "hostile", "--page", tmp_path / "one.html", "--json"
    )
    two = clipcap("compare", "--out", out, name, "hostile", "--page", tmp_path / "two.html")
    assert (one.code, two.code) == (0, 0), one.err + two.err
    for file, sections in (("one.html", 2), ("two.html", 4)):
        page = (tmp_path / file).read_text()
        assert page.count("<h2>") == sections
        assert "<script" not in page
        assert "<img src=x" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "{{ 7 * 7 }}" in page
        assert page.count("data:image/jpeg;base64,") >= IMAGES
        assert "default-src &#39;none&#39;" in page
    assert "Most improved" in (tmp_path / "two.html").read_text()


def test_a_page_of_score_files_alone_is_refused(finished: Path, tmp_path: Path, tiny: Tiny) -> None:
    evaluated(finished, tiny, "--scores", tmp_path / "a.parquet")
    words = ("compare", tmp_path / "a.parquet", tmp_path / "a.parquet", "--page", tmp_path / "p")
    assert "--out" in ended_badly(*words).err
    assert not (tmp_path / "p").exists()


def test_what_was_left_out_and_whose_captions_they_are_is_told_everywhere(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    name = evaluated(out, tiny, "--page", tmp_path / "one.html")["captioner_id"]
    assert (
        "left out 2 without references and 0 without a caption"
        in (tmp_path / "one.html").read_text()
    )
    second(out, "some", "two cats in the snow")

    def outdate(row: dict[str, Any]) -> None:
        if "drawing-0" in row["source_uri"]:
            row["content_sha256"] = "0" * 64

    for path in (out / "captions" / "captioner=some").rglob("*.parquet"):
        change(path, outdate)
    words = ("compare", "--out", out, name, "some", "--page", tmp_path / "two.html")
    ended = clipcap(*words, "--model", tiny.encoder.model)
    assert ended.code == 0, ended.err
    assert "3 images" in ended.out
    for told in (ended.out, (tmp_path / "two.html").read_text()):
        for letter in "AB":
            assert re.search(
                rf"{letter} is \S+: left out 2 without references and 1 without", told
            ), told
    assert f"A is {name}: " in ended.out


def test_references_may_come_from_a_file(out: Path, tmp_path: Path, tiny: Tiny) -> None:
    rows = [{"file": f"drawing-{n}.png", "caption": "a green boat at the sea"} for n in (1, 2, 5)]
    (tmp_path / "people.json").write_text(json.dumps(rows))
    found = evaluated(out, tiny, "--references", tmp_path / "people.json")
    assert (found["images"], found["without_references"]) == (3, 3)
    table = tmp_path / "scores.parquet"
    evaluated(out, tiny, "--references", tmp_path / "people.json", "--scores", table)
    by_file = {row["source_uri"][-13:]: row for row in scorefile.read(str(table)).to_pylist()}
    assert by_file["drawing-5.png"]["bleu_1"] == pytest.approx(1)
    assert by_file["drawing-1.png"]["bleu_1"] < 1
    missing = clipcap("evaluate", out, "--references", tmp_path / "no.json")
    assert missing.code == 4
    assert "There are no captions at" in missing.err
