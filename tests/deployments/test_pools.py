"""Templates of work pools: whole, the same everywhere, and nobody is root."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration

from tests.deployments.files import POOLS, PREFECT, pool
from tests.prefect_servers import PrefectServer

each = pytest.mark.parametrize("kind", POOLS)


@each
def test_every_placeholder_is_a_variable_and_every_variable_is_used(kind: str) -> None:
    template = pool(kind)
    placed = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert placed == set(template["variables"]["properties"])


@each
def test_every_variable_is_explained(kind: str) -> None:
    properties: dict[str, Any] = pool(kind)["variables"]["properties"]
    assert [name for name, found in properties.items() if not found.get("description")] == []


@each
def test_no_example_of_prefects_own_template_is_left(kind: str) -> None:
    """They name images of others, on servers of others."""
    properties: dict[str, Any] = pool(kind)["variables"]["properties"]
    assert [name for name, found in properties.items() if "examples" in found] == []


@each
def test_runs_have_the_environment_of_the_deployments(kind: str) -> None:
    given = pool(kind)["variables"]["properties"]["env"]["default"]
    wanted = PREFECT["definitions"]["environment"]
    assert {name: given[name] for name in wanted} == wanted
    assert given.keys() - wanted.keys() <= {"PREFECT_HOME"}  # a worker hands its own one down


def test_the_deployments_ask_for_gpus_in_words_that_the_templates_know() -> None:
    asked = set(PREFECT["definitions"]["pools"]["gpu"]["job_variables"])
    docker, kubernetes = (set(pool(kind)["variables"]["properties"]) for kind in POOLS[1:])
    assert asked <= docker | kubernetes
    assert {"device_requests", "image"} <= docker
    assert {"gpus", "image"} <= kubernetes


def test_a_container_is_nobody_and_bounded() -> None:
    made = pool("docker")["job_configuration"]
    kept = made["container_create_kwargs"]
    assert kept["user"].split(":")[0].isdecimal()
    assert kept["user"] != "0:0"
    assert kept["cap_drop"] == ["ALL"]
    assert kept["security_opt"] == ["no-new-privileges"]
    assert {"mem_limit", "memswap_limit"} <= set(made)
    assert {"nano_cpus", "pids_limit"} <= set(kept)
    assert "privileged" not in json.dumps(made)


def test_a_pod_is_nobody_and_bounded() -> None:
    spec = pool("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"]["limits"].keys() == {"cpu", "memory", "nvidia.com/gpu"}


def test_a_worker_makes_of_the_template_what_the_deployment_says(recorded: PrefectServer) -> None:
    async def made() -> ProcessJobConfiguration:
        values = dict(PREFECT["definitions"]["pools"]["gpu"]["job_variables"])
        return await ProcessJobConfiguration.from_template_and_values(pool("process"), values)

    found = asyncio.run(made())
    found.prepare_for_flow_run(FlowRun(flow_id=uuid4()))
    assert found.env["PREFECT_SERVER_EPHEMERAL_ENABLED"] == "false"
    assert found.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
