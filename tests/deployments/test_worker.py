"""A real server and a real worker: what is deployed is scheduled, and runs to its end."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events import emit_event
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Scheduled

from clipcap import verify
from flows.settings import NightlySettings
from tests.architecture.tree import ROOT
from tests.nights import draw, make_tiny
from tests.prefect_servers import PrefectServer, worker
from tests.tables import glob

SCHEDULED_WITHIN_S = 60.0
RUN_WITHIN_S = 240.0


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of prefect.yaml, deployed from the root; its source and output below a folder."""
    folder = tmp_path_factory.mktemp("deployed")
    for n in range(5):
        draw(folder / "in" / f"drawing-{n}.png", n)
    prefect_server.make_pools("cpu-pool", "gpu-pool")
    file = str(ROOT / "deployments" / "prefect.yaml")
    places = {"CLIPCAP_SOURCE": f"{folder}/in", "CLIPCAP_OUT": f"{folder}/out"}
    places |= {"CLIPCAP_DEV_OUT": f"{folder}/dev", "CLIPCAP_IMAGE": "clipcap:4f2a"}
    said = prefect_server.run(
        "deploy", "--prefect-file", file, "--all", cwd=ROOT, CLIPCAP_ROOT=str(ROOT), **places
    )
    assert "'nightly/nightly' successfully created" in said
    return folder


def test_a_deployed_night_is_scheduled_for_the_nights_to_come(
    deployed: Path, recorded: PrefectServer
) -> None:
    """With SQLAlchemy 2.1 the scheduler failed silently, and no cron run was ever made."""
    waiting = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    )
    deadline = time.monotonic() + SCHEDULED_WITHIN_S
    with get_client(sync_client=True) as client:
        while not (found := client.read_flow_runs(flow_run_filter=waiting)):
            assert time.monotonic() < deadline, "no run was scheduled"
            time.sleep(0.5)
        night = client.read_deployment_by_name("nightly/nightly")
    starts = [run.next_scheduled_start_time for run in found]
    assert {run.deployment_id for run in found} == {night.id}
    assert all(start is not None and start > datetime.now(UTC) for start in starts)
    assert {(start.hour, start.minute) for start in starts if start} == {(1, 30)}


def test_containers_are_of_the_commit_that_was_deployed(
    deployed: Path, recorded: PrefectServer
) -> None:
    with get_client(sync_client=True) as client:
        images = {
            name: client.read_deployment_by_name(name).job_variables["image"]
            for name in ("nightly/nightly", "nightly/nightly-dev", "group/group")
        }
    assert list(images.values()) == ["clipcap:4f2a-cpu", "clipcap:4f2a-cpu", "clipcap:4f2a-gpu"]


def test_a_night_run_by_a_worker_is_completed_and_its_files_are_there(
    deployed: Path, prefect_server: PrefectServer, tmp_path: Path
) -> None:
    tiny = make_tiny(tmp_path / "models")
    settings = NightlySettings(embed=tiny.encoder, caption=tiny.captioner)
    settings = NightlySettings.model_validate(
        {**settings.model_dump(mode="json"), "label": {"label_sets": [tiny.label_set]}}
    )
    out = f"{tmp_path}/out"
    with worker(prefect_server, "cpu-pool", tmp_path):
        said = prefect_server.run(
            "deployment", "run", "nightly/nightly", "--watch",
            "--param", f"out={out}", "--param", f"settings={settings.model_dump_json()}",
        )  # fmt: skip

    assert "'Completed'" in said
    row = glob(out, "runs").to_pylist()[0]
    assert (row["state"], row["trigger"], row["deployment"]) == (
        "Completed",
        "deployment",
        "nightly",
    )
    assert len(glob(out, "captions")) == 5
    assert verify.verify(out).problems == ()


def test_a_schedule_and_an_automation_start_runs_that_say_so(
    deployed: Path, recorded: PrefectServer, tmp_path: Path
) -> None:
    """A folder is sharded when a schedule is due, then because an event says that images came."""
    with get_client(sync_client=True) as client:
        target = client.read_deployment_by_name("shard/shard").id
        often = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=20)))
        (made,) = client.create_deployment_schedules(target, [often])
    action = {"type": "run-deployment", "source": "selected", "deployment_id": str(target)}
    trigger = {
        "type": "event",
        "expect": ["images.came"],
        "posture": "Reactive",
        "threshold": 1,
        "within": 0,
    }
    came = AutomationCore.model_validate({"name": "came", "trigger": trigger, "actions": [action]})
    with get_client(sync_client=True) as client:
        client.create_automation(came)
    with worker(recorded, "cpu-pool", tmp_path):
        wait_for(f"{deployed}/out", {"schedule"})
        with get_client(sync_client=True) as client:
            client.delete_deployment_schedule(target, made.id)
        emit_event("images.came", resource={"prefect.resource.id": "images.photos"})
        wait_for(f"{deployed}/out", {"schedule", "automation"})


def test_runs_that_start_late_keep_their_dates_and_wait_for_each_other(
    deployed: Path, recorded: PrefectServer, tmp_path: Path
) -> None:
    """Two that a dead server missed are due at once, and two workers would take them."""
    out, dates = f"{tmp_path}/out", ["2026-10-30", "2026-10-31"]
    with get_client(sync_client=True) as client:
        target = client.read_deployment_by_name("shard/shard").id
        runs = []
        for date in dates:
            due: State[Any] = Scheduled(
                scheduled_time=datetime.fromisoformat(f"{date}T23:50:00+00:00")
            )
            asked = {"source": f"{deployed}/in", "out": out}
            run = client.create_flow_run_from_deployment(target, parameters=asked, state=due)
            runs.append(run.id)
        with (
            worker(recorded, "cpu-pool", tmp_path, "a"),
            worker(recorded, "cpu-pool", tmp_path, "b"),
        ):
            deadline = time.monotonic() + RUN_WITHIN_S
            while [client.read_flow_run(run).state_name for run in runs] != ["Completed"] * 2:
                assert time.monotonic() < deadline, "they did not both complete"
                time.sleep(0.5)
        states = {state.name for run in runs for state in client.read_flow_run_states(run)}
    assert "AwaitingConcurrencySlot" in states
    assert sorted(path.name for path in Path(out, "runs").iterdir()) == [f"dt={d}" for d in dates]


def wait_for(out: str, triggers: set[str]) -> None:
    """Wait until an output has rows of completed runs that were started in these ways."""
    deadline = time.monotonic() + RUN_WITHIN_S
    found: set[tuple[str, str]] = set()
    while not {(one, "Completed") for one in triggers} <= found:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
        if Path(out, "runs").exists():
            rows = glob(out, "runs").to_pylist()
            found = {(row["trigger"], row["state"]) for row in rows}
