"""The report says what a night did, shows it, asks nothing of any network and trusts no text."""

from __future__ import annotations

import base64
import io
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from clipcap import layout, models, storage, tables
from clipcap.cards import read_card
from clipcap.errors import REASONS
from clipcap.report import mixture, summary
from clipcap.report.rejected import ADVICE
from clipcap.stages.caption import CaptionSettings
from tests import outputs
from tests.captioners import tiny_captioner
from tests.nights import night
from tests.outputs import NIGHTS, Output
from tests.pages import Page, render

TAKEN, STILL_LIVE = 12, 10
"""Images of the first night, and those of them that the later nights left as they were."""


def test_a_published_night_has_its_page(made: Output) -> None:
    done, published = made.nights[0]
    text = storage.read(published.report_url).decode()
    assert published.report_url == layout.report(done.run)
    page = Page(text)
    assert page.open == []
    assert f"{TAKEN} new images were captioned and labelled." in page.text
    assert len(page.all("img")) == TAKEN
    assert "Nothing earlier to compare with." in page.text
    assert "5 (29%) were left out" in page.text
    assert "truncated 2 images" in page.text


def test_every_image_of_the_night_is_shown_with_its_caption(made: Output) -> None:
    done = made.nights[0][0]
    page = render(done)
    images = page.all("img")
    assert len(images) == STILL_LIVE
    captions = {
        row["caption"] or "no caption"
        for outcome in done.of("caption")
        for row in tables.read(outcome.url).to_pylist()
        if outcome.shard.dt == NIGHTS[0]
    }
    assert {image["alt"] for image in images} >= captions - {"no caption"}
    for image in images:
        head, _, data = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            assert max(opened.size) <= 160


def test_captions_that_want_a_second_look_come_first(made: Output) -> None:
    done = made.nights[0][0]
    waiting = {
        row["caption"]
        for outcome in done.of("caption")
        for row in tables.read(outcome.url).to_pylist()
        if row["review_reasons"] and row["run_id"] == done.run.run_id
    }
    page = render(done)
    assert waiting
    assert page.all("img")[0]["alt"] in waiting
    some = render(done, images=2).all("img")
    assert some[0]["alt"] in waiting
    assert some[1]["alt"] not in waiting
    assert "did not stop" in page.text
    assert "Captions that want a second look" in page.text


@pytest.mark.parametrize("images", [0, 1, 5])
def test_no_more_images_are_shown_than_asked_for(made: Output, images: int) -> None:
    assert len(render(made.nights[0][0], images=images).all("img")) == images


def test_a_night_with_nothing_new_says_so_and_reads_no_image(
    made: Output,
    tmp_path: Path,
) -> None:
    done = outputs.copied(made, tmp_path / "out").nights[2][0]
    shutil.rmtree(tmp_path / "out" / "shards")
    shutil.rmtree(tmp_path / "out" / "captions")
    page = render(done)
    assert "Nothing new: all 16 listed images are unchanged." in page.text
    assert "16 unchanged, 0 gone" in page.text
    assert page.all("img") == []
    assert "cannot be shown" not in page.text


def test_a_night_of_changes_shows_only_them(made: Output) -> None:
    page = render(made.nights[1][0])
    assert "2 new or changed images were captioned and labelled." in page.text
    assert "2 images gone from the source left every table." in page.text
    assert len(page.all("img")) == 2


def test_every_reason_says_what_to_do() -> None:
    assert set(ADVICE) == set(REASONS)


def test_the_bundled_model_says_what_it_does_not_know(made: Output) -> None:
    done = made.nights[0][0]
    assert "bundled model" not in render(done).text
    bundled = tuple(
        replace(outcome, of=models.BUNDLED_ENCODER_ID) if outcome.stage == "embed" else outcome
        for outcome in done.outcomes
    )
    text = render(replace(done, outcomes=bundled)).text
    assert "The bundled model was used." in text
    assert "captions and labels of photographs need a real model" in text


def test_another_captioner_over_old_images_shows_them_again(made: Output, tmp_path: Path) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "out")
    captioner = tiny_captioner(4, stop_bonus=0.6)
    card = read_card(made.tiny.captioner.captioner)
    captioner.card = card.model_copy(update={"captioner_id": "second"})
    captioner.save(str(tmp_path / "second"))
    tiny = replace(made.tiny, captioner=CaptionSettings(captioner=str(tmp_path / "second")))
    done, published = night(made.source, folder, tiny, dt="2026-11-21")
    page = Page(storage.read(published.report_url).decode())
    assert "No new image. 12 images were captioned again." in page.text
    assert len(page.all("img")) == 12
    assert sum(outcome.computed for outcome in done.of("caption")) == 12


def test_a_night_that_only_shards_has_a_page_too(made: Output) -> None:
    done = made.nights[0][0]
    page = render(replace(done, outcomes=tuple(done.of("shard"))))
    assert "12 new images were taken in." in page.text
    assert len(page.all("img")) == STILL_LIVE
    assert "no caption" in page.text


def test_a_flow_without_a_plan_has_a_page_too(made: Output) -> None:
    done = made.nights[0][0]
    page = render(replace(done, plan=None, outcomes=()))
    assert "Nothing new." in page.text


def test_the_label_mix_is_beside_what_was_before(made: Output) -> None:
    page = render(made.nights[1][0])
    assert "2 images now, 10 before." in page.text
    assert "Stability index" in page.text


def test_a_mix_that_moved_is_told_from_one_that_did_not() -> None:
    before = Counter({"cat": 500, "dog": 500})
    assert mixture.compare("x", Counter({"cat": 50, "dog": 50}), before).psi == pytest.approx(0)
    same = mixture.compare("x", Counter({"cat": 52, "dog": 48}), before)
    assert same.verdict == "The mix is as before."
    other = mixture.compare("x", Counter({"cat": 95, "dog": 5}), before)
    assert other.moved
    assert mixture.compare("x", Counter({"cat": 1}), Counter()).psi is None
    many = mixture.compare("x", Counter({str(n): n for n in range(1, 31)}), Counter())
    assert len(many.shares) == 12
    assert sum(share.images for share in many.shares) + many.rest == many.images


def test_the_sql_of_the_page_runs_and_agrees(made: Output) -> None:
    done = made.nights[0][0]
    page = render(done, images=0)
    sql = next(text for text in page.texts if "-- This run" in text)
    with duckdb.connect() as database:
        database.execute("SET VARIABLE clipcap = ?", [str(made.folder)])
        database.execute((made.folder / "views.sql").read_text())
        for statement in database.extract_statements(sql):
            assert database.execute(statement.query).fetchall(), statement.query
        found = database.execute("SELECT captioned, rejected FROM runs ORDER BY dt").fetchall()
    assert found[0] == (12, 5)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (7_260, "2 h 1 min")],
)
def test_a_time_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert summary.duration(seconds) == said


def test_speed_has_the_share_of_the_model(made: Output) -> None:
    speeds = {speed.stage: speed for speed in summary.speeds(made.nights[0][0])}
    assert list(speeds) == ["shard", "embed", "caption", "label"]
    assert speeds["embed"].model is not None
    assert 0 < speeds["embed"].model <= 1
    assert speeds["shard"].model is None
    assert speeds["shard"].computed == 12
