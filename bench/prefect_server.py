"""A kind of database in; how long server, deploying, the way to a first task and zombies take, out.

    python -m bench.prefect_server [--postgresql] [--deployment NAME] [--repeats 5] [--zombie]

Starts a server, a worker that asks every 2 s, and everything of prefect.yaml. A wall time on a busy
machine says little: the load average stands beside it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from statistics import median
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events import emit_event
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests import postgres
from tests.architecture.tree import ROOT
from tests.nights import draw
from tests.prefect_servers import PREFECT, PrefectServer, prefect_server, worker

DEPLOYMENTS = ROOT / "deployments"
WAIT_S = 300.0
EVERY = timedelta(seconds=20)
ENDLESS = '''"""A run that never ends."""

import os
import time
from pathlib import Path

from prefect import flow


@flow
def endless() -> None:
    Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(3_600)
'''


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--deployment", default="shard/shard", help="whose runs are started")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--zombie", action="store_true", help="kill a worker and its run, and wait")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = postgres.running() if chosen.postgresql else nullcontext("")
        with database as url:
            own = {"PREFECT_API_DATABASE_CONNECTION_URL": url} if url else {}
            for kind in ("an empty", "a known"):
                with started(folder, own, f"server up, {kind} database"):
                    pass
            with started(folder, own, "server up, a third time") as server:
                measure(server, folder, chosen.deployment, chosen.repeats)
                if chosen.zombie:
                    zombie(server, folder)


def say(what: str, seconds: float) -> None:
    """Print one measurement."""
    print(f"{what}: {seconds:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)


@contextmanager
def started(folder: Path, own: dict[str, str], what: str) -> Iterator[PrefectServer]:
    """Run a server and say how long it took to answer."""
    began = time.perf_counter()
    with prefect_server(folder / "server", None, 0, **own) as server:
        say(what, time.perf_counter() - began)
        with temporary_settings({PREFECT_API_URL: server.url}):
            yield server


def measure(server: PrefectServer, folder: Path, deployment: str, repeats: int) -> None:
    """Deploy, apply automations, and run one deployment again and again."""
    server.make_pools("cpu-pool", "gpu-pool")
    draw(folder / "in" / "drawing.png", 1)
    places = {f"CLIPCAP_{name}": f"{folder}/{name.lower()}" for name in ("OUT", "DEV_OUT")}
    places |= {"CLIPCAP_SOURCE": f"{folder}/in", "CLIPCAP_ROOT": str(ROOT)}
    began = time.perf_counter()
    server.run("deploy", "--prefect-file", "deployments/prefect.yaml", "--all", cwd=ROOT, **places)
    took_s = time.perf_counter() - began
    with get_client(sync_client=True) as client:
        say(f"prefect deploy --all, {len(client.read_deployments())} deployments", took_s)
    for _ in range(2):
        began = time.perf_counter()
        clipcap = str(Path(PREFECT).with_name("clipcap"))
        subprocess.run(
            [clipcap, "automations", "apply", str(DEPLOYMENTS / "automations.yaml")],
            env=server.environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        say("clipcap automations apply", time.perf_counter() - began)
    with (
        worker(server, "cpu-pool", folder, PREFECT_WORKER_QUERY_SECONDS="2"),
        get_client(sync_client=True) as client,
    ):
        time.sleep(5)
        starts = Starts(client, deployment)
        starts.by_command(server, folder, repeats)
        starts.by_schedule(repeats)
        starts.by_event(repeats)


class Starts:
    """How long the runs of one deployment take to their first task, in each way to start one."""

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        """Know the runs that were there before."""
        self._client, self._name = client, name
        self._deployment = client.read_deployment_by_name(name).id
        self._seen: set[UUID] = set()

    def by_command(self, server: PrefectServer, folder: Path, repeats: int) -> None:
        """Type `prefect deployment run`."""
        took, said = [], []
        for n in range(repeats):
            began = time.time()
            server.run("deployment", "run", self._name, "--param", f"out={folder}/out-{n}")
            said.append(time.time() - began)
            took.append(self._next()[1] - began)
            time.sleep(n % 2)  # not always at the same moment of the worker's two seconds
        say(f"the command itself, median of {repeats}", median(said))
        say_all("command", took)

    def by_schedule(self, repeats: int) -> None:
        """Let a schedule be due again and again."""
        often = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=EVERY))
        (made,) = self._client.create_deployment_schedules(self._deployment, [often])
        took = []
        for _ in range(repeats):
            run, first = self._next()
            due = run.expected_start_time
            took.append(first - (due.timestamp() if due else first))
        self._client.delete_deployment_schedule(self._deployment, made.id)
        say_all("due by a schedule", took)

    def by_event(self, repeats: int) -> None:
        """Say that images came, for which an automation waits."""
        trigger = {"type": "event", "expect": ["images.came"], "posture": "Reactive",
                   "threshold": 1, "within": 0}  # fmt: skip
        action = {"type": "run-deployment", "source": "selected",
                  "deployment_id": str(self._deployment)}  # fmt: skip
        told = {"name": "came", "trigger": trigger, "actions": [action]}
        self._client.create_automation(AutomationCore.model_validate(told))
        took = []
        for _ in range(repeats):
            began = time.time()
            emit_event("images.came", resource={"prefect.resource.id": "images.photos"})
            took.append(self._next()[1] - began)
        say_all("event to an automation", took)

    def _next(self) -> tuple[FlowRun, float]:
        """Wait for the next run that completes; return it, and when its first task began."""
        of = DeploymentFilter(id=DeploymentFilterId(any_=[self._deployment]))
        done = FlowRunFilter(
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Completed"]))
        )
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            runs = self._client.read_flow_runs(deployment_filter=of, flow_run_filter=done)
            for run in (one for one in runs if one.id not in self._seen):
                self._seen.add(run.id)
                mine = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
                tasks = self._client.read_task_runs(flow_run_filter=mine)
                return run, min(one.start_time.timestamp() for one in tasks if one.start_time)
            time.sleep(0.5)
        raise TimeoutError("No run completed.")


def say_all(way: str, took: list[float]) -> None:
    """Print how long the way to a first task was."""
    load = f"(load {os.getloadavg()[0]:.1f})"
    print(f"{way} to first task: median {median(took):.1f} s, least {min(took):.1f} s, "
          f"most {max(took):.1f} s {load}", flush=True)  # fmt: skip


def zombie(server: PrefectServer, folder: Path) -> None:
    """Kill a worker and its run together, and say when the server knows."""
    flow = folder / "endless.py"
    flow.write_text(ENDLESS)
    beats = '{"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}'
    server.run(
        "deploy", f"{flow.name}:endless", "--name", "endless", "--pool", "cpu-pool",
        "--tag", "clipcap", "--job-variable", beats, cwd=folder,
    )  # fmt: skip
    with worker(server, "cpu-pool", folder) as process:
        server.run("deployment", "run", "endless/endless")
        wait_for(lambda: (folder / "pid").exists())
        time.sleep(3)  # the first heartbeat is on its way
        process.send_signal(signal.SIGKILL)
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        killed = time.perf_counter()
        wait_for(lambda: state(server) == "Crashed")
        say("worker and run killed: Crashed after", time.perf_counter() - killed)


def state(server: PrefectServer) -> str:
    """Return the state of the run that never ends."""
    with get_client(sync_client=True) as client:
        found: list[FlowRun] = client.read_flow_runs(limit=200)
    (run,) = [one for one in found if one.tags == ["clipcap"]]
    return run.state_name or ""


def wait_for(happened: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("It did not happen.")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
