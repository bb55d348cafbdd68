"""The Kustomize example: every file exists, no secret is held, nobody is root; it renders."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

from tests.deployments.files import KUBERNETES, README, objects

KUSTOMIZATIONS = sorted(KUBERNETES.rglob("kustomization.yaml"))
FILES = sorted(set(KUBERNETES.rglob("*.yaml")) - set(KUSTOMIZATIONS))
WORKLOADS = ("Deployment", "StatefulSet", "Job")


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the pod of every workload, with its name."""
    for file in FILES:
        for one in objects(file):
            if one["kind"] in WORKLOADS:
                yield one["metadata"]["name"], one["spec"]["template"]["spec"]


each = pytest.mark.parametrize(("name", "pod"), [pytest.param(*one, id=one[0]) for one in pods()])


@pytest.mark.parametrize("file", KUSTOMIZATIONS, ids=lambda file: file.parent.name)
def test_what_a_kustomization_names_exists_and_nothing_lies_about(file: Path) -> None:
    (written,) = objects(file)
    named = [*written.get("resources", ()), *written.get("components", ())]
    assert [name for name in named if not (file.parent / name).exists()] == []
    beside = {one.name for one in file.parent.glob("*.yaml")} - {file.name}
    assert beside == {name for name in named if name.endswith(".yaml")}


def test_no_secret_is_held_and_each_that_is_named_is_in_the_readme() -> None:
    text = "".join(file.read_text() for file in [*FILES, *KUSTOMIZATIONS])
    assert "secretGenerator" not in text
    assert [one["kind"] for file in FILES for one in objects(file) if one["kind"] == "Secret"] == []
    for _, pod in pods():
        for container in pod["containers"]:
            for one in container.get("env", ()):
                if chosen := one.get("valueFrom", {}).get("secretKeyRef"):
                    assert f"generic {chosen['name']} " in README
                    assert f"--from-literal={chosen['key']}=" in README


@each
def test_a_pod_is_nobody_bounded_and_without_a_key_to_the_cluster(
    name: str, pod: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert ":latest" not in container["image"]


def test_each_pool_has_a_worker_and_the_gpu_one_a_gpu() -> None:
    commands = {name: " ".join(pod["containers"][0].get("command", ())) for name, pod in pods()}
    limits = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods()}
    for kind in ("cpu", "gpu"):
        assert f"--pool {kind}-pool" in commands[f"worker-{kind}"]
    assert limits["worker-gpu"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["worker-cpu"]


def test_the_server_forgets_old_runs_as_the_one_of_the_readme_does() -> None:
    """Prefect keeps every run for ever unless it is told otherwise."""
    name = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
    server = next(pod for named, pod in pods() if named == "prefect-server")
    (said,) = [one["value"] for one in server["containers"][0]["env"] if one["name"] == name]
    assert re.findall(rf"^{name}=(.*)$", README, re.M) == [said]
    found = ServerServicesDBVacuumSettings(enabled=said)
    assert found.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    assert found.retention_period.days == 90
    assert "Runs older than 90 days leave the database" in README


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_an_overlay_renders(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: nothing renders Kustomize here.")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert {one["metadata"].get("namespace", "clipcap") for one in made} == {"clipcap"}
    places = next(
        one["data"] for one in made if one["metadata"]["name"].startswith("clipcap-places")
    )
    assert all(places.values())
    kinds = [one["kind"] for one in made]
    assert ("StatefulSet" in kinds) == (overlay == "dev")
