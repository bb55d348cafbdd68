"""A group of shards in one process, and how many tasks a night has, without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from clipcap import groups, layout, manifest, plans, storage
from clipcap.errors import SettingsError, StorageError
from clipcap.layout import Run, Shard
from clipcap.stages import shard as shard_stage
from flows import _join
from flows.group import group
from flows.nightly import nightly
from flows.settings import DispatchSettings, NightlySettings
from flows.shard import shard
from tasks._task import cut
from tests.flows.test_nightly import spoil_one_tar
from tests.nights import draw
from tests.tables import differences, glob

IMAGES_A_SHARD = 2_000
NIGHT = 10_000_000 // IMAGES_A_SHARD
YEARS = 3 * 365 * NIGHT


def told(work: groups.Group) -> groups.Told:
    """Return what a process without a flow run has told."""
    found = groups.read(work, "")
    assert found is not None
    return found


def test_groups_leave_what_a_night_leaves_and_say_who_did_it(
    drawings: Path, tmp_path: Path, settings: NightlySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__WORKER_NAME", "gpu-7")
    out, whole = str(tmp_path / "out"), str(tmp_path / "whole")
    nightly.fn(str(drawings), whole, settings, date(2026, 11, 21))
    run = Run("run-1", storage.canonical(out), "2026-11-21")
    plan = shard_stage.plan(str(drawings), run=run, settings=settings.shard)
    planned = [part.shard for part in plan.planned]

    phases: tuple[groups.Phase, ...] = ("shard", "describe")
    for phase in phases:
        work = groups.of(planned, phase, run)
        group.fn(work, settings)
        outcomes = told(work).outcomes
        assert {one.worker.partition("@")[0] for one in outcomes} == {"gpu-7"}

    assert differences(out, whole) == []


def test_a_shard_that_the_run_has_written_is_not_written_again(
    drawings: Path, tmp_path: Path, settings: NightlySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves some of its group; what it counted can be told without it."""
    (drawings / "broken.png").write_bytes(b"no picture")
    run = Run("run-1", storage.canonical(str(tmp_path / "out")), "2026-11-21")
    plan = shard_stage.plan(str(drawings), run=run, settings=settings.shard)
    work = groups.of([part.shard for part in plan.planned], "shard", run)
    group.fn(work, settings)
    first = told(work).outcomes
    monkeypatch.setattr("clipcap.intake.take_in", lambda *_, **__: pytest.fail("read an image"))

    group.fn(work, settings)

    assert told(work).failure is None
    for one, other in zip(first, told(work).outcomes, strict=True):
        for name in ("shard", "state", "rows", "computed", "rejected", "reasons", "examples"):
            assert getattr(one, name) == getattr(other, name)
        assert (one.bytes_read, one.bytes_written) == (other.bytes_read, other.bytes_written)


def test_why_a_group_failed_is_written_down_before_it_ends(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    shard.fn(str(drawings), out, settings.shard)
    bad = spoil_one_tar(out)
    run = Run("run-1", storage.canonical(out), "2026-11-21")
    work = groups.of(manifest.shards(run.out), "describe", run)

    with pytest.raises(StorageError):
        group.fn(work, settings)

    failure = told(work).failure
    assert failure is not None
    assert (failure.kind, failure.is_retryable) == ("StorageError", False)
    assert str(bad) in failure.sentence


def test_a_group_planned_by_other_code_is_refused_with_what_to_do(
    tmp_path: Path, settings: NightlySettings
) -> None:
    run = Run("run-1", storage.canonical(str(tmp_path / "out")), "2026-11-21")
    work = groups.of([Shard("2026-11-21", "a")], "describe", run)
    work = work.model_copy(update={"version": "0.0.1"})
    with pytest.raises(SettingsError, match="restart it"):
        group.fn(work, settings)
    assert told(work).failure is not None


def test_how_a_night_is_shared_changes_no_fingerprint(settings: NightlySettings) -> None:
    shared = settings.model_copy(update={"dispatch": DispatchSettings()})
    for name in ("shard", "embed", "caption", "label"):
        assert getattr(shared, name) == getattr(settings, name)


def test_the_devices_of_a_shared_night_are_those_of_its_workers(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """The night itself runs in the CPU pool; it gets as far as asking for the server."""
    speed = settings.speed.model_copy(update={"device": "cuda:7"})
    asked = settings.model_copy(update={"speed": speed, "dispatch": DispatchSettings()})
    with pytest.raises(SettingsError, match="needs a Prefect server"):
        nightly.fn(str(drawings), str(tmp_path / "out"), asked)


# --- how many tasks there are -------------------------------------------------------------------


def test_ten_million_images_on_top_of_years_are_about_two_thousand_task_runs() -> None:
    """Prefect keeps 20 KB of each; docs/workers.md has the same sums."""
    here, there = NightlySettings(), DispatchSettings()
    assert YEARS * IMAGES_A_SHARD > 10_000_000_000
    few = len(("check", "check", "check", "plan", "rejects", "look", "drift", "publish"))

    one_process = 4 * plans.task_count(NIGHT, here.shards_per_partition) + few
    groups_of_a_phase = plans.task_count(NIGHT, there.shards_per_group)
    of_a_group = {"task": 1, "Prefect's own for the child": 1}
    written = groups_of_a_phase * (sum(of_a_group.values()) + len(("write",)))
    described = groups_of_a_phase * (sum(of_a_group.values()) + len(("embed", "caption", "label")))

    assert one_process == 2_008
    assert written + described + few == 2_008


@pytest.mark.parametrize("size", [1, 10, 20])
def test_there_are_never_more_than_five_hundred_partitions(size: int) -> None:
    """Also where all shards of years have something to do: a new captioner, old images gone."""
    shards = [Shard("2026-11-20", f"{n:05}") for n in range(12_345)]
    partitions = cut(shards, size)
    assert len(partitions) <= 500
    assert [shard for partition in partitions for shard in partition] == shards


def test_a_night_has_tasks_for_what_is_new_whatever_there_is_already(
    drawings: Path, tmp_path: Path, settings: NightlySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Counter[str]] = []
    call, each = _join.call, _join.each

    def counted_call(task: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        ran[-1][task.name] += 1
        return call(task, *args, **kwargs)

    def counted_each(task: Any, partitions: Sequence[Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        ran[-1][task.name] += len(partitions)
        return each(task, partitions, *args, **kwargs)

    monkeypatch.setattr(_join, "call", counted_call)
    monkeypatch.setattr(_join, "each", counted_each)
    outcomes = []
    for night in range(4):
        ran.append(Counter())
        for n in range(2):
            draw(drawings / f"late-{night}-{n}.png", 10 + 2 * night + n)
        done = nightly.fn(str(drawings), str(tmp_path / "out"), settings)
        outcomes.append(Counter((one.stage, one.state) for one in done.night.outcomes))

    assert ran[1] == ran[2] == ran[3]
    assert [ran[3][f"{name}_partition"] for name in ("embed", "caption", "label")] == [1, 1, 1]
    live = len(manifest.shards(storage.canonical(str(tmp_path / "out"))))
    assert outcomes[3]["embed", "unchanged"] == live - 1, "the report still has every shard"
    rows = glob(str(tmp_path / "out"), "shard_runs").to_pylist()
    assert sum(row["stage"] == "label" for row in rows) >= live
    assert storage.info(layout.success(storage.canonical(str(tmp_path / "out")))) is not None
