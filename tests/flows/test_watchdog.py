"""Work that hangs ends its process, whoever holds the interpreter; work that goes on does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipcap import alive
from clipcap.errors import SettingsError, StalledError
from flows import _watchdog
from tests.architecture.tree import ROOT
from tests.tables import glob

LIMIT_S = 3.0
ENDS_WITHIN_S = 60.0


def hung(how: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run something that hangs, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.hung", how, str(out)],
        cwd=ROOT,
        env={**os.environ, _watchdog.VARIABLE: str(LIMIT_S / 60)},
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )


def test_a_run_that_hangs_ends_with_its_row_and_says_where_it_stood(tmp_path: Path) -> None:
    ended = hung("sleep", tmp_path)

    assert ended.returncode == StalledError.exit_code
    assert "threading.Event().wait(LONG_S)" in ended.stderr
    (row,) = glob(str(tmp_path), "runs").to_pylist()
    assert row["state"] == "Failed"
    assert row["error_message"].startswith("Nothing moved for 0.05 minutes")


def test_native_code_that_holds_the_interpreter_is_ended_too(tmp_path: Path) -> None:
    ended = hung("native", tmp_path)

    assert ended.returncode != 0
    assert "tests/hung.py" in ended.stderr


@pytest.mark.parametrize("how", ["steps", "waits"])
def test_a_run_that_takes_steps_or_waits_for_others_is_left_alone(how: str, tmp_path: Path) -> None:
    assert hung(how, tmp_path).returncode == 0


def test_a_run_of_a_deployment_alone_is_watched_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(_watchdog.VARIABLE)
    assert _watchdog.limit_s() is None
    monkeypatch.setattr(_watchdog, "_is_deployed", lambda: True)
    assert _watchdog.limit_s() == 3_600
    monkeypatch.setenv(_watchdog.VARIABLE, "0")
    assert _watchdog.limit_s() is None
    monkeypatch.setenv(_watchdog.VARIABLE, "1.5")
    assert _watchdog.limit_s() == 90


@pytest.mark.parametrize("written", ["soon", "-1", "inf", "nan"])
def test_a_variable_that_is_no_number_of_minutes_is_refused(
    written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_watchdog.VARIABLE, written)
    with pytest.raises(SettingsError, match="CLIPCAP_WATCHDOG_MINUTES must be a number of minutes"):
        _watchdog.limit_s()


def test_steps_reset_the_clock() -> None:
    alive.beat()
    time.sleep(0.02)
    assert 0.02 <= alive.silent_s() < 1
    with alive.waiting():
        assert alive.silent_s() == 0
    assert alive.silent_s() < 0.02
