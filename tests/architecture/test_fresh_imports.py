"""What a fresh interpreter loads: a flow, or the command's help, waits for no model library."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.architecture.tree import ROOT

MODEL_LIBRARIES = ["torch", "torchvision", "open_clip", "transformers", "webdataset"]
SERVER = ["prefect.server", "fastapi", "sqlalchemy", "uvicorn"]
SLOW = ["prefect", "botocore", "pandas", "duckdb"]


def loaded(statement: str, wanted: list[str]) -> list[str]:
    """Return which of `wanted` a fresh interpreter has loaded after `statement`."""
    found = f"[name for name in {wanted} if name in sys.modules]"
    code = f"{statement}\nimport json, sys\nprint(json.dumps({found}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def test_flows_and_tasks_are_read_without_model_libraries_or_server_code() -> None:
    files = [path for name in ("flows", "tasks") for path in (ROOT / name).rglob("[!_]*.py")]
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    assert loaded(f"import {', '.join(names)}", MODEL_LIBRARIES + SERVER) == []


def test_the_commands_help_waits_for_nothing_slow() -> None:
    asked = "from contextlib import suppress\nfrom flows.cli import main\nimport sys\n"
    asked += "sys.argv = ['clipcap', '--help']\nwith suppress(SystemExit): main()"
    assert loaded(asked, MODEL_LIBRARIES + SERVER + SLOW) == []
