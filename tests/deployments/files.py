"""The files of `deployments/`, read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.architecture.tree import ROOT

FOLDER = ROOT / "deployments"
KUBERNETES = FOLDER / "kubernetes"
PREFECT: dict[str, Any] = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
README = (FOLDER / "README.md").read_text()
POOLS = ("process", "docker", "kubernetes")


def pool(kind: str) -> dict[str, Any]:
    """Return the template of a kind of work pool."""
    found: dict[str, Any] = json.loads((FOLDER / "pools" / f"{kind}.json").read_text())
    return found


def objects(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a YAML file."""
    return [one for one in yaml.safe_load_all(file.read_text()) if one]


def dockerfile() -> list[tuple[str, str]]:
    """Return the Dockerfile as pairs of an instruction and its words."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip())
    return [(name, " ".join(words.split())) for name, _, words in pairs]
