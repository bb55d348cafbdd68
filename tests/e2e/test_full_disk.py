"""A night whose disk is really full says so, and ends right when there is room again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import Asked

TRIALS = int(os.environ.get("CLIPCAP_CHAOS_FAULTS", "3"))
"""Of each disk: where the output lies, and where a night keeps what it compares."""


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """Give a command that lets another one mount disks, or skip."""
    place = tmp_path_factory.mktemp("mounted")
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        tried = [*command, "mount", "-t", "tmpfs", "none", str(place)]
        if shutil.which("unshare") and not subprocess.run(tried, capture_output=True).returncode:
            return command
    pytest.skip("this machine lets nobody mount a disk in a namespace of its own (unshare)")


@pytest.mark.slow
@pytest.mark.timeout(280 + 30 * TRIALS)
def test_a_night_on_a_full_disk_says_so_and_loses_nothing(
    asked: Asked, namespace: Sequence[str], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    command = [*namespace, sys.executable, "-m", "tests.full", str(asked.source), str(place)]
    done = subprocess.run(
        [*command, str(asked.settings), str(TRIALS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["differences"] == []
    assert len(found["refused"]) == 2 * TRIALS
    for refused in found["refused"]:
        assert "No space left on device" in refused
