"""Two captioners over the same images: who is better, and how surely."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipcap import metrics, tables
from clipcap.errors import SettingsError
from clipcap.metrics import paired, scorefile
from clipcap.metrics.paired import Difference, PairedSettings

IMAGES = 40
SETTINGS = PairedSettings(draws=500)


def scored(captions: list[str], references: list[list[str]], **more: list[Any]) -> pa.Table:
    """Return a score file of some captions."""
    found = metrics.score(captions, references)
    rows = [
        {
            "image_id": f"image-{at:03d}",
            "content_sha256": f"{at}",
            "source_uri": f"file:///{at}.jpg",
            "caption": caption,
            "reference_captions": references[at],
            **dict(zip(metrics.BLEU, found.bleu_NK[at].tolist(), strict=True)),
            "rouge_l": found.rouge_N[at],
            "cider_d": found.cider_N[at],
            "words": int(found.bleu.words_N[at]),
            "reference_words": int(found.bleu.reference_words_N[at]),
            "matched": found.bleu.matched_NK[at].tolist(),
            **{name: values[at] for name, values in more.items()},
        }
        for at, caption in enumerate(captions)
    ]
    return pa.Table.from_pylist(rows, schema=scorefile.SCHEMA)


def said(share: float, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Return captions of which a share is right, and their references."""
    rng = np.random.default_rng(seed)
    animals = [f"animal{at % 7} number{at} runs over the grass" for at in range(IMAGES)]
    right = rng.random(IMAGES) < share
    captions = [
        text if good else "something else entirely there"
        for text, good in zip(animals, right, strict=True)
    ]
    return captions, [[text] for text in animals]


def by_metric(found: list[Difference]) -> dict[str, Difference]:
    """Return the differences by the name of the metric."""
    return {one.metric: one for one in found}


def test_a_captioner_that_is_right_more_often_is_better_and_the_other_worse() -> None:
    poor, good = scored(*said(0.2)), scored(*said(0.9))
    up = by_metric(paired.compare(poor, good, SETTINGS))
    down = by_metric(paired.compare(good, poor, SETTINGS))
    assert set(up) == {*metrics.BLEU, "rouge_l", "cider_d"}
    assert {one.verdict for one in up.values()} == {"better"}
    assert {one.verdict for one in down.values()} == {"worse"}
    for one in up.values():
        assert one.low < one.difference < one.high
        assert one.difference == pytest.approx(one.b - one.a)


def test_the_figures_are_those_of_the_evaluation() -> None:
    captions, references = said(0.5)
    found = metrics.score(captions, references).figures
    table = scored(captions, references)
    compared = by_metric(paired.compare(table, table, SETTINGS))
    for name, one in compared.items():
        assert one.a == one.b == pytest.approx(found[name])


def test_a_captioner_is_not_worse_than_itself_nor_than_one_that_differs_by_chance() -> None:
    same = scored(*said(0.5))
    for one in paired.compare(same, same, SETTINGS):
        assert (one.difference, one.low, one.high, one.verdict) == (0, 0, 0, "not worse")
    other = scored(*said(0.5, seed=1))
    assert {one.verdict for one in paired.compare(same, other, SETTINGS)} == {"not worse"}


@pytest.mark.parametrize(
    ("low", "high", "margin", "short"),
    [
        (0.1, 0.3, 0.0, ""),
        (0.0, 0.0, 0.0, ""),
        (-0.1, 0.3, 0.0, "perhaps worse"),
        (-0.1, 0.3, 0.04, "perhaps worse"),
        (-0.1, 0.3, 0.05, ""),
        (-0.3, -0.1, 0.05, "worse"),
        (-0.09, -0.01, 0.05, ""),
    ],
)
def test_one_falls_short_where_its_interval_begins_below_the_margin(
    low: float, high: float, margin: float, short: str
) -> None:
    """The margin is a share of the figure of `a`, which is 2 here."""
    one = Difference("cider_d", 2.0, 2.0 + low, low, low, high, "not worse", IMAGES)
    assert paired.shortfall(one, margin) == short


def test_the_interval_of_a_mean_is_the_normal_one_for_many_images() -> None:
    captions, references = said(0.5)
    rng = np.random.default_rng(5)
    left, right = rng.normal(1.0, 0.2, IMAGES), rng.normal(1.1, 0.2, IMAGES)
    a, b = (scored(captions, references, clip_score=one.tolist()) for one in (left, right))
    one = by_metric(paired.compare(a, b, PairedSettings(draws=5_000)))["clip_score"]
    error = float((right - left).std() / np.sqrt(IMAGES))
    assert one.low == pytest.approx(one.difference - 1.96 * error, abs=0.1 * error)
    assert one.high == pytest.approx(one.difference + 1.96 * error, abs=0.1 * error)


def test_same_seed_same_intervals_whatever_the_order_of_the_rows() -> None:
    values = np.random.default_rng(7).random((2, IMAGES))
    a, b = (scored(*said(0.4), clip_score=value_N.tolist()) for value_N in values)
    shuffled = b.take(pa.array(np.random.default_rng(1).permutation(IMAGES)))
    first = paired.compare(a, b, SETTINGS)
    assert paired.compare(a, shuffled, SETTINGS) == first
    other = paired.compare(a, b, PairedSettings(draws=500, seed=1))
    assert [one.low for one in other] != [one.low for one in first]


def test_a_metric_that_some_images_lack_is_compared_over_the_others() -> None:
    captions, references = said(0.5)
    left: list[float | None] = [0.5] * IMAGES
    right: list[float | None] = [None, *[0.75] * (IMAGES - 1)]
    a, b = (scored(captions, references, meteor=values) for values in (left, right))
    one = by_metric(paired.compare(a, b, SETTINGS))["meteor"]
    assert (one.images, one.verdict) == (IMAGES - 1, "better")
    assert (one.a, one.b, one.low, one.high) == pytest.approx((0.5, 0.75, 0.25, 0.25))


def test_other_images_or_other_references_are_refused() -> None:
    captions, references = said(0.5)
    table = scored(captions, references)
    with pytest.raises(SettingsError, match="same images"):
        paired.compare(table, table.slice(1), SETTINGS)
    with pytest.raises(SettingsError, match="same images"):
        paired.compare(table.slice(1), table, SETTINGS)
    changed = scored(captions, [*references[:-1], ["another reference"]])
    with pytest.raises(SettingsError, match="same reference_captions"):
        paired.compare(table, changed, SETTINGS)


def test_five_thousand_images_are_drawn_in_bounded_time() -> None:
    captions, references = said(0.5)
    table = scored(captions, references)
    many = pa.concat_tables([table] * 125)
    ids = pa.array([f"{at}" for at in range(many.num_rows)])
    many = many.set_column(0, table.schema.field("image_id"), ids)
    began = time.process_time()
    paired.compare(many, many, PairedSettings())
    assert time.process_time() - began < 20


def test_a_score_file_comes_back_as_it_was_and_other_files_are_refused(tmp_path: Path) -> None:
    table = scored(*said(0.5))
    scorefile.write(str(tmp_path / "a.parquet"), table, {"captioner_id": "one"})
    back = scorefile.read(str(tmp_path / "a.parquet"))
    assert back.equals(table)
    assert tables.metadata(back)["captioner_id"] == "one"
    with pytest.raises(SettingsError, match="clipcap evaluate OUT --scores"):
        scorefile.read(str(tmp_path / "b.parquet"))
    (tmp_path / "c.parquet").write_bytes(b"no table")
    with pytest.raises(SettingsError, match="must be a score file"):
        scorefile.read(str(tmp_path / "c.parquet"))
    (tmp_path / "d.parquet").write_bytes(tables.to_bytes(table, {}))
    with pytest.raises(SettingsError, match="must be a score file"):
        scorefile.read(str(tmp_path / "d.parquet"))
