"""The S3 server of the tests ends with its last user, however that one ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.servers import missing_programs

USER = """
import sys, time
from pathlib import Path
from tests.servers import shared_s3
with shared_s3(Path(sys.argv[1])) as address:
    print(address.endpoint, flush=True)
    time.sleep(300)
"""


def answers(endpoint: str) -> bool:
    """Tell whether a server listens there."""
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.s3
@pytest.mark.skipif(bool(missing_programs()), reason="no Ceph on this machine")
def test_a_killed_test_run_leaves_no_server_behind(tmp_path: Path) -> None:
    command = (sys.executable, "-c", USER, str(tmp_path / "s3"))
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as user:
        endpoint = (user.stdout.readline() if user.stdout else "").strip()
        assert answers(endpoint)
        user.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 30
    while (tmp_path / "s3" / "ceph").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not answers(endpoint)
    assert not (tmp_path / "s3" / "ceph").exists()
