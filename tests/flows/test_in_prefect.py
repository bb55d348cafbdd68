"""Flows as a Prefect server sees them: states, retries, names, artifacts and log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)

from clipcap.errors import PartitionsFailedError, SettingsError, TransientStorageError
from clipcap.layout import Shard
from clipcap.outcomes import Outcome
from flows import _join
from flows._flow import flow
from flows.nightly import nightly
from flows.settings import NightlySettings
from flows.shard import shard
from tasks._task import Partition, cut, task
from tests.command import clipcap
from tests.flows.test_nightly import spoil_one_tar
from tests.nights import Tiny
from tests.prefect_servers import PrefectServer
from tests.tables import glob

SHARDS = [Shard("2026-11-20", name) for name in ("a", "b", "c")]
LOGS_LIMIT_S = 20.0  # Prefect sends log lines in batches


@pytest.fixture
def client(recorded: PrefectServer) -> Iterator[SyncPrefectClient]:
    """A client of the server."""
    with get_client(sync_client=True) as found:
        yield found


def run_id(state: State[Any]) -> UUID:
    """Return the flow run of a final state."""
    found = state.state_details.flow_run_id
    assert found is not None
    return found


def test_a_night_is_completed_with_its_artifacts_log_lines_and_row(
    drawings: Path, tmp_path: Path, settings: NightlySettings, client: SyncPrefectClient
) -> None:
    out = str(tmp_path / "out")

    state = nightly(str(drawings), out, settings, return_state=True)

    assert state.is_completed()
    flow_run = client.read_flow_run(run_id(state))
    row = glob(out, "runs").to_pylist()[0]
    assert (row["flow_run_id"], row["trigger"]) == (str(flow_run.id), "command")
    assert row["flow_run_name"] == flow_run.name == f"nightly {drawings}"
    kept = artifacts(client, flow_run.id)
    assert {"nightly-summary", "nightly-stages", None} == set(kept)  # None: the bars
    assert f"reports/{row['run_id']}/index.html" in kept["nightly-summary"]
    assert "6 images listed: 6 new" in kept["nightly-summary"]
    lines = wait_for_lines(client, flow_run.id, "publish: 6 live images")
    assert any(line.startswith("embed 20") and "2 computed" in line for line in lines)


def test_the_command_line_has_its_run_recorded_where_a_server_is_set(
    drawings: Path, tmp_path: Path, tiny: Tiny, client: SyncPrefectClient
) -> None:
    chosen = ["--model", tiny.encoder.model, "--captioner", tiny.captioner.captioner]
    out = tmp_path / "out"

    ended = clipcap("run", drawings, out, *chosen, "--label-set", tiny.label_set)

    assert ended.code == 0, ended.err
    assert [line.split()[0] for line in ended.out.splitlines()] == [
        "shard", "embed", "caption", "label", "publish", "report",
    ]  # fmt: skip
    row = glob(str(out), "runs").to_pylist()[0]
    state = client.read_flow_run(UUID(row["flow_run_id"])).state
    assert state is not None
    assert state.is_completed()


def artifacts(client: SyncPrefectClient, flow_run_id: UUID) -> dict[str | None, Any]:
    """Return what the artifacts of a run hold, by key."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    return {found.key: found.data for found in client.read_artifacts(artifact_filter=wanted)}


def wait_for_lines(client: SyncPrefectClient, flow_run_id: UUID, last: str) -> list[str]:
    """Return the log lines of a run, once the last one is there."""
    body = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])).model_dump(mode="json")
    deadline = time.monotonic() + LOGS_LIMIT_S
    lines: list[str] = []
    while time.monotonic() < deadline and not any(last in line for line in lines):
        time.sleep(0.3)
        lines = [
            log["message"]
            for log in client.request("POST", "/logs/filter", json={"logs": body}).json()
        ]
    return lines


def test_a_partition_that_fails_fails_the_run_by_name_and_no_other(
    drawings: Path, tmp_path: Path, settings: NightlySettings, client: SyncPrefectClient
) -> None:
    """A flow that only waits for its tasks would end Completed although one has failed."""
    out = str(tmp_path / "out")
    shard.fn(str(drawings), out, settings.shard)
    bad = spoil_one_tar(out)

    state = nightly(str(drawings), out, settings, return_state=True)

    assert state.is_failed()
    assert str(bad) in (state.message or "")
    told = artifacts(client, run_id(state))["nightly-summary"]
    assert "Ended: PartitionsFailedError." in told
    assert len(glob(out, "embeddings")) == 4
    runs = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id(state)]))
    )
    states = {found.name: found.state_name for found in runs if found.name.startswith("embed")}
    assert states.pop(f"embed {bad}") == "Failed"
    assert set(states.values()) == {"Completed"}


TRIED: list[str] = []


@task(run_name="try {partition}")
def fickle(partition: Partition, how: str) -> list[Outcome]:
    """Fail on shard `b`: for now, or for good."""
    name = partition.shards[0].name
    TRIED.append(name)
    if name == "b" and how == "refused":
        raise SettingsError("never")
    if name == "b" and TRIED.count("b") < 3:
        raise TransientStorageError("later")
    return []


@flow(name="fickle", run_name="fickle {how}")
def fickle_flow(how: str) -> int:
    """Run the fickle task on three partitions."""
    partitions = cut(SHARDS, 1)
    quick = fickle.with_options(retry_delay_seconds=0.01)
    return len(list(_join.joined(partitions, _join.each(quick, partitions, how))))


def test_a_store_that_says_later_costs_a_retry_of_that_partition(recorded: PrefectServer) -> None:
    TRIED.clear()
    assert fickle_flow("later") == 3
    assert sorted(TRIED) == ["a", "b", "b", "b", "c"]


def test_what_cannot_be_done_is_tried_once_and_the_neighbours_are_done(
    recorded: PrefectServer,
) -> None:
    TRIED.clear()
    with pytest.raises(PartitionsFailedError, match=r"(?s)1 of 3 .* 2026-11-20/b: never"):
        fickle_flow("refused")
    assert sorted(TRIED) == ["a", "b", "c"]
