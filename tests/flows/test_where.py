"""`clipcap where`: what it prints, the tables and the page that it writes, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.command import Ended, clipcap
from tests.nights import Tiny, draw, night
from tests.pages import Page

IMAGES = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of three images."""
    folder = tmp_path_factory.mktemp("where")
    for n in range(IMAGES):
        draw(folder / "in" / f"drawing <{n}>.png", n)
    night(folder / "in", folder / "out", tiny)
    return folder


def where(place: Path, tiny: Tiny, *more: object) -> Ended:
    words = ["where", place / "out", "--to", place / "to", "--model", tiny.encoder.model]
    return clipcap(*words, "--label-set", tiny.label_set, *more)


def test_it_says_how_many_images_have_each_label_and_where(place: Path, tiny: Tiny) -> None:
    ended = where(place, tiny, "--threshold", 0, "--grid", "2x3", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert (told["windows"], told["images"], told["written"]) == (6, IMAGES, 1)
    assert {one["label"]: one["images"] for one in told["seen"]} == dict.fromkeys(
        ("cat", "dog", "house"), IMAGES
    )
    assert {tuple(one["places"]) for one in told["seen"]} == {("everywhere",)}
    (crops,) = (place / "to" / "crops").rglob("*.parquet")
    assert pq.ParquetFile(crops).metadata.num_rows == 6 * IMAGES


def test_it_tells_a_person(place: Path, tiny: Tiny) -> None:
    where(place, tiny)
    ended = where(place, tiny, "--label", "dog", "--threshold", 0)
    assert ended.code == 0, ended.err
    first, *lines = ended.out.splitlines()
    assert first.startswith("where     3 images through 9 windows each: 0 computed, 1 tables")
    assert [line for line in lines if line.startswith("dog")]
    assert not [line for line in lines if line.startswith("cat")]
    assert lines[-1] == f"written   {place / 'to'}"


def test_a_page_is_written_and_loads_nothing(place: Path, tiny: Tiny) -> None:
    page = place / "page.html"
    ended = where(place, tiny, "--threshold", 0.2, "--page", page, "--top", 2, "--label", "cat")
    assert ended.code == 0, ended.err
    text = page.read_text()
    shown = Page(text)
    assert len(shown.all("svg")) in (1, 2)
    assert "drawing <" in shown.text
    assert "<0>" not in text
    (policy,) = [one["content"] for one in shown.all("meta") if "http-equiv" in one]
    assert str(policy).startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("--label", "dgo"), "No label 'dgo'. Did you mean dog?", 2),
        (("--grid", "40"), "where.grid", 2),
        (("--label-set", "nothing"), "No label set 'nothing'", 2),
    ],
)
def test_errors_say_what_to_do(
    place: Path, tiny: Tiny, words: tuple[str, ...], said: str, code: int
) -> None:
    ended = where(place, tiny, *words)
    assert ended.code == code
    assert said in ended.err
    assert "Traceback" not in ended.err
