"""How captions are chosen, and what a change of it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap.captioner import Captioner
from clipcap.cards import Choice
from clipcap.stages import caption
from tests.nights import Tiny, draw, make_tiny, night


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source of six drawings."""
    for n in range(6):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    return tmp_path / "in"


def captions(source: Path, out: Path, tiny: Tiny, **settings: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Run a night with these settings of the caption stage; return the table, by key."""
    chosen = replace(tiny, captioner=tiny.captioner.model_copy(update=settings))
    night(source, out, chosen)
    parts = [pq.ParquetFile(path).read() for path in (out / "captions").rglob("*.parquet")]
    rows: list[dict[str, Any]] = pa.concat_tables(parts).sort_by("key").to_pylist()
    return rows


def test_the_likeliest_candidate_is_the_caption(source: Path, tmp_path: Path, tiny: Tiny) -> None:
    for row in captions(source, tmp_path / "out", tiny):
        scores = [one["logprob_mean"] for one in row["candidates"]]
        assert len(scores) == 5
        assert row["logprob_mean"] == max(scores) == scores[0]
        assert row["caption"] == row["candidates"][0]["text"]


def test_the_candidate_nearest_to_the_image_is_the_caption_where_that_is_asked_for(
    source: Path, tmp_path: Path, tiny: Tiny
) -> None:
    usual = captions(source, tmp_path / "out", tiny)
    nearest = captions(source, tmp_path / "out", tiny, rank_by="clip_score")
    for row, before in zip(nearest, usual, strict=True):
        scores = [one["clip_score"] for one in row["candidates"]]
        assert row["clip_score"] == max(scores) == scores[0]
        assert scores == sorted(scores, reverse=True)
        assert row["caption"] == row["candidates"][0]["text"]
        texts = {one["text"] for one in row["candidates"]}
        assert texts == {one["text"] for one in before["candidates"]}
    assert [row["caption"] for row in nearest] != [row["caption"] for row in usual]


@pytest.mark.parametrize(
    "other", [{"precision": "bf16"}, {"precision": "int8"}, {"rank_by": "clip_score"}]
)
def test_another_way_to_caption_captions_again_and_the_same_one_does_not(
    source: Path, tmp_path: Path, tiny: Tiny, other: dict[str, str]
) -> None:
    captions(source, tmp_path / "out", tiny)
    for settings, again in (({}, False), (other, True), (other, False), ({}, True)):
        with patch.object(
            Captioner, "caption", autospec=True, side_effect=Captioner.caption
        ) as run:
            captions(source, tmp_path / "out", tiny, **settings)
        assert bool(run.call_count) == again


def test_a_list_of_words_that_was_changed_captions_again(
    source: Path, tmp_path: Path, tiny: Tiny
) -> None:
    listed = tmp_path / "words.txt"
    decode = Choice(name="greedy", settings={"max_tokens": 12, "only": str(listed)})
    for words, again in (("a red boat", True), ("a red boat", False), ("a cat", True)):
        listed.write_text(words.replace(" ", "\n"), encoding="utf-8")
        with patch.object(
            Captioner, "caption", autospec=True, side_effect=Captioner.caption
        ) as run:
            found = captions(source, tmp_path / "out", tiny, decode=decode)
        assert bool(run.call_count) == again
        said = {word.strip(".!") for row in found for word in (row["caption"] or "").split()}
        assert said - {""} <= set(words.split())


def test_in_half_precision_most_captions_are_the_same(
    source: Path, tmp_path: Path, tiny: Tiny
) -> None:
    exact = captions(source, tmp_path / "out", tiny)
    half = captions(source, tmp_path / "out", tiny, precision="bf16")
    assert [row["logprob_mean"] for row in half] != [row["logprob_mean"] for row in exact]
    for row, before in zip(half, exact, strict=True):
        assert row["logprob_mean"] == pytest.approx(before["logprob_mean"], abs=0.05)
    same = sum(row["caption"] == other["caption"] for row, other in zip(half, exact, strict=True))
    assert same > len(exact) / 2


def test_places_are_shared_by_images_and_change_no_caption(
    source: Path, tmp_path: Path, tiny: Tiny
) -> None:
    with patch.object(caption, "_TURNS", 1):
        few = captions(source, tmp_path / "few", tiny)
    whole = captions(source, tmp_path / "whole", tiny)
    assert [row["caption"] for row in few] == [row["caption"] for row in whole]


def test_drawn_captions_differ_and_come_again(source: Path, tmp_path: Path, tiny: Tiny) -> None:
    decode = Choice(name="nucleus", settings={"captions": 4, "temperature": 2.0, "max_tokens": 12})
    once = captions(source, tmp_path / "one", tiny, decode=decode)
    again = captions(source, tmp_path / "two", tiny, decode=decode)
    assert [row["candidates"] for row in once] == [row["candidates"] for row in again]
    for row in once:
        assert len({one["text"] for one in row["candidates"]}) > 1
