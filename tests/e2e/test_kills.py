"""A night killed at any point, and run again, leaves what a night leaves that was not killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Asked

POINTS = 10


@pytest.mark.slow
def test_a_night_killed_at_ten_points_ends_as_one_that_was_not(
    asked: Asked, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    command = [sys.executable, "-m", "tests.killed", str(asked.source), out, str(asked.settings)]
    done = subprocess.run(
        [*command, str(POINTS)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["differences"] == []
    assert found["changes"] > POINTS
