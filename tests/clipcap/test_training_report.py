"""The page of a training: its curves as drawings, its counts, nothing loaded, nothing trusted."""

from __future__ import annotations

from typing import Any

import pytest

from clipcap.cards import Card, EncoderFit
from clipcap.layout import Run
from clipcap.progress import Progress, told
from clipcap.report import curves, trained
from clipcap.training import TrainSettings
from tests.pages import Page

RUN = Run("20261120T010203Z-abc", "file:///out", "2026-11-20")
CURVE = [
    Progress(
        step, 500, 9.0 / step**0.5, 1e-5,
        8.0 / step**0.5 if step % 50 == 0 else None,
        step / 1000 if step % 50 == 0 else None,
    )
    for step in range(1, 501)
]  # fmt: skip


def card(curve: list[Progress] = CURVE, **changed: Any) -> Card:  # noqa: ANN401 - any JSON
    training = {
        "settings": TrainSettings().told(), "captions": 12_345, "captions_held_out": 67,
        "captions_cut": 8, "captions_blank": 9, "validation_loss": 0.4, "best_step": 450,
    }  # fmt: skip
    fit = EncoderFit(model_id="tiny", dim=4)
    note = "<script>alert(1)</script>"
    return Card(
        captioner_id="mine", note=note, encoder=fit, training=training | told(curve) | changed
    )


def page(made: Card) -> Page:
    return Page(trained.render(RUN, made, seconds=65.0))


def places(line: dict[str, str | None]) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in (line["points"] or "").split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_the_page_draws_the_losses_and_the_scores() -> None:
    found = page(card())
    assert found.open == []
    assert len(found.all("svg")) == 2
    learned, held, scores = map(places, found.all("polyline"))
    assert len(learned) == 167  # 500 steps, three in each
    assert len(held) == len(scores) == 10
    assert [y for _, y in learned] == sorted(y for _, y in learned)  # a falling loss goes down
    assert [y for _, y in scores] == sorted((y for _, y in scores), reverse=True)
    for x, y in (*learned, *held, *scores):
        assert curves.LEFT <= x <= curves.WIDTH - curves.RIGHT
        assert curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM
    drawn = [svg["aria-label"] or "" for svg in found.all("svg")]
    assert "held out from 1.13 to 0.358" in drawn[0]
    assert drawn[1].startswith("CIDEr-D over 500 steps")


def test_the_page_says_what_was_kept_and_what_was_left_out() -> None:
    text = page(card()).text
    assert "mine learned from 12 345 captions of images." in text
    assert "CIDEr-D 0.450" in text
    assert "Kept 450 of 500 steps" in text
    assert "Cut 8 captions of over 67 tokens" in text
    assert "Blank 9" in text
    assert "clipcap caption /out --captioner /out/captioners/mine" in text
    assert "took 1 min 5 s" in text


def test_the_page_loads_nothing_and_trusts_no_text() -> None:
    text = trained.render(RUN, card(), seconds=1.0)
    policies = [meta["content"] for meta in Page(text).all("meta") if "http-equiv" in meta]
    assert [(policy or "").partition(";")[0] for policy in policies] == ["default-src 'none'"]
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not [tag for tag, attributes in Page(text).tags if {"src", "href"} & set(attributes)]


def test_texts_before_captions_are_marked() -> None:
    found = page(card(texts=20, text_steps=100))
    assert "mine learned from 20 texts and 12 345 captions of images." in found.text
    assert len([tag for tag in found.all("line") if tag["class"] == "mark"]) == 4  # in each drawing
    assert "captions of images" in found.text


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_of_few_steps_with_nothing_held_out_has_its_page(steps: int) -> None:
    short = [Progress(step, steps, 3.0, 1e-5) for step in range(1, steps + 1)]
    found = page(card(short, best_step=None))
    assert len(found.all("polyline")) == 1
    assert "Loss at the end 3.000" in found.text
    assert "What was measured" not in found.text


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 10.0, ["0", "2", "4", "6", "8", "10"]),
        (2.31, 2.49, ["2.3", "2.35", "2.4", "2.45", "2.5"]),
        (3.0, 3.0, ["0", "5"]),
        (0.0, 0.0, ["0", "1"]),
    ],
)
def test_the_ticks_are_round_numbers(low: float, high: float, wanted: list[str]) -> None:
    drawn = curves.chart("x", {"a": [(0, low), (1, high)]}, {})
    assert [text for _, text in drawn.up] == wanted
