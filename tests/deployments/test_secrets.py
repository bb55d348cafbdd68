"""A secret typed into a deployment's parameters: refused before anything is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from clipcap import credentials
from clipcap.errors import SettingsError
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.architecture.tree import ROOT
from tests.prefect_servers import PrefectServer

CANARY = "C4N4RYs3cr3t"
URL = f"s3://AKIA:{CANARY}@bucket/photos"
SIGNED = f"https://host/photos.csv?X-Amz-Signature={CANARY}"


def places_with(folder: Path, secret: str) -> list[str]:
    """Return the files below a folder that hold a text anywhere in their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if secret.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer) -> str:
    """A deployment of the nightly flow, which nobody works on."""
    prefect_server.make_pools("secrets-pool")
    prefect_server.run(
        "deploy", "flows/nightly.py:nightly", "--name", "secrets", "--pool", "secrets-pool",
        "--param", "source=in", "--param", "out=out", cwd=ROOT,
    )  # fmt: skip
    return "nightly/secrets"


@pytest.mark.parametrize(
    "parameter",
    [
        f"source={URL}",
        f"out={URL}",
        f"source={SIGNED}",
        "settings=" + json.dumps({"label": {"label_sets": ["scene_things", SIGNED]}}),
        "settings=" + json.dumps({"shard": {"options": {"base": URL}}}),
        "settings=" + json.dumps({"shard": {"options": {"secret": CANARY}}}),
        "settings=" + json.dumps({"publish": {"sinks": {"coco": {"sas_token": CANARY}}}}),
        "settings=" + json.dumps({"embed": {"model": SIGNED}}),
        "settings=" + json.dumps({"drift": {"canaries": SIGNED}}),
    ],
)
def test_a_run_with_a_secret_is_refused_and_not_stored(
    deployed: str, prefect_server: PrefectServer, parameter: str
) -> None:
    with pytest.raises(RuntimeError) as refused:
        prefect_server.run("deployment", "run", deployed, "--param", parameter)
    said = " ".join(str(refused.value).partition(parameter)[2].split())
    assert "must not carry credentials" in said
    assert CANARY not in said
    assert places_with(prefect_server.home.parent, CANARY) == []


def test_a_deployment_with_a_secret_is_refused_and_not_stored(
    prefect_server: PrefectServer, deployed: str
) -> None:
    with pytest.raises(RuntimeError, match="must not carry"):
        prefect_server.run(
            "deploy", "flows/nightly.py:nightly", "--name", "typed", "--pool", "secrets-pool",
            "--param", f"source={URL}", cwd=ROOT,
        )  # fmt: skip
    assert places_with(prefect_server.home.parent, CANARY) == []


def test_a_call_with_a_secret_is_refused_before_the_server_hears_of_it(
    recorded: PrefectServer, tmp_path: Path
) -> None:
    held = {"label": {"label_sets": [SIGNED]}}
    for source, settings in ((URL, None), ("in", held)):
        given = {} if settings is None else {"settings": settings}
        with pytest.raises(SettingsError) as refused:
            cast("Any", nightly)(source, str(tmp_path / "out"), **given)
        assert CANARY not in str(refused.value)
    with pytest.raises(SettingsError):
        NightlySettings.model_validate(held)
    assert places_with(recorded.home.parent, CANARY) == []


def test_no_file_of_the_deployments_has_a_secret_in_an_address() -> None:
    files = sorted((ROOT / "deployments").rglob("*.y*ml"))
    assert len(files) >= 2
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            credentials.refuse(document)


def test_a_flow_that_was_scheduled_with_a_secret_refuses_it_and_does_not_repeat_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody checks the parameters of a schedule before; Prefect logs those it finds invalid."""
    for given in ({"source": URL}, {"source": "in", "settings": {"embed": {"model": SIGNED}}}):
        with pytest.raises(SettingsError) as refused:
            nightly.validate_parameters({"out": "out", **given})
        assert CANARY not in str(refused.value) + caplog.text
