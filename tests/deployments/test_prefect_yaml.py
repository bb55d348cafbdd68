"""deployments/prefect.yaml: every entrypoint loads, every parameter fits, every schedule is one."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint

from tests.architecture.tree import ROOT

FILE = ROOT / "deployments" / "prefect.yaml"
WRITTEN: dict[str, Any] = yaml.safe_load(FILE.read_text())
DEPLOYMENTS: list[dict[str, Any]] = WRITTEN["deployments"]
each = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: str(one["name"]))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entrypoints are paths below the root."""
    monkeypatch.chdir(ROOT)


def load(deployment: dict[str, Any]) -> Flow[..., Any]:
    """Load a flow as a worker does, but fail where a worker would go on with a placeholder."""
    found: Flow[..., Any] = load_flow_from_entrypoint(
        deployment["entrypoint"], use_placeholder_flow=False
    )
    return found


@each
def test_the_entrypoint_of_a_deployment_loads(deployment: dict[str, Any]) -> None:
    assert load(deployment).name in deployment["name"]


@each
def test_the_parameters_of_a_deployment_are_those_of_its_flow(deployment: dict[str, Any]) -> None:
    flow = load(deployment)
    given = deployment["parameters"]
    inspect.signature(flow.fn).bind(**given)
    flow.validate_parameters(given)


@each
def test_a_misspelt_setting_is_refused(deployment: dict[str, Any]) -> None:
    given = {**deployment["parameters"], "settings": {"sepling": 1}}
    with pytest.raises(ParameterTypeError, match="sepling"):
        load(deployment).validate_parameters(given)


@each
def test_every_choice_in_prefects_form_is_explained(deployment: dict[str, Any]) -> None:
    schema = load(deployment).parameters
    models = {name: found for name, found in schema.definitions.items() if "properties" in found}
    assert [name for name, found in models.items() if not found.get("description")] == []
    choices = [("parameters", schema.properties)]
    choices += [(name, found["properties"]) for name, found in models.items()]
    unexplained = [
        f"{model}.{name}"
        for model, properties in choices
        for name, found in properties.items()
        if "description" not in found and "$ref" not in found  # a model of the same words as these
    ]
    assert unexplained == []


@each
def test_a_run_waits_for_the_one_before_it_and_is_not_dropped(deployment: dict[str, Any]) -> None:
    if "group" in deployment["tags"]:
        assert "concurrency_limit" not in deployment, "as many at a time as there are workers"
        return
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


def test_schedules_are_valid_and_only_one_of_them_is_active() -> None:
    schedules = [found for one in DEPLOYMENTS for found in one.get("schedules", [])]
    for found in schedules:
        CronSchedule(cron=found["cron"], timezone=found["timezone"])
    assert [found.get("active", True) for found in schedules].count(True) == 1


def test_stages_with_a_large_model_run_where_the_gpu_is() -> None:
    pools = {one["name"]: one["work_pool"]["name"] for one in DEPLOYMENTS}
    assert {name for name, pool in pools.items() if pool == "gpu-pool"} == {
        "nightly-gpu", "group", "embed", "caption", "train",
    }  # fmt: skip
    assert set(pools.values()) == {"cpu-pool", "gpu-pool"}


def test_the_readme_has_every_deployment_with_its_pool() -> None:
    readme = (FILE.parent / "README.md").read_text()
    for one in DEPLOYMENTS:
        flow = one["entrypoint"].rpartition(":")[2]
        assert f"| `{flow}/{one['name']}` | {one['work_pool']['name']} |" in readme


@each
def test_a_deployment_is_described_and_tagged_for_the_automations(
    deployment: dict[str, Any],
) -> None:
    assert deployment["description"].endswith(".")
    assert "clipcap" in deployment["tags"]
    assert set(deployment["tags"]) & {"nightly", "stage", "dev", "group"}


def test_what_is_tried_out_goes_elsewhere_and_waits_behind_the_nights() -> None:
    night, trial = (one for one in DEPLOYMENTS if one["name"] in ("nightly", "nightly-dev"))
    assert night["parameters"]["out"] != trial["parameters"]["out"]
    assert night["parameters"]["source"] == trial["parameters"]["source"]
    assert (night["work_pool"]["work_queue_name"], trial["work_pool"]["work_queue_name"]) == (
        "default",
        "dev",
    )
    assert "schedules" not in trial


def test_the_readme_says_which_variables_are_read_when_deploying() -> None:
    text = FILE.read_text()
    readme = (FILE.parent / "README.md").read_text()
    for name in set(re.findall(r"{{ \$(\w+) }}", text)):
        assert f"\n{name}=" in readme, name
