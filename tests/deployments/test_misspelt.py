"""What a misspelt parameter of a deployment meets on a real server: no run is made of it."""

from __future__ import annotations

import re

import pytest

from tests.architecture.tree import ROOT
from tests.prefect_servers import PrefectServer


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer) -> PrefectServer:
    """A server with the nightly deployment; no worker."""
    prefect_server.make_pools("cpu-pool")
    places = {"CLIPCAP_SOURCE": "/nowhere/in", "CLIPCAP_OUT": "/nowhere/out"}
    file = str(ROOT / "deployments" / "prefect.yaml")
    prefect_server.run(
        "deploy", "--prefect-file", file, "-n", "nightly", cwd=ROOT,
        CLIPCAP_ROOT=str(ROOT), **places,
    )  # fmt: skip
    return prefect_server


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("sorce=s3://x", ("not found on the deployment: 'sorce'", "'source', 'out'")),
        ('settings={"sepling": 1}', ("field 'settings'", "'sepling' was unexpected")),
        ('settings={"shard": {"packk": 1}}', ("field 'settings.shard'", "'packk'")),
        ('settings={"label": {"top_k": "many"}}', ("settings.label.top_k", "'integer'")),
        ("logical_date=yesterday", ("field 'logical_date'", "yesterday")),
    ],
)
@pytest.mark.prefect_server
def test_it_is_refused_with_its_place(
    deployed: PrefectServer, typed: str, said: tuple[str, ...]
) -> None:
    with pytest.raises(RuntimeError) as refused:
        deployed.run("deployment", "run", "nightly/nightly", "--param", typed)
    told = re.sub(r"\s+", " ", str(refused.value))
    for words in said:
        assert words in told
    assert "Created flow run" not in told
