"""Threads of the model that wait leave the cores to those who decode."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAYS = "import flows, os; print(os.environ['OMP_WAIT_POLICY'])"


@pytest.mark.parametrize(("given", "found"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_a_person_says_otherwise(
    given: str | None, found: str
) -> None:
    """Before torch is loaded: its OpenMP reads this once."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run(
        [sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found


def test_a_flow_sets_it_before_it_loads_torch() -> None:
    says = "import flows.nightly, flows.cli, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
