"""The units: systemd understands them, runs can write, and nobody takes the GPUs of others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deployments.files import FOLDER, README

UNITS = sorted((FOLDER / "systemd").iterdir())
CPU, GPU = "clipcap-worker-cpu.service", "clipcap-worker-gpu@.service"


def lines(unit: str) -> list[str]:
    """Return the lines of a unit."""
    return (FOLDER / "systemd" / unit).read_text().splitlines()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_a_unit(unit: Path, tmp_path: Path) -> None:
    (tmp_path / unit.name).write_text(
        unit.read_text().replace("/opt/clipcap/.venv/bin/prefect", str(shutil.which("true")))
    )
    named = tmp_path / unit.name.replace("@.", "@0.")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(named)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "clipcap" not in done.stderr
    assert "prefect-server" not in done.stderr


@pytest.mark.parametrize("unit", [CPU, GPU])
def test_a_run_may_write_into_local_folders_and_nowhere_else(unit: str) -> None:
    assert "ProtectSystem=strict" in lines(unit)
    (places,) = [line for line in lines(unit) if line.startswith("ReadWritePaths=")]
    folders = places.partition("=")[2].split()
    assert all(folder.startswith("-/") for folder in folders), "one that is missing is no error"
    assert "CLIPCAP_METRICS_FOLDER=/var/lib/node_exporter/textfile" in README
    assert "-/var/lib/node_exporter/textfile" in folders
    assert "below `/srv/clipcap`" in README
    assert "-/srv/clipcap" in folders


def test_each_worker_sees_its_own_gpu_and_the_cpu_worker_none() -> None:
    seen = {
        unit: [line for line in lines(unit) if "CUDA_VISIBLE_DEVICES" in line]
        for unit in (CPU, GPU)
    }
    assert seen == {
        CPU: ["Environment=CUDA_VISIBLE_DEVICES="],
        GPU: ["Environment=CUDA_VISIBLE_DEVICES=%i"],
    }
