"""A night of drawings in, what it costs to share it among workers of a Prefect server out.

    python -m bench.dispatch --shards 8 --group 4

A server, two workers of the GPU pool and one of the CPU pool, polling every 2 s, on this machine.
Times by the server's clock; CPU seconds of a process that does one group which is done already.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

from clipcap import groups, manifest, storage
from clipcap.layout import Run
from clipcap.planning import PackSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings
from flows.nightly import nightly
from flows.settings import DispatchSettings, NightlySettings
from tests.architecture.tree import ROOT
from tests.nights import draw, make_tiny
from tests.prefect_servers import PrefectServer, prefect_server, worker

DEPLOYMENTS = ("nightly/nightly-workers", "group/group", "group/group-cpu")
POLL = {"PREFECT_WORKER_QUERY_SECONDS": "2"}
GROUP = """
import sys
from clipcap.groups import Group
from flows.group import group
from flows.settings import NightlySettings
group.fn(Group.model_validate_json(sys.argv[1]), NightlySettings.model_validate_json(sys.argv[2]))
"""


def main() -> None:
    """Run the night in both ways and print a row for each figure."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--shards", type=int, default=8)
    asked.add_argument("--group", type=int, default=4)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipcap-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        settings = night(folder, given.shards)
        began, cpu = time.perf_counter(), time.process_time()
        nightly.fn(str(folder / "in"), str(folder / "alone"), settings)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(f"one process: {wall:.1f} s, {cpu:.1f} CPU s")
        print(f"a group that is done already: {start_cpu_s(folder / 'alone', settings):.1f} CPU s")
        server = stack.enter_context(prefect_server(folder / "server"))
        deploy(server)
        stack.enter_context(worker(server, "cpu-pool", folder, "cpu-0", **POLL))
        for number in range(2):
            stack.enter_context(worker(server, "gpu-pool", folder, f"gpu-{number}", **POLL))
        how = DispatchSettings(shards_per_group=given.group, poll_s=1.0)
        shared = settings.model_copy(update={"dispatch": how})
        began = time.perf_counter()
        server.run(
            "deployment", "run", DEPLOYMENTS[0], "--param", f"source={folder}/in",
            "--param", f"out={folder}/shared", "--param", f"settings={shared.model_dump_json()}",
        )  # fmt: skip
        while not (folder / "shared" / "_SUCCESS").exists():
            time.sleep(0.5)
        print(f"two workers, from the command to its end: {time.perf_counter() - began:.1f} s")
        time.sleep(10)  # the server writes down the ends of runs a little later
        tell(server)


def night(folder: Path, shards: int) -> NightlySettings:
    """Draw the images of a night of so many shards, of 20 images each."""
    tiny = make_tiny(folder / "models")
    for n in range(20 * shards):
        draw(folder / "in" / f"{n}.png", n)
    return NightlySettings(
        shard=ShardSettings(pack=PackSettings(max_images=20)),
        embed=tiny.encoder,
        caption=tiny.captioner,
        label=LabelSettings(label_sets=(tiny.label_set,)),
    )


def start_cpu_s(out: Path, settings: NightlySettings) -> float:
    """Return what a process takes for a group in which nothing is to do: imports and looks."""
    run = Run("bench", storage.canonical(str(out)), "2026-11-21")
    group = groups.of(manifest.shards(run.out), "describe", run)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = [group.model_dump_json(), settings.model_dump_json()]
    subprocess.run([sys.executable, "-c", GROUP, *given], check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def deploy(server: PrefectServer) -> None:
    """Deploy what sharing a night needs."""
    server.make_pools("cpu-pool", "gpu-pool")
    names = [part for name in DEPLOYMENTS for part in ("--name", name)]
    places = {"CLIPCAP_SOURCE": "s3://nowhere/in", "CLIPCAP_OUT": "s3://nowhere/out"}
    file = str(ROOT / "deployments" / "prefect.yaml")
    server.run("deploy", "--prefect-file", file, *names, cwd=ROOT, CLIPCAP_ROOT=str(ROOT), **places)


def tell(server: PrefectServer) -> None:
    """Print what the server has recorded of the night and its groups."""
    os.environ["PREFECT_API_URL"] = server.url
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def first_task(flow_run_id: UUID) -> float:
        of = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        starts = [one.start_time for one in client.read_task_runs(flow_run_filter=of)]
        return min(one.timestamp() for one in starts if one)

    with (
        temporary_settings({PREFECT_API_URL: server.url}),
        get_client(sync_client=True) as client,
    ):
        for run in reversed(client.read_flow_runs()):
            if run.start_time is None or run.end_time is None or run.created is None:
                continue  # of a schedule
            created = run.created.timestamp()
            print(
                f"{run.name[:40]:<42} after {run.start_time.timestamp() - created:.1f} s, "
                f"first task after {first_task(run.id) - created:.1f} s, "
                f"took {run.total_run_time.total_seconds():.1f} s"
            )


if __name__ == "__main__":
    main()
