"""Real processes killed at random times leave nothing that one more run does not put right.

`CLIPCAP_CHAOS_KILLS` says how many kills each flow gets on the local disk; half as many on S3.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.flows import FLOWS
from tests.conftest import users_own

KILLS = int(os.environ.get("CLIPCAP_CHAOS_KILLS", "3"))
ON_A_BUCKET = FLOWS if KILLS > 10 else ("nightly",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_killed_at_any_time_ends_as_one_that_was_not(flow: str, tmp_path: Path) -> None:
    require_unharmed(trials(flow, str(tmp_path / "place"), KILLS))


@pytest.mark.s3
@pytest.mark.parametrize("flow", ON_A_BUCKET)
def test_a_flow_killed_on_a_bucket_ends_as_one_that_was_not(flow: str, bucket: str) -> None:
    require_unharmed(trials(flow, f"{bucket}/killed", math.ceil(KILLS / 2)))


def test_what_make_chaos_asks_for_reaches_the_tests() -> None:
    """It went with the variables of users, and `make chaos` did no more than `make test`."""
    asked = [f"CLIPCAP_CHAOS_{name}" for name in ("EXAMPLES", "FAULTS", "KILLS")]
    assert users_own([*asked, "CLIPCAP_SOURCE", "HOME"]) == ["CLIPCAP_SOURCE"]


def trials(flow: str, place: str, kills: int) -> dict[str, Any]:
    """Kill a flow so often, in processes of their own; return what came of it."""
    command = [sys.executable, "-m", "tests.chaos.kills", flow, place, str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    sys.stdout.write(f"{done.stdout}\n")
    return found


def require_unharmed(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    assert found["killed"] > 0
