"""What a night is said to cost: counts that are right, times of earlier nights, nothing changed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from unittest.mock import patch

import pytest

from clipcap import layout, manifest, records, storage, tables
from clipcap.errors import TransientStorageError
from clipcap.forecast import Forecast, Wanted, forecast
from clipcap.layout import Run, Shard
from clipcap.outcomes import Night, Outcome
from clipcap.plans import Plan
from clipcap.stages import shard as stage
from clipcap.stages.shard import ShardSettings
from tests.nights import sharded
from tests.pictures import picture

DAY, NEXT_DAY = "2026-11-20", "2026-11-21"


@pytest.fixture
def place() -> tuple[str, str]:
    """A source of five pictures, and an output."""
    name = secrets.token_hex(6)
    for n in range(5):
        storage.write(f"memory://source-{name}/{n}.png", picture(n))
    return f"memory://source-{name}", f"memory://out-{name}"


def planned(source: str, out: str, dt: str = DAY, *, write: bool = False) -> tuple[Plan, Run]:
    run = Run(secrets.token_hex(4), out, dt)
    settings = ShardSettings.model_validate({"pack": {"max_images": 3}})
    return stage.plan(source, run=run, settings=settings, write=write), run


def night(source: str, out: str, dt: str = DAY) -> None:
    sharded(*planned(source, out, dt, write=True), ShardSettings())


def embed(out: str) -> Wanted:
    return Wanted("embed", ("vit",), (f"{out}/embeddings/model=vit",), 100)


def foreseen(source: str, out: str, dt: str = DAY) -> Forecast:
    plan, run = planned(source, out, dt)
    return forecast(plan, run=run, wanted=[embed(out)], shards_per_task=1)


def past(out: str, number: int, *, images: int, seconds: Mapping[str, float], of: str) -> None:
    """Write the row of an earlier night that embedded some images."""
    run = Run(f"run-{number}", out, DAY)
    plan = Plan("s", (), (), images, images, 0, 0, 0)
    one = Outcome("embed", Shard(DAY, "s"), "written", images, "", "", 0.0, 1.0, images)
    opened = Night(run, "nightly", "test", 0.0, "{}", plan, (one,), model_ids=(of,))
    records.write(opened, state="Completed", seconds=seconds)


def test_a_first_night_has_counts_and_no_times(place: tuple[str, str]) -> None:
    found = foreseen(*place)
    assert (found.listed, found.new, found.to_retry, found.shards) == (5, 5, 0, 2)
    assert found.bytes_to_read == sum(len(picture(n)) for n in range(5))
    assert found.bytes_to_write > found.bytes_to_read
    assert [(step.stage, step.images, step.tasks) for step in found.steps] == [
        ("shard", 5, 2), ("embed", 5, 2),
    ]  # fmt: skip
    assert (found.seconds, found.nights) == (None, 0)
    assert storage.listed(place[1]) == []


def test_times_are_those_of_nights_with_the_same_model(place: tuple[str, str]) -> None:
    source, out = place
    past(out, 1, images=100, seconds={"shard": 10.0, "embed": 50.0}, of="vit")
    past(out, 2, images=300, seconds={"shard": 10.0, "embed": 50.0}, of="vit")
    past(out, 3, images=1_000, seconds={"shard": 80.0, "embed": 1.0}, of="other")
    found = foreseen(source, out)
    assert [step.images_per_second for step in found.steps] == [12.5, 6.0]
    assert found.seconds == pytest.approx(5 / 12.5 + 5 / 6)


def test_a_stage_nobody_knows_the_rate_of_leaves_the_time_open(place: tuple[str, str]) -> None:
    source, out = place
    past(out, 1, images=100, seconds={"shard": 10.0, "embed": 50.0}, of="other")
    found = foreseen(source, out)
    assert [step.seconds is None for step in found.steps] == [False, True]
    assert found.seconds is None


def test_shards_without_a_table_of_the_model_are_its_work_too(place: tuple[str, str]) -> None:
    source, out = place
    night(source, out)
    storage.write(f"{source}/9.png", picture(9))
    found = foreseen(source, out, NEXT_DAY)
    assert (found.new, found.unchanged) == (1, 5)
    assert [step.images for step in found.steps] == [1, 6]
    done = manifest.shards(out)[0]
    rows = tables.footer(layout.manifest(out, done))[1]
    storage.write(layout.embeddings(out, done, model_id="vit"), b"")
    assert foreseen(source, out, NEXT_DAY).steps[1].images == 6 - rows


def test_what_is_tried_again_is_counted(place: tuple[str, str]) -> None:
    source, out = place
    refusal = TransientStorageError("Cannot get it: the store did not answer in time.")
    with patch.object(storage, "read_part", side_effect=refusal):
        night(source, out)
    found = foreseen(source, out, NEXT_DAY)
    assert (found.new, found.to_retry) == (5, 5)


def test_images_that_stay_in_place_are_not_written(place: tuple[str, str]) -> None:
    plan, run = planned(*place)
    copied = forecast(plan, run=run, wanted=[], shards_per_task=1)
    stays = forecast(replace(plan, in_place=True), run=run, wanted=[], shards_per_task=1)
    assert stays.bytes_to_write < copied.bytes_to_write - copied.bytes_to_read


def test_bytes_are_those_of_the_rows_of_the_newest_run(place: tuple[str, str]) -> None:
    source, out = place
    objects = [
        {"url": f"manifest/dt={DAY}/a.parquet", "rows": 10, "size_bytes": 1_000},
        {"url": f"embeddings/model=vit/dt={DAY}/a.parquet", "rows": 10, "size_bytes": 70_000},
        {"url": f"shards/dt={DAY}/a.tar", "size_bytes": 10**9},
    ]
    storage.write(layout.run_manifest(out, "r"), json.dumps({"objects": objects}).encode())
    storage.write(layout.latest(out), json.dumps({"run_id": "r"}).encode())
    plan, run = planned(source, out)
    stays = forecast(replace(plan, in_place=True), run=run, wanted=[embed(out)], shards_per_task=1)
    assert stays.bytes_to_write == 5 * (100 + 7_000)
