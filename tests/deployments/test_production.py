"""A server as it stands in production: PostgreSQL, a login, everything of deployments/README.md."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests import postgres
from tests.architecture.tree import ROOT
from tests.command import clipcap
from tests.deployments.files import FOLDER
from tests.nights import draw
from tests.prefect_servers import prefect_server, worker
from tests.tables import glob

LOGIN = "admin:only-for-tests"
SCHEDULED_WITHIN_S = 90.0


@pytest.mark.prefect_server
@pytest.mark.slow
@pytest.mark.timeout(600)  # a server, a worker and a dozen commands, one after the other
def test_a_night_on_postgresql_behind_a_login_is_scheduled_and_run(tmp_path: Path) -> None:
    if missing := postgres.missing():
        pytest.skip(f"No PostgreSQL: {missing}.")
    draw(tmp_path / "in" / "drawing.png", 1)
    places = {
        "CLIPCAP_ROOT": str(ROOT),
        "CLIPCAP_SOURCE": f"{tmp_path}/in",
        "CLIPCAP_OUT": f"{tmp_path}/out",
        "CLIPCAP_DEV_OUT": f"{tmp_path}/dev",
    }
    automations = FOLDER / "automations.yaml"
    with (
        postgres.running() as database,
        prefect_server(
            tmp_path / "server",
            {"PREFECT_API_AUTH_STRING": LOGIN},
            PREFECT_SERVER_API_AUTH_STRING=LOGIN,
            PREFECT_API_DATABASE_CONNECTION_URL=database,
        ) as server,
    ):
        server.make_pools("cpu-pool", "gpu-pool")
        prefect = ("--prefect-file", "deployments/prefect.yaml")
        server.run("deploy", *prefect, "--all", cwd=ROOT, **places)
        with temporary_settings({PREFECT_API_URL: server.url}):
            refused = clipcap("automations", "apply", automations)
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: LOGIN}):
            applied = clipcap("automations", "apply", automations)
        with worker(server, "cpu-pool", tmp_path):
            said = server.run("deployment", "run", "nightly/nightly-dev", "--watch")
        deadline = time.monotonic() + SCHEDULED_WITHIN_S
        while "SCHE" not in (tonight := server.run("flow-run", "ls", "--state", "Scheduled")):
            assert time.monotonic() < deadline, tonight
            time.sleep(1)

    assert (refused.code, "set PREFECT_API_AUTH_STRING" in refused.err) == (8, True)
    assert applied.code == 0, applied.err
    assert "'Completed'" in said
    (row,) = glob(places["CLIPCAP_DEV_OUT"], "runs").to_pylist()
    assert (row["state"], row["deployment"]) == ("Completed", "nightly-dev")
    assert not Path(places["CLIPCAP_OUT"]).exists()
    written = [file for file in (tmp_path / "dev").rglob("*") if file.is_file()]
    assert [file for file in written if b"only-for-tests" in file.read_bytes()] == []
