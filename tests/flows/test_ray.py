"""A night on a Ray cluster: the tables of a night in one process, and a node may be lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client

from clipcap import verify
from clipcap.errors import DeviceError, SettingsError
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.flows.test_in_prefect import wait_for_lines
from tests.nights import draw
from tests.prefect_servers import PrefectServer
from tests.tables import differences

DRAWINGS = 12
"""In six partitions: more than there are processes, so that a model for each would be noticed."""
ray = pytest.importorskip("prefect_ray", reason="needs the extra `ray`: pip install prefect-ray")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_night_on_two_nodes_of_which_one_dies_is_that_of_one_process(
    drawings: Path, tmp_path: Path, settings: NightlySettings, recorded: PrefectServer
) -> None:
    """Ray's own choice for a task that claims a GPU is a process, and so a model, for each."""
    for n in range(6, DRAWINGS):
        draw(drawings / f"drawing-{n}.png", n)
    nightly.fn(str(drawings), str(tmp_path / "local"), settings)
    out = str(tmp_path / "out")

    told = rayed(tmp_path, settings, recorded, str(drawings), "embed")

    assert told["state"] == "Completed", told
    assert differences(out, str(tmp_path / "local")) == []
    assert verify.verify(out).problems == ()
    kept = {path: Path(path).stat().st_mtime_ns for path in told["there"]}
    assert kept == told["there"], "what was committed when the node died was done again"
    assert any("embeddings" in path for path in kept)
    with get_client(sync_client=True) as client:
        lines = wait_for_lines(client, UUID(told["run"]), f"publish: {DRAWINGS} live images")
    loads = sum(line.startswith("loading encoder") for line in lines)
    assert 1 <= loads <= 4  # two nodes, each with a process for GPUs and one without


@pytest.mark.slow
def test_a_process_that_always_ends_is_a_lost_worker(
    tmp_path: Path, settings: NightlySettings, recorded: PrefectServer
) -> None:
    """Ray's own error is a traceback of its own."""
    told = rayed(tmp_path, settings, recorded, "", "dies")
    assert told.startswith("WorkerLostError: A node of the Ray cluster, or its process, ended")
    assert "4 times" in told


@pytest.mark.slow
def test_a_node_with_other_code_is_refused(
    drawings: Path, tmp_path: Path, settings: NightlySettings, recorded: PrefectServer
) -> None:
    told = rayed(tmp_path, settings, recorded, str(drawings), "other-code")
    assert told["state"] == "Failed"
    assert "must run the code that planned the night" in told["message"]
    assert "git 000000000000" in told["message"]
    assert not (tmp_path / "out" / "shards").exists()


def rayed(
    folder: Path, settings: NightlySettings, recorded: PrefectServer, source: str, how: str
) -> Any:  # noqa: ANN401 - JSON
    """Run `tests/rayed.py`, and return what it says."""
    (folder / "settings.json").write_text(settings.model_dump_json())
    out = str(folder / "out")
    done = subprocess.run(
        [sys.executable, "-m", "tests.rayed", source, out, str(folder / "settings.json"), how],
        env=recorded.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_that_nobody_records_cannot_go_to_ray(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    on = NightlySettings.model_validate({**settings.model_dump(), "ray": {}})
    with pytest.raises(SettingsError, match="--no-server"):
        nightly.fn(str(drawings), str(tmp_path / "out"), on)


def test_a_device_that_nodes_have_need_not_be_here(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """A head without a GPU refused nights for a cluster that has many."""
    value = {**settings.model_dump(), "ray": {}, "speed": {"device": "cuda:7"}}
    with pytest.raises(SettingsError, match="--no-server"):
        nightly.fn(str(drawings), str(tmp_path / "out"), NightlySettings.model_validate(value))


def test_a_cluster_without_room_for_a_partition_is_refused(
    drawings: Path, tmp_path: Path, settings: NightlySettings, recorded: PrefectServer
) -> None:
    """Ray would wait for ever for a node that has the room."""
    (tmp_path / "settings.json").write_text(
        NightlySettings.model_validate(
            {**settings.model_dump(), "ray": {"gpus_per_task": 8}}
        ).model_dump_json()
    )
    command = [sys.executable, "-m", "clipcap", "run", str(drawings), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--settings", str(tmp_path / "settings.json")],
        env=recorded.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == DeviceError.exit_code
    assert "none of the 1 has" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
