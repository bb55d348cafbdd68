"""Whole nights without a server: what is done, what not again, and what a failure leaves."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from clipcap import layout, manifest, storage, verify
from clipcap.encoders import openclip
from clipcap.errors import (
    NotFoundError,
    PartitionsFailedError,
    SettingsError,
    TooManyRejectsError,
    TransientStorageError,
)
from clipcap.layout import Shard
from clipcap.stages.label import LabelSettings
from flows import _join
from flows.embed import embed
from flows.nightly import nightly
from flows.settings import NightlySettings
from flows.shard import shard
from tests.architecture.tree import ROOT
from tests.nights import draw
from tests.tables import glob


def test_every_image_gets_a_caption_and_labels(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")

    night = nightly.fn(str(drawings), out, settings).night

    assert {outcome.stage for outcome in night.outcomes} == {"shard", "embed", "caption", "label"}
    live = set(glob(out, "manifest")["image_id"].to_pylist())
    assert len(live) == 6
    for name in ("embeddings", "captions", "labels"):
        assert set(glob(out, name)["image_id"].to_pylist()) == live
    assert verify.verify(out).problems == ()


def test_a_second_night_reads_no_image_and_loads_no_model(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    nightly.fn(str(drawings), out, settings)

    with (
        patch.object(openclip, "load", side_effect=AssertionError("loaded a model")),
        patch("clipcap.intake.take_in", side_effect=AssertionError("read an image")),
    ):
        finished = nightly.fn(str(drawings), out, settings)

    assert {outcome.state for outcome in finished.night.outcomes} == {"unchanged"}
    assert finished.published is not None
    assert finished.published.live == 6
    devices = [row["device"] for row in glob(out, "runs").sort_by("started_at").to_pylist()]
    assert devices == ["cpu", None], "what the models ran on, if they ran"


def test_a_night_without_work_imports_no_model_library(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """They take seconds, and an unchanged bucket is a matter of one."""
    out = str(tmp_path / "out")
    nightly.fn(str(drawings), out, settings)
    code = "import sys\nfrom flows.nightly import NightlySettings, nightly\n"
    code += "nightly.fn(*sys.argv[1:3], NightlySettings.model_validate_json(sys.argv[3]))\n"
    code += "print({'torch', 'open_clip', 'transformers', 'prefect.server'} & set(sys.modules))"
    command = [sys.executable, "-c", code, str(drawings), out, settings.model_dump_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_what_is_new_changed_or_gone_is_all_that_a_night_does(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    nightly.fn(str(drawings), out, settings)
    draw(drawings / "drawing-7.png", 7)
    draw(drawings / "drawing-0.png", 8, size=(70, 50))
    (drawings / "drawing-1.png").unlink()

    night = nightly.fn(str(drawings), out, settings).night

    assert night.plan is not None
    assert (night.plan.new, night.plan.changed, night.plan.deleted) == (1, 1, 1)
    for stage in ("embed", "caption"):
        assert sum(found.computed for found in night.outcomes if found.stage == stage) == 2
    names = sorted(Path(uri).name for uri in glob(out, "manifest")["source_uri"].to_pylist())
    assert names == [f"drawing-{n}.png" for n in (0, 2, 3, 4, 5, 7)]
    assert len(glob(out, "captions")) == 6


def test_one_partition_that_fails_is_named_and_the_others_keep_their_commits(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """The run fails, its row says so, nothing is published, and what was done is not done twice."""
    out = str(tmp_path / "out")
    shard.fn(str(drawings), out, settings.shard)
    bad = spoil_one_tar(out)

    with pytest.raises(PartitionsFailedError, match=r"1 of 3 partitions failed") as caught:
        nightly.fn(str(drawings), out, settings)

    assert str(bad) in str(caught.value)
    assert len(glob(out, "embeddings")) == 4
    states = {row["flow"]: row["state"] for row in glob(out, "runs").to_pylist()}
    assert states == {"shard": "Completed", "nightly": "Failed"}
    assert storage.info(layout.success(storage.canonical(out))) is None


def spoil_one_tar(out: str) -> Shard:
    """Overwrite the bytes of one shard's tar; return which."""
    bad = manifest.shards(storage.canonical(out))[1]
    url = layout.tar(storage.canonical(out), bad)
    storage.write(url, b"\0" * len(storage.read(url)))
    return bad


def test_too_many_rejects_stop_a_night_before_any_model(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    (drawings / "drawing-0.png").write_bytes(b"no picture")

    with pytest.raises(TooManyRejectsError, match="not_an_image 1"):
        nightly.fn(str(drawings), str(tmp_path / "out"), settings)

    assert not (tmp_path / "out" / "embeddings").exists()
    runs = glob(str(tmp_path / "out"), "runs").to_pylist()
    assert [row["state"] for row in runs] == ["Failed"]
    assert "not_an_image" in runs[0]["error_message"]

    (drawings / "drawing-0.png").unlink()
    mended = nightly.fn(str(drawings), str(tmp_path / "out"), settings)
    assert mended.published is not None


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [
        ({"label": LabelSettings(label_sets=("no-such-set",))}, SettingsError),
        ({"embed": {"model": "no-such-model"}}, SettingsError),
        ({"caption": {"captioner": "bundled"}}, SettingsError),
    ],
    ids=["label set", "encoder", "captioner of another encoder"],
)
def test_a_night_that_cannot_be_done_leaves_nothing_behind(
    drawings: Path,
    tmp_path: Path,
    settings: NightlySettings,
    spoilt: dict[str, object],
    error: type[Exception],
) -> None:
    asked = NightlySettings.model_validate({**settings.model_dump(), **spoilt})

    with pytest.raises(error):
        nightly.fn(str(drawings), str(tmp_path / "out"), asked)

    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_leaves_nothing_behind(
    tmp_path: Path, settings: NightlySettings
) -> None:
    with pytest.raises(NotFoundError):
        nightly.fn(str(tmp_path / "nowhere"), str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()


def test_a_source_with_a_signature_leaves_nothing_behind(
    tmp_path: Path, settings: NightlySettings
) -> None:
    """It looks like a pattern, which is not looked up before; and the run's row has its text."""
    source = "https://127.0.0.1:9/list.csv?X-Amz-Signature=hunter2"
    with pytest.raises(SettingsError, match="credentials"):
        nightly.fn(source, str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()


def test_new_shards_carry_the_date_that_was_asked_for(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    nightly.fn(str(drawings), out, settings, date(2026, 2, 3))
    assert {found.dt for found in manifest.shards(storage.canonical(out))} == {"2026-02-03"}


def test_without_a_date_new_shards_carry_todays_in_utc(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    before = datetime.now(UTC).date()
    run = shard.fn(str(drawings), out, settings.shard).night.run
    assert before.isoformat() <= run.dt <= datetime.now(UTC).date().isoformat()
    assert run.run_id.startswith(run.dt.replace("-", ""))


def test_stages_one_by_one_leave_what_a_night_leaves(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    one, whole = str(tmp_path / "one"), str(tmp_path / "whole")
    nightly.fn(str(drawings), whole, settings)

    shard.fn(str(drawings), one, settings.shard)
    embed.fn(one, settings.embed, settings.speed)

    assert glob(one, "embeddings")["embedding"].equals(glob(whole, "embeddings")["embedding"])
    flows = [row["flow"] for row in glob(one, "runs").to_pylist()]
    assert sorted(flows) == ["embed", "shard"]
    assert storage.listed(layout.plans(storage.canonical(one))) == [], "a run seems to be under way"


def test_a_store_that_says_later_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    errors = iter([TransientStorageError("later"), ConnectionResetError("gone")])

    def work() -> str:
        if (error := next(errors, None)) is not None:
            raise error
        return "data"

    assert _join.patiently(work) == "data"
    assert waits == sorted(waits)
    assert len(waits) == 2


def test_a_store_that_says_no_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited"))

    def work() -> None:
        raise SettingsError("no")

    with pytest.raises(SettingsError):
        _join.patiently(work)


def test_an_interrupted_night_is_recorded_as_failed(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    with (
        patch("clipcap.stages.embed.embed", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        nightly.fn(str(drawings), out, settings)
    rows = glob(out, "runs").to_pylist()
    assert [row["state"] for row in rows] == ["Failed"]
    assert "KeyboardInterrupt" in rows[0]["error_message"]
