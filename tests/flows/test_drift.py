"""A night is compared with those before it: told, stopped, accepted, and the same after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from clipcap import dates, layout, storage, tables, verify
from clipcap.encoders import openclip
from clipcap.errors import DriftError
from clipcap.stability import Drift, DriftSettings, Limit
from clipcap.stages import publish as publish_stage
from clipcap.stages.label import LabelSettings
from clipcap.summaries import Summary
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.command import clipcap
from tests.nights import Tiny
from tests.pages import Page
from tests.settings import nightly_settings
from tests.tables import glob

RED, BLUE = (200, 40, 40), (30, 60, 220)
STRICT = DriftSettings(
    min_images=20,
    embedding_mean=Limit(warn=0.5, stop=1.0),
    embedding_spread=Limit(),
    embedding_norm=Limit(),
    label_mix=Limit(),
    unknown=Limit(),
)
IMAGES = 24


@pytest.fixture
def settings(tiny: Tiny) -> NightlySettings:
    """A night without captions, eight images in a shard, that stops where the mean went far."""
    return nightly_settings(tiny, max_images=8, caption=None, drift=STRICT)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of reddish images."""
    folder = tmp_path / "in"
    fill(folder, 1, RED)
    return folder


def fill(folder: Path, seed: int, colour: tuple[int, int, int], images: int = IMAGES) -> None:
    """Add images of one colour, each with noise of its own."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for n in range(images):
        noise = rng.integers(-30, 30, (32, 32, 3)) + rng.integers(-30, 30, 3)
        levels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{seed}-{n:02}.png")


def night(source: Path, out: Path, settings: NightlySettings, day: int) -> Drift:
    """Run a night of a day of November."""
    finished = nightly.fn(str(source), str(out), settings, date(2026, 11, day))
    assert finished.published is not None
    assert finished.night.drift is not None
    return finished.night.drift


def with_drift(settings: NightlySettings, **changed: object) -> NightlySettings:
    """Return the settings with others of drift."""
    assert settings.drift is not None
    return settings.model_copy(update={"drift": settings.drift.model_copy(update=changed)})


def summaries(out: Path) -> dict[str, Summary]:
    """Return what is kept of every date."""
    return {
        path.stem: Summary.model_validate_json(path.read_text())
        for path in sorted((out / "_drift").glob("*.json"))
    }


def published(out: Path) -> str:
    """Return the run that readers are told of."""
    return str(json.loads((out / "_latest.json").read_text())["run_id"])


def test_a_night_like_those_before_is_compared_and_not_told(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    first = night(source, out, settings, 1)
    assert (first.images, first.before, first.nights, first.measures) == (IMAGES, 0, 0, ())

    fill(source, 2, RED)
    second = night(source, out, settings, 2)

    assert (second.images, second.before, second.nights) == (IMAGES, IMAGES, 1)
    assert second.level == "ok"
    assert {one.name for one in second.measures} == {
        "label mix", "unknown", "embedding mean", "embedding spread", "embedding norm", "rejects",
    }  # fmt: skip
    assert set(summaries(out)) == {"2026-11-01", "2026-11-02"}
    assert verify.verify(str(out)).problems == ()


def test_what_is_kept_is_what_the_tables_hold(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    (source / "broken.png").write_bytes(b"no picture")
    night(source, out, settings, 1)

    (kept,) = summaries(out).values()

    assert kept.taken == IMAGES
    assert kept.rejects == {"not_an_image": 1}
    (cloud,) = kept.clouds.values()
    embedding_BD = tables.vectors(glob(str(out), "embeddings"))
    np.testing.assert_allclose(cloud.mean, embedding_BD.mean(axis=0), atol=1e-6)
    spread = np.square(embedding_BD - embedding_BD.mean(axis=0)).sum(axis=1).mean()
    assert cloud.spread == pytest.approx(spread, rel=1e-4)
    (mix,) = kept.mixes.values()
    best = [row for row in glob(str(out), "labels").to_pylist() if row["rank"] == 1]
    names = [row["label"] if row["accepted"] else "" for row in best]
    assert mix == {name: names.count(name) for name in set(names)}


def test_another_kind_of_images_is_told_and_published(
    source: Path, tmp_path: Path, settings: NightlySettings, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    only_warn = with_drift(settings, embedding_mean=Limit(warn=0.5))
    night(source, out, only_warn, 1)
    fill(source, 2, BLUE)

    found = night(source, out, only_warn, 2)

    assert [one.name for one in found.over] == ["embedding mean"]
    assert found.level == "warn"
    assert "drift: embedding mean of" in caplog.text
    rows = {row["run_id"]: row for row in glob(str(out), "runs").to_pylist()}
    told = json.loads(rows[published(out)]["extra_json"])["drift"]
    assert told["images"] == IMAGES
    page = Page((out / "reports" / published(out) / "index.html").read_text())
    assert page.open == []
    assert "Not as on earlier nights: embedding mean of" in page.text
    ended = clipcap("drift", out)
    assert ended.code == 0
    assert "24 new images beside 24 of 1 earlier dates" in ended.out
    assert "warn: embedding mean of" in ended.out
    assert json.loads(clipcap("drift", out, "--json").out)["level"] == "warn"


def stopped(source: Path, out: Path, settings: NightlySettings) -> str:
    """Publish a night, then be stopped by another kind of images; return what is published."""
    night(source, out, settings, 1)
    fill(source, 2, BLUE)
    before = published(out)
    with pytest.raises(DriftError, match=r"embedding mean of .* stop at 1.*\n.*--accept-drift"):
        night(source, out, settings, 2)
    assert published(out) == before
    return before


def no_model() -> AbstractContextManager[object]:
    """Fail where a model is loaded."""
    return patch.object(openclip, "load", side_effect=AssertionError("loaded a model"))


def test_a_night_that_is_stopped_stays_so_until_it_is_accepted(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    before = stopped(source, out, settings)
    states = [row["state"] for row in glob(str(out), "runs").to_pylist()]
    assert sorted(states) == ["Completed", "Failed"]
    assert "stop: embedding mean of" in clipcap("drift", out).out
    assert set(summaries(out)) == {"2026-11-01"}

    with no_model(), pytest.raises(DriftError):  # nor does a new date make it another night
        night(source, out, settings, 3)
    assert published(out) == before

    with no_model():
        found = night(source, out, with_drift(settings, accept="this-night"), 3)
    assert found.accepted == "this-night"
    assert found.level == "warn"
    assert published(out) != before
    assert verify.verify(str(out)).ok


def test_an_accepted_night_is_left_out_or_is_where_comparing_begins(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    stopped(source, out, settings)
    night(source, out, with_drift(settings, accept="this-night"), 2)
    fill(source, 3, RED)
    found = night(source, out, settings, 3)
    assert (found.nights, found.before, found.level) == (1, IMAGES, "ok")

    fill(source, 4, BLUE)
    night(source, out, with_drift(settings, accept="from-now-on"), 4)
    fill(source, 5, BLUE)
    found = night(source, out, settings, 5)
    assert (found.nights, found.before, found.level) == (1, IMAGES, "ok")


def test_accepting_what_needs_it_not_changes_nothing(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    fill(source, 2, RED)
    found = night(source, out, with_drift(settings, accept="from-now-on"), 2)
    assert found.accepted is None
    assert {one.accepted for one in summaries(out).values()} == {None}


def test_the_command_says_how_and_with_which_code(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    fill(source, 2, BLUE)
    (tmp_path / "chosen.json").write_text(settings.model_dump_json())
    words = ["run", source, out, "--settings", tmp_path / "chosen.json", "--no-server"]
    ended = clipcap(*words)
    assert ended.code == 9
    assert "--accept-drift" in ended.err
    assert clipcap(*words, "--accept-drift", "from-now-on").code == 0


def test_a_night_with_nothing_new_compares_nothing(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    kept = summaries(out)
    with no_model():
        found = night(source, out, settings, 2)
    assert (found.images, found.measures, found.level) == (0, (), "ok")
    assert summaries(out) == kept


def test_as_many_dates_as_wanted_are_compared_and_the_oldest_objects_go(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    with patch.object(dates, "_KEPT", 2):
        for day in (1, 2):
            night(source, out, settings, day)
            fill(source, day + 1, RED)
        found = night(source, out, with_drift(settings, nights=1), 3)
    assert (found.nights, found.before) == (1, IMAGES)
    assert sorted(summaries(out)) == ["2026-11-02", "2026-11-03"]


def test_a_night_that_is_made_up_for_is_not_compared_with_later_dates(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    fill(source, 3, BLUE)
    night(source, out, with_drift(settings, accept="from-now-on"), 3)
    fill(source, 2, RED)
    found = night(source, out, settings, 2)
    assert (found.nights, found.before, found.level) == (1, IMAGES, "ok")


def test_few_images_are_kept_but_not_compared(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    fill(source, 2, BLUE, images=5)
    assert night(source, out, settings, 2).measures == ()
    assert summaries(out)["2026-11-02"].taken == 5


def test_nobody_is_compared_who_does_not_want_to_be(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    finished = nightly.fn(str(source), str(out), settings.model_copy(update={"drift": None}))
    assert finished.night.drift is None
    assert not (out / "_drift").exists()


def test_a_date_that_goes_on_has_every_shard_once(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    fill(source, 2, RED)
    found = night(source, out, settings, 1)
    assert (found.images, found.before, found.nights) == (IMAGES, IMAGES, 1)
    (kept,) = summaries(out).values()
    assert kept.taken == 2 * IMAGES
    assert len(kept.shards) == len(set(kept.shards)) == 6


def test_a_run_that_died_before_it_published_leaves_nothing_twice(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out, accepting = tmp_path / "out", with_drift(settings, accept="from-now-on")
    stopped(source, out, settings)
    with (
        patch.object(publish_stage, "publish", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        night(source, out, accepting, 2)
    kept = summaries(out)
    assert kept["2026-11-02"].accepted == "from-now-on"

    with no_model():
        found = night(source, out, settings, 2)

    assert (found.accepted, found.nights, found.before) == ("from-now-on", 1, IMAGES)
    assert summaries(out) == kept


def test_a_date_that_died_as_it_went_on_is_not_compared_with_itself(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    fill(source, 2, RED)
    with (
        patch.object(publish_stage, "publish", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        night(source, out, settings, 1)
    found = night(source, out, settings, 1)
    assert (found.images, found.before) == (IMAGES, IMAGES)
    (kept,) = summaries(out).values()
    assert (kept.taken, len(kept.shards)) == (2 * IMAGES, 6)


def test_what_was_said_of_a_night_is_not_said_of_the_next(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """Accepted, it died before it published; what comes on another date is not accepted with it."""
    out, accepting = tmp_path / "out", with_drift(settings, accept="this-night")
    before = stopped(source, out, settings)
    with (
        patch.object(publish_stage, "publish", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        night(source, out, accepting, 2)
    fill(source, 3, BLUE)
    with pytest.raises(DriftError):
        night(source, out, settings, 3)
    assert published(out) == before


def lost(path: Path) -> None:
    path.unlink()


def broken(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def of_another_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 0, "taken": 9}))


def of_fewer_shards(path: Path) -> None:
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"shards": told["shards"][1:], "taken": 9}))


@pytest.mark.parametrize("spoil", [lost, broken, of_another_version, of_fewer_shards])
def test_what_is_lost_or_wrong_is_made_anew_from_the_tables(
    source: Path, tmp_path: Path, settings: NightlySettings, spoil: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    kept = summaries(out)["2026-11-01"]
    spoil(out / "_drift" / "2026-11-01.json")
    fill(source, 2, RED)
    assert night(source, out, settings, 2).before == IMAGES
    assert summaries(out)["2026-11-01"] == kept


def test_tables_of_earlier_dates_are_not_read(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    from clipcap.stages import drift as stage

    out = tmp_path / "out"
    night(source, out, settings, 1)
    first = (out / "_latest.json").read_bytes()
    fill(source, 2, RED)
    done = nightly.fn(str(source), str(out), settings, date(2026, 11, 2)).night
    storage.write(layout.latest(done.run.out), first)  # as if the second had not published
    read: list[str] = []
    real = storage.read

    def seen(url: str) -> bytes:
        read.append(url)
        return real(url)

    with patch.object(storage, "read", seen):
        found = stage.compare(done, settings=STRICT)

    assert found.before == IMAGES
    assert [url for url in read if "dt=2026-11-01" in url] == []
    assert [url for url in read if "dt=2026-11-02" in url]


def test_another_label_set_is_compared_with_what_it_says_of_earlier_dates(
    source: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = tmp_path / "out"
    night(source, out, settings, 1)
    other = tmp_path / "colours.toml"
    other.write_text('names = ["red", "blue"]\ntemplates = ["a {} picture."]\n')
    changed = settings.model_copy(update={"label": LabelSettings(label_sets=(str(other),))})
    fill(source, 2, RED)
    found = night(source, out, changed, 2)
    assert [one.of for one in found.measures if one.name == "label mix"] == ["colours"]
    assert found.before == IMAGES
    kept = summaries(out)["2026-11-01"]
    assert len(kept.mixes) == 2
    assert len(kept.clouds) == 1
