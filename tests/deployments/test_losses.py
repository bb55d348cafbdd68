"""A machine is lost with all that ran on it, and the server goes away: the night is completed.

On PostgreSQL, as nights are shared in production; where it is not installed, on SQLite.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import LogSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from clipcap import verify
from clipcap.errors import StalledError
from flows import _watchdog
from flows.nightly import nightly
from flows.settings import DispatchSettings, NightlySettings
from tests import postgres
from tests.architecture.tree import ROOT
from tests.command import clipcap
from tests.deployments.files import FOLDER
from tests.nights import draw, make_tiny
from tests.prefect_servers import PrefectServer, free_port, prefect_server, worker
from tests.settings import nightly_settings
from tests.tables import differences, glob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.prefect_server]

DEPLOYMENTS = ("nightly/nightly", "nightly/nightly-workers", "group/group-cpu")
HEARTBEAT = "prefect.flow-run.heartbeat"
FIRED = "prefect.automation.triggered"
IMAGES = 80
NOTICED_S = 100.0
AWAY_S = 30.0
TIMES = int(os.environ.get("CLIPCAP_CHAOS_FAULTS", "1"))
"""How often the server goes away."""
WITHIN_S = 300.0


class Site:
    """A server that can be stopped and started again, with deployments and automations."""

    def __init__(self, folder: Path, own: Mapping[str, str]) -> None:
        """Start it with variables of its own, and deploy what a night among workers needs."""
        self._folder, self._own, self._port = folder / "server", own, free_port()
        self._stack = ExitStack()
        self.server = self.start()
        self.server.make_pools("cpu-pool", "gpu-pool")
        places = {f"CLIPCAP_{name}": "s3://nowhere/x" for name in ("SOURCE", "OUT", "DEV_OUT")}
        file = ("--prefect-file", "deployments/prefect.yaml")
        names = [part for name in DEPLOYMENTS for part in ("--name", name)]
        self.server.run("deploy", *file, *names, cwd=ROOT, CLIPCAP_ROOT=str(ROOT), **places)
        with temporary_settings({PREFECT_API_URL: self.server.url}):
            applied = clipcap("automations", "apply", FOLDER / "automations.yaml")
        assert applied.code == 0, applied.err

    def start(self) -> PrefectServer:
        """Start the server, for the first time or once more."""
        return self._stack.enter_context(
            prefect_server(self._folder, None, self._port, **self._own)
        )

    def stop(self) -> None:
        """End the server."""
        self._stack.close()

    def runs(self, text: str) -> list[FlowRun]:
        """Return the runs whose name has a text."""
        wanted = FlowRunFilter(name=FlowRunFilterName(like_=text))
        with (
            temporary_settings({PREFECT_API_URL: self.server.url}),
            get_client(sync_client=True) as client,
        ):
            return client.read_flow_runs(flow_run_filter=wanted, limit=200)

    def running(self, text: str) -> FlowRun | None:
        """Return a run that is under way, has its process and has shown a sign of life."""
        for run in self.runs(text):
            if run.state and run.state.is_running() and run.infrastructure_pid and self._beats(run):
                return run
        return None

    def _beats(self, run: FlowRun) -> bool:
        of = f"prefect.flow-run.{run.id}"
        return any(one["prefect.resource.id"] == of for one in self._events(HEARTBEAT))

    def fired(self) -> set[str]:
        """Return which automations had something to do."""
        return {
            one["prefect.resource.name"] for one in self._events("prefect.automation.triggered")
        }

    def _events(self, name: str) -> list[dict[str, str]]:
        wanted = {"filter": {"event": {"name": [name]}}, "limit": 50}
        found = httpx.post(f"{self.server.url}/events/filter", json=wanted, timeout=30).json()
        return [event["resource"] for event in found["events"]]

    def begin(
        self, name: str, source: Path, out: Path, settings: NightlySettings, **environment: str
    ) -> None:
        """Ask for a night, whose process has some variables more."""
        own = ("--job-variable", f"env={json.dumps(environment)}") if environment else ()
        self.server.run(
            "deployment", "run", f"nightly/{name}", *own,
            "--param", f"source={source}", "--param", f"out={out}",
            "--param", f"settings={settings.model_dump_json()}",
        )  # fmt: skip

    def logs(self, run: FlowRun) -> str:
        """Return what a run has logged last, the newest line first."""
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        with (
            temporary_settings({PREFECT_API_URL: self.server.url}),
            get_client(sync_client=True) as client,
        ):
            found = client.read_logs(log_filter=wanted, limit=50, sort=LogSort.TIMESTAMP_DESC)
            return "\n".join(line.message for line in found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of these tests' own."""
    database = nullcontext("") if postgres.missing() else postgres.running()
    with database as url:
        own = {"PREFECT_API_DATABASE_CONNECTION_URL": url} if url else {}
        found = Site(tmp_path_factory.mktemp("site"), own)
        yield found
        found.stop()


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A folder of drawings."""
    for n in range(IMAGES):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    return tmp_path / "in"


@pytest.fixture
def settings(tmp_path: Path) -> NightlySettings:
    """A night of many small shards in two groups, all for the CPU pool."""
    tiny = make_tiny(tmp_path / "models")
    return nightly_settings(
        tiny,
        shards_per_partition=1,
        dispatch=DispatchSettings(
            deployment="group/group-cpu",
            shard_deployment="group/group-cpu",
            shards_per_group=IMAGES // 4,
            poll_s=0.5,
            worker_wait_s=WITHIN_S,
        ),
    )


def soon(what: Callable[[], Any], within_s: float = WITHIN_S) -> Any:  # noqa: ANN401
    """Return what a function returns as soon as that is something."""
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)
    return found


def alone(source: Path, out: Path, settings: NightlySettings) -> str:
    """Run the same night in this process."""
    nightly.fn(str(source), str(out), settings.model_copy(update={"dispatch": None}))
    return str(out)


def kill(run: FlowRun, workers: dict[str, Popen[bytes]]) -> None:
    """Kill a run and its worker, as the loss of a machine does."""
    pid = int(str(run.infrastructure_pid).rpartition(":")[2])
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    (name,) = (name for name, one in workers.items() if one.pid == parent)
    workers.pop(name).kill()
    os.kill(pid, signal.SIGKILL)


def test_a_worker_killed_with_its_group_is_noticed_and_the_others_complete_the_night(
    site: Site, drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """By the project's own automation, with its own 90 seconds."""
    whole = alone(drawings, tmp_path / "whole", settings)
    out = tmp_path / "out"
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(site.server, "cpu-pool", tmp_path, name))
            for name in ("a", "b", "c")  # one of them has the night itself
        }
        site.begin("nightly-workers", drawings, out, settings)
        lost = soon(lambda: site.running("describe"))
        kill(lost, workers)
        killed = time.time()
        (crashed,) = soon(lambda: [one for one in site.runs(lost.name) if has_crashed(one, lost)])
        (night,) = soon(lambda: [one for one in site.runs(f"nightly {drawings}") if is_over(one)])
    kinds = ("without heartbeat has crashed", "failed or crashed")
    automations = {f"clipcap: a run {kind}" for kind in kinds}
    assert soon(lambda: automations <= site.fired())
    assert crashed.state.message == "No heartbeat for 90 seconds."
    assert at(crashed) - killed < NOTICED_S
    assert night.state_name == "Completed"
    assert differences(str(out), whole) == []
    assert len(site.runs(lost.name)) == 2, "the group was given out once more"


def has_crashed(one: FlowRun, run: FlowRun) -> bool:
    """Tell whether a run is this one, and was declared dead."""
    return one.id == run.id and one.state_type == StateType.CRASHED


def is_over(run: FlowRun) -> bool:
    """Tell whether a run has ended."""
    return run.state is not None and run.state.is_final()


def at(run: FlowRun) -> float:
    """Return when a run came to its state."""
    assert run.state is not None
    moment: datetime = run.state.timestamp
    return moment.timestamp()


@pytest.mark.parametrize("name", ["nightly", "nightly-workers"])
def test_a_server_that_is_away_for_half_a_minute_costs_no_night(
    site: Site, drawings: Path, tmp_path: Path, settings: NightlySettings, name: str
) -> None:
    whole = alone(drawings, tmp_path / "whole", settings)
    how = settings.dispatch if name == "nightly-workers" else None
    settings = settings.model_copy(update={"dispatch": how})
    began = "describe" if how else f"nightly {drawings}"
    with ExitStack() as stack:
        for one in ("a", "b"):
            stack.enter_context(worker(site.server, "cpu-pool", tmp_path, one))
        for number in range(TIMES):
            out = tmp_path / f"out-{number}"
            site.begin(name, drawings, out, settings)
            soon(lambda: site.running(began))
            time.sleep(number % 10 / 5)  # not always at the same moment
            site.stop()
            time.sleep(AWAY_S)
            site.server = site.start()
            soon(lambda: len(over(site, drawings)) > number)  # noqa: B023
            assert [one.state_name for one in over(site, drawings)] == ["Completed"] * (number + 1)
            assert differences(str(out), whole) == []
            assert verify.verify(str(out)).problems == ()
            states = [row["state"] for row in glob(str(out), "runs").to_pylist()]
            assert states == ["Completed"]


def over(site: Site, drawings: Path) -> list[FlowRun]:
    """Return the nights that have ended."""
    return [one for one in site.runs(f"nightly {drawings}") if is_over(one)]


HANGS = """
import os, sys, threading

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "clipcap.stages.publish":
            sys.meta_path.remove(self)
            from clipcap import snapshots
            snapshots.publish = lambda *_: threading.Event().wait(600)

if "PREFECT__FLOW_RUN_ID" in os.environ:
    sys.meta_path.insert(0, Finder())
"""
"""A module `sitecustomize`, which lets the process of a flow run wait for ever before its end."""


def test_a_night_that_hangs_ends_itself_and_the_next_one_goes_on(
    site: Site, drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    """A worker would wait for it for ever."""
    settings = settings.model_copy(update={"dispatch": None})
    whole, out = alone(drawings, tmp_path / "whole", settings), tmp_path / "out"
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs" / "sitecustomize.py").write_text(HANGS)
    hangs = {"PYTHONPATH": f"{tmp_path}/hangs", _watchdog.VARIABLE: "0.3"}
    with worker(site.server, "cpu-pool", tmp_path):
        site.begin("nightly", drawings, out, settings, **hangs)
        (run,) = soon(lambda: over(site, drawings))
        assert run.state.type == StateType.CRASHED
        assert f"status code: {StalledError.exit_code}." in run.state.message
        told = soon(lambda: (logs := site.logs(run)) * ("MainThread" in logs))
        assert "Nothing moved for 0.3 minutes" in told
        assert "snapshots.publish = lambda *_: threading.Event().wait(600)" in told
        (row,) = glob(str(out), "runs").to_pylist()
        assert row["state"] == "Failed"
        site.begin("nightly", drawings, out, settings)
        soon(lambda: len(over(site, drawings)) == 2)
    assert {one.state_name for one in over(site, drawings)} == {"Crashed", "Completed"}
    assert differences(str(out), whole) == []
