"""The import contracts of pyproject.toml are kept, and each would notice a violation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT

PLANTS: dict[str, tuple[str, str]] = {
    "direction": ("clipcap/keys.py", "import tasks"),
    "layers": ("clipcap/keys.py", "import clipcap.storage"),
    "neighbours": ("clipcap/decoders/greedy.py", "import clipcap.decoders.beam"),
    "tasks": ("tasks/label.py", "import tasks.caption"),
    "prefect": ("clipcap/settings.py", "import prefect"),
    "storage": ("clipcap/intake.py", "import clipcap.web"),
    "clients": ("clipcap/layout.py", "import obstore"),
    "open_clip": ("clipcap/captioner.py", "import open_clip"),
    "transformers": ("clipcap/trainer.py", "import transformers"),
    "light_flows": ("flows/nightly.py", "import torch"),
}
"""Contract to a file and the line that must break it there."""


def contracts() -> dict[str, str]:
    """Return the name of each contract by its id."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = settings["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract["name"] for contract in found}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages of `folder`."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    """The packages and their contracts, free to be spoilt."""
    for name in PACKAGES:
        keep = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.json", "*.jpg", "*.png")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=keep)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_each_contract_has_a_planted_violation() -> None:
    assert set(PLANTS) == set(contracts())


@pytest.mark.parametrize("contract", PLANTS)
def test_a_planted_violation_breaks_its_contract(contract: str, copied_tree: Path) -> None:
    path, line = PLANTS[contract]
    spoilt = copied_tree / path
    assert spoilt.is_file(), f"{path} is gone; plant the violation elsewhere"
    spoilt.write_text(f"{spoilt.read_text()}\n{line}\n")

    done = lint_imports(copied_tree)

    assert done.returncode == 1, done.stdout
    assert f"{contracts()[contract]} BROKEN" in done.stdout


def test_a_module_without_a_layer_is_noticed(copied_tree: Path) -> None:
    (copied_tree / "clipcap" / "newcomer.py").write_text('"""In no layer."""\n')
    assert "- clipcap.newcomer" in lint_imports(copied_tree).stdout
