"""The images: built of files that exist, pinned, run by nobody, named the same everywhere."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

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


def test_an_image_knows_its_commit_and_is_not_built_without() -> None:
    """Groups are held against the code that planned them: an image without a commit is blind."""
    for target in ("cpu", "gpu"):
        written = stages()[target]
        at = written.index(("ARG", "GIT_COMMIT"))
        assert ("ENV", "CLIPCAP_GIT_COMMIT=${GIT_COMMIT}") in written[at:], target
        (checked,) = [w for i, w in written[at:] if i == "RUN" and w.startswith("test ")]
        command = ["sh", "-c", checked]
        codes = [
            subprocess.run(
                command, env={"GIT_COMMIT": commit}, capture_output=True, check=False
            ).returncode
            for commit in ("", "4f2a")
        ]
        assert codes == [1, 0]


@pytest.mark.parametrize(
    "file",
    [FOLDER / "Dockerfile", FOLDER / "README.md", ROOT / "Makefile", ROOT / "docs" / "workers.md"],
    ids=lambda file: file.name,
)
def test_every_build_is_told_its_commit_and_tagged_by_it(file: Path) -> None:
    builds = re.findall(r"docker build .*", file.read_text())
    known = re.compile(r"GIT_COMMIT=\$COMMIT --tag (?:\$CLIPCAP_IMAGE|clipcap:\$COMMIT)-")
    assert [line for line in builds if not known.search(line)] == []
    assert len(builds) == (2 if file.parent == FOLDER else 0)


def test_the_extras_of_an_image_are_those_that_a_night_may_ask_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (words,) = [words for i, words in WRITTEN if i == "ARG" and words.startswith("EXTRAS=")]
    asked = words.removeprefix("EXTRAS=").split(",")
    assert asked == ["telemetry", "delta"]
    assert set(asked) <= set(extras)


def test_an_image_takes_keys_from_a_file_that_is_mounted(tmp_path: Path) -> None:
    """Values with anything in them, and arguments with blanks, come through."""
    (words,) = [words for i, words in stages()["cpu"] if i == "ENTRYPOINT"]
    (tmp_path / "env").write_text("AZURE_STORAGE_SAS_TOKEN='a=b&c d$HOME'\n")
    said = "import os, sys; print(os.environ.get('AZURE_STORAGE_SAS_TOKEN'), sys.argv[1])"

    def told(keys: Path) -> str:
        command = [*json.loads(words), "python3", "-c", said, "two words"]
        env = {**os.environ, "CLIPCAP_KEYS": str(keys)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    assert told(tmp_path / "env") == "a=b&c d$HOME two words\n"
    assert told(tmp_path) == "None two words\n", "a folder, which Docker makes of what is missing"
    envs = " ".join(words for i, words in stages()["cpu"] if i == "ENV")
    (keys,) = re.findall(r"CLIPCAP_KEYS=(\S+)", envs)
    mounts = pool("docker")["variables"]["properties"]["volumes"]["default"]
    assert f"{Path(keys).parent}:{Path(keys).parent}:ro" in mounts
    assert keys in README


def test_models_that_are_fetched_stay_in_a_volume_that_belongs_to_who_runs() -> None:
    (cache,) = re.findall(r"chown 10001:10001 (\S+)", " ".join(words for _, words in WRITTEN))
    mounts = pool("docker")["variables"]["properties"]["volumes"]["default"]
    assert f"clipcap-models:{cache}" in mounts
    template = pool("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = template["containers"]
    assert {"name": "models", "mountPath": cache} in container["volumeMounts"]
    assert pool("kubernetes")["variables"]["properties"]["models"]["default"]["name"] == "models"


def images(found: Any) -> set[str]:  # noqa: ANN401 - any JSON value
    """Return every name of an image in a JSON value."""
    return set(re.findall(r"clipcap:[\w.-]+-(?:cpu|gpu)", json.dumps(found)))


def test_an_image_has_one_name_everywhere() -> None:
    """COMMIT stands for the commit: in Kubernetes `sed` replaces it, elsewhere a variable is it."""
    wanted = {f"clipcap:COMMIT-{target}" for target in ("cpu", "gpu")}
    (base,) = objects(KUBERNETES / "base" / "kustomization.yaml")
    assert {f"{one['newName']}:{one['newTag']}" for one in base["images"]} == wanted
    assert "CLIPCAP_IMAGE=clipcap:COMMIT" in base["configMapGenerator"][0]["literals"]
    assert 'sed "s|clipcap:COMMIT|$CLIPCAP_IMAGE|"' in README
    for kind in ("docker", "kubernetes"):
        assert images(pool(kind)) == {"clipcap:COMMIT-cpu"}
    pools = PREFECT["definitions"]["pools"]
    asked = {name: one["job_variables"]["image"].split("-")[-1] for name, one in pools.items()}
    assert asked == {"cpu": "cpu", "cpu_dev": "cpu", "gpu": "gpu"}
    assert images(README) == images((FOLDER / "Dockerfile").read_text()) == set()
