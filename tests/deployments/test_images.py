"""The images: built of files that exist, pinned, run by nobody, named the same everywhere."""

from __future__ import annotations

import fnmatch
import json
import re
from typing import Any

import clipcap
from tests.architecture.tree import ROOT
from tests.deployments.files import FOLDER, KUBERNETES, PREFECT, README, dockerfile, objects, pool

WRITTEN = dockerfile()


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return every stage with the instructions of what it is built on before its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, words in WRITTEN:
        if instruction == "FROM":
            base, _, name = words.partition(" AS ")
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((instruction, words))
    return found


def test_both_images_end_as_somebody_without_rights() -> None:
    for target in ("cpu", "gpu"):
        users = [words for instruction, words in stages()[target] if instruction == "USER"]
        assert users[-1] == "10001:10001", target
    user = pool("docker")["job_configuration"]["container_create_kwargs"]["user"]
    assert user == "10001:10001"


def test_what_is_copied_exists_and_gets_past_the_ignore_file() -> None:
    rules = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert "*" in rules
    copied = {
        word
        for instruction, words in WRITTEN
        if instruction == "COPY" and "--from" not in words
        for word in words.split()[:-1]
    }
    assert [word for word in copied if not (ROOT / word).exists()] == []
    assert copied == let_in
    assert any(fnmatch.fnmatch(".env", rule.removeprefix("**/")) for rule in rules)


def test_everything_is_pinned() -> None:
    bases = [words for instruction, words in WRITTEN if instruction == "ARG" and "PYTHON=" in words]
    assert re.fullmatch(r"PYTHON=python:3\.11\.\d+-slim-[a-z]+", bases[0])
    installs = [
        line
        for i, words in WRITTEN
        if i == "RUN"
        for line in words.split(" && ")
        if "install" in line
    ]
    assert all("--constraint constraints.txt" in line for line in installs)


def images(found: Any) -> set[str]:  # noqa: ANN401 - any JSON value
    """Return every name of an image in a JSON value."""
    return set(re.findall(r"clipcap:[\w.-]+", json.dumps(found)))


def test_an_image_has_one_name_everywhere() -> None:
    wanted = {f"clipcap:{clipcap.__version__}-{target}" for target in ("cpu", "gpu")}
    (base,) = objects(KUBERNETES / "base" / "kustomization.yaml")
    named = {f"{one['newName']}:{one['newTag']}" for one in base["images"]}
    assert named == wanted
    assert images(README) == wanted
    assert images((FOLDER / "Dockerfile").read_text()) == wanted
    assert images(PREFECT) | images(pool("docker")) == wanted
    assert images(pool("kubernetes")) <= wanted
    assert wanted & images(pool("kubernetes"))
