"""`clipcap bench`: real figures of every stage, and advice that follows from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clipcap import benchmark
from clipcap.benchmark import Chosen, Figure, Stage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings
from clipcap.workers import WorkerSettings
from tests.command import clipcap
from tests.nights import draw

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["plan", "shard", "decode alone", "model alone", "embed", "caption", "label"]
CHOSEN = Chosen(
    shard=ShardSettings(),
    embed=EmbedSettings(),
    speed=Speed(decode=WorkerSettings(processes=3)),
    caption=CaptionSettings(),
    caption_speed=CaptionSpeed(),
    label=LabelSettings(),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where temporary files are."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_made_up_photographs_go_through_every_stage_and_nothing_is_left(place: Path) -> None:
    done = clipcap("bench", "--images", "12", "--megapixels", "0.05", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [stage["stage"] for stage in found["stages"]] == STAGES
    by_stage = {stage["stage"]: stage for stage in found["stages"]}
    for name in ("shard", "decode alone", "embed", "caption"):
        assert by_stage[name]["images"] == 12
    for stage in found["stages"]:
        rate = stage["images"] / stage["seconds"]
        assert stage["images_per_second"] == pytest.approx(rate)
    inside = by_stage["embed"]["model_s"] + by_stage["embed"]["decode_s"]
    assert 0 < inside <= by_stage["embed"]["seconds"]
    assert found["advice"]
    assert not list(place.iterdir())


def test_ended_from_outside_it_leaves_nothing(place: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "bench", "--images", "100000"]
    running = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(place)}, stderr=subprocess.DEVNULL
    )
    while not list(place.glob("clipcap-bench-*/images/*")) and running.poll() is None:
        time.sleep(0.01)
    running.terminate()
    assert running.wait(60) != 0
    assert not list(place.glob("clipcap-bench-*"))


def test_ones_own_images_are_measured_as_a_table(tmp_path: Path) -> None:
    for n in range(5):
        draw(tmp_path / "in" / f"{n}.png", n)
    done = clipcap("bench", tmp_path / "in", "--captioner", "none")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:7]] == [s for s in STAGES if s != "caption"]
    assert "images/s" in lines[0]
    assert "waits: decoding" in lines[0]
    assert len(list((tmp_path / "in").iterdir())) == 5


def figures(
    embed: float, *, decode: float, model: float, waits: dict[str, float] | None = None
) -> list[Figure]:
    """Return figures with these images per second; `waits` are shares of the time."""

    def figure(stage: Stage, rate: float) -> Figure:
        return Figure(stage, 1_000, 1_000 / rate)

    waited = {name: share * 1_000 / embed for name, share in (waits or {}).items()}
    read_s, decode_s = waited.get("read_s", 0.0), waited.get("decode_s", 0.0)
    return [
        figure("decode alone", decode),
        figure("model alone", model),
        replace(figure("embed", embed), read_s=read_s, decode_s=decode_s),
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (figures(95, decode=900, model=100), "95% of its own speed"),
        (figures(95, decode=100, model=900, waits={"decode_s": 0.8}), "80% of the time for decod"),
        (figures(40, decode=900, model=900, waits={"read_s": 0.6}), "speed.prefetch"),
        (figures(60, decode=100, model=100), "60% of the lower bound"),
    ],
)
def test_the_advice_names_what_limits(found: list[Figure], said: str) -> None:
    [text] = benchmark.advice(found, CHOSEN)
    assert said in text


def test_the_advice_counts_the_processes_there_are() -> None:
    waiting = figures(95, decode=100, model=900, waits={"decode_s": 0.8})
    assert "by 3 processes" in benchmark.advice(waiting, CHOSEN)[0]


def test_made_up_photographs_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        benchmark.draw(tmp_path / name, 3, megapixels=0.02)
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 3
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in files)


def test_shards_that_are_named_by_what_was_read_are_measured_too(tmp_path: Path) -> None:
    """Files beside images have no version that was listed."""
    for n in range(3):
        draw(tmp_path / "in" / f"{n}.png", n)
        (tmp_path / "in" / f"{n}.txt").write_text("a drawing")
    done = clipcap("bench", tmp_path / "in", "--json")
    assert done.code == 0, done.err
    by_stage = {stage["stage"]: stage["images"] for stage in json.loads(done.out)["stages"]}
    assert by_stage["decode alone"] == by_stage["embed"] == 3
