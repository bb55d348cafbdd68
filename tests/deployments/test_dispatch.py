"""A real server and real workers share a night: the same tables, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed, Failed, Pending

from clipcap import commits, groups, layout, manifest, storage, tables, verify
from clipcap.errors import (
    ClipcapError,
    PartitionsFailedError,
    ServerError,
    SettingsError,
    StorageError,
)
from clipcap.layout import Run, Shard
from flows.nightly import nightly
from flows.settings import DispatchSettings, NightlySettings
from flows.shard import shard
from tasks import dispatch
from tests.architecture.tree import ROOT
from tests.flows.test_in_prefect import wait_for_lines
from tests.flows.test_nightly import spoil_one_tar
from tests.nights import Tiny, draw, make_tiny
from tests.prefect_servers import PrefectServer, worker
from tests.settings import nightly_settings
from tests.tables import differences, glob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a process for each group

WITHIN_S = 120.0
DEPLOYMENTS = ("nightly/nightly-workers", "group/group", "group/group-cpu")
IMAGES = 8
MANY = 120
OF_A_NIGHT = 8  # task runs of no group; for each group there are two, one of them Prefect's own
MODELS = ("encoder", "captioner")
DISPATCH = DispatchSettings(shards_per_group=2, in_flight=4, poll_s=0.5, worker_wait_s=300)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Models so small that starting a process is all that takes time."""
    return make_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def settings(tiny: Tiny) -> NightlySettings:
    """A night of four shards, in groups of two."""
    return nightly_settings(tiny, dispatch=DISPATCH)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A folder of drawings."""
    for n in range(IMAGES):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    return tmp_path / "in"


@pytest.fixture(scope="module")
def deployed(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sharing a night needs of prefect.yaml, deployed."""
    folder = tmp_path_factory.mktemp("deployed")
    prefect_server.make_pools("cpu-pool", "gpu-pool")
    file = str(ROOT / "deployments" / "prefect.yaml")
    places = {"CLIPCAP_SOURCE": "s3://nowhere/in", "CLIPCAP_OUT": "s3://nowhere/out"}
    names = [part for name in DEPLOYMENTS for part in ("--name", name)]
    prefect_server.run(
        "deploy", "--prefect-file", file, *names, cwd=ROOT, CLIPCAP_ROOT=str(ROOT), **places
    )
    return folder


@pytest.fixture(scope="module")
def workers(deployed: Path, prefect_server: PrefectServer) -> Iterator[None]:
    """Two workers of the GPU pool."""
    with ExitStack() as stack:
        for name in ("gpu-0", "gpu-1"):
            stack.enter_context(worker(prefect_server, "gpu-pool", deployed, name))
        yield


@pytest.fixture
def client(recorded: PrefectServer) -> Iterator[SyncPrefectClient]:
    """A client of the server."""
    with get_client(sync_client=True) as found:
        yield found


def alone(source: Path, out: str, settings: NightlySettings) -> str:
    """Run the same night in this process."""
    nightly.fn(str(source), out, settings.model_copy(update={"dispatch": None}))
    return out


def doers(out: str) -> set[str]:
    """Return who did something, by the name of the worker."""
    rows = glob(out, "shard_runs").to_pylist()
    return {row["worker"].partition("@")[0] for row in rows if row["state"] == "written"}


def waited_for(what: Callable[[], Any], every_s: float = 0.2) -> Any:  # noqa: ANN401
    """Return what a function returns as soon as that is something."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(every_s)
    return found


def named(client: SyncPrefectClient, text: str) -> list[FlowRun]:
    """Return the runs whose name has a text."""
    wanted = FlowRunFilter(name=FlowRunFilterName(like_=text))
    return client.read_flow_runs(flow_run_filter=wanted, limit=200)


def test_two_workers_share_a_night_and_leave_what_one_process_leaves(
    drawings: Path,
    tmp_path: Path,
    settings: NightlySettings,
    workers: None,
    client: SyncPrefectClient,
) -> None:
    out, whole = str(tmp_path / "out"), alone(drawings, str(tmp_path / "whole"), settings)

    finished = nightly(str(drawings), out, settings)

    assert differences(out, whole) == []
    assert doers(out) == {"gpu-0", "gpu-1"}
    assert verify.verify(out).problems == ()
    (row,) = glob(out, "runs").to_pylist()
    (other,) = glob(whole, "runs").to_pylist()
    counts = ("embedded", "captioned", "labelled", "shards_written", "bytes_read", "new", "listed")
    assert [row[name] for name in counts] == [other[name] for name in counts]
    assert row["model_ids"] == other["model_ids"]
    stages = [one["stage"] for one in row["stage_seconds"]]
    assert stages == [one["stage"] for one in other["stage_seconds"]]
    told = sorted((one["shard"], one["stage"]) for one in glob(out, "shard_runs").to_pylist())
    assert told == sorted((str(one.shard), one.stage) for one in finished.night.outcomes)
    assert storage.listed(layout.plans(storage.canonical(out))) == []
    groups = 2 * IMAGES // 2 // DISPATCH.shards_per_group
    assert task_runs(client, UUID(row["flow_run_id"])) == OF_A_NIGHT + 2 * groups
    for found in loads(client, out):
        assert found == {"encoder": 1, "captioner": 1}


def loads(client: SyncPrefectClient, out: str) -> list[dict[str, int]]:
    """Return how often the process of each group of shards loaded which model."""
    named = FlowRunFilter(name=FlowRunFilterName(like_="describe"))
    runs = client.read_flow_runs(flow_run_filter=named, limit=200)
    ours = [run for run in runs if run.parameters["work"]["out"] == storage.canonical(out)]
    found = [wait_for_lines(client, run.id, "label ") for run in ours]
    assert found
    return [
        {kind: sum(line.startswith(f"loading {kind}") for line in lines) for kind in MODELS}
        for lines in found
    ]


def task_runs(client: SyncPrefectClient, flow_run_id: UUID) -> int:
    """Return how many task runs a flow run has."""
    of = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    return len(client.read_task_runs(flow_run_filter=of, limit=200))


def test_a_second_night_gives_nothing_to_workers(
    drawings: Path, tmp_path: Path, settings: NightlySettings, deployed: Path, recorded: object
) -> None:
    """No worker is there who could."""
    out = alone(drawings, str(tmp_path / "out"), settings)

    finished = nightly(str(drawings), out, settings)

    assert {outcome.state for outcome in finished.night.outcomes} == {"unchanged"}


def test_a_group_whose_process_is_killed_is_done_by_another(
    drawings: Path,
    tmp_path: Path,
    settings: NightlySettings,
    workers: None,
    client: SyncPrefectClient,
) -> None:
    """A worker reports what the system did to its process; Prefect fails no run because of it."""
    out, whole = str(tmp_path / "out"), alone(drawings, str(tmp_path / "whole"), settings)
    shard.fn(str(drawings), out, settings.shard)
    context, killed = copy_context(), []

    def kill() -> None:
        with get_client(sync_client=True) as mine:
            child = waited_for(lambda: running(mine, "describe"))
            killed.append(child.id)
            os.kill(process(child), signal.SIGKILL)

    killer = Thread(target=context.run, args=(kill,))
    killer.start()
    finished = nightly(str(drawings), out, settings)
    killer.join()

    assert finished.published is not None
    state = client.read_flow_run(killed[0]).state
    assert state is not None
    assert state.is_crashed()
    assert differences(out, whole) == []


def process(run: FlowRun) -> int:
    """Return the process of a run that is under way."""
    return int((run.infrastructure_pid or "").rpartition(":")[2])


def running(client: SyncPrefectClient, text: str) -> FlowRun | None:
    """Return a run that is under way and has its process."""
    found = [run for run in named(client, text) if run.state and run.state.is_running()]
    return found[0] if found and found[0].infrastructure_pid else None


def test_a_cancelled_night_cancels_its_groups_and_keeps_their_commits(
    drawings: Path,
    tmp_path: Path,
    settings: NightlySettings,
    prefect_server: PrefectServer,
    workers: None,
    client: SyncPrefectClient,
) -> None:
    """The group is held after its first commit, so it is under way however fast the machine is."""
    out, url = str(tmp_path / "out"), storage.canonical(str(tmp_path / "out"))
    for n in range(IMAGES, MANY):
        draw(drawings / f"drawing-{n}.png", n)
    how = DISPATCH.model_copy(update={"shards_per_group": MANY})
    settings = settings.model_copy(update={"dispatch": how})
    with worker(prefect_server, "cpu-pool", tmp_path, "cpu-0"):
        prefect_server.run(
            "deployment", "run", "nightly/nightly-workers",
            "--param", f"source={drawings}", "--param", f"out={out}",
            "--param", f"settings={settings.model_dump_json()}",
        )  # fmt: skip
        child = waited_for(lambda: running(client, "describe"))
        waited_for(lambda: manifest.objects(url, "embeddings"), every_s=0.01)
        with stopped(process(child)):
            night = waited_for(lambda: running(client, f"nightly {drawings}"))
            prefect_server.run("flow-run", "cancel", str(night.id))
            waited_for(lambda: has_ended(client, night) and has_ended(client, child))
        assert [how_ended(client, one) for one in (night, child)] == ["Cancelled", "Cancelled"]
    before = run_ids(url)
    assert MANY / 2 < len(before) < 2 * MANY, "the shards were written, and some of their tables"

    alone(drawings, out, settings)

    assert before.items() <= run_ids(url).items(), "what was committed was done again"
    assert len(glob(out, "captions")) == MANY
    found = verify.verify(out).problems  # plans of a run that was ended stay for a day
    assert [one for one in found if one.severity != "warning"] == []


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still; it goes on if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def has_ended(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Tell whether a run is over."""
    state = client.read_flow_run(run.id).state
    return state is not None and state.is_final()


def how_ended(client: SyncPrefectClient, run: FlowRun) -> str:
    """Return the name of the last state of a run."""
    state = client.read_flow_run(run.id).state
    return "" if state is None else str(state.name)


def run_ids(out: str) -> dict[str, str]:
    """Return which run wrote which object of which table."""
    names: tuple[layout.Table, ...] = ("manifest", "embeddings", "captions", "labels")
    urls = [found.url for name in names for found in manifest.objects(out, name)]
    return {url: tables.footer(url)[0]["run_id"] for url in urls}


def test_a_group_that_fails_is_named_and_the_others_keep_their_commits(
    drawings: Path, tmp_path: Path, settings: NightlySettings, workers: None, recorded: object
) -> None:
    out = str(tmp_path / "out")
    shard.fn(str(drawings), out, settings.shard)
    bad = spoil_one_tar(out)

    with pytest.raises(PartitionsFailedError, match="1 of 2 partitions failed") as caught:
        nightly(str(drawings), out, settings)

    assert str(bad) in str(caught.value)
    assert isinstance(caught.value.__cause__, StorageError)
    assert len(glob(out, "embeddings")) == IMAGES - 2
    states = {row["flow"]: row["state"] for row in glob(out, "runs").to_pylist()}
    assert states == {"shard": "Completed", "nightly": "Failed"}


@pytest.mark.parametrize(("state", "retryable"), [(Failed, False), (Crashed, True)])
def test_of_a_run_that_told_nothing_only_a_crash_is_worth_another_try(
    tmp_path: Path, state: Callable[..., State[Any]], retryable: bool
) -> None:
    """Settings that do not fit here do not the next time, and each try is a process."""
    shards = [Shard("2026-11-20", "a")]
    group = groups.of(shards, "describe", Run("run", storage.canonical(str(tmp_path)), ""))
    child = FlowRun(flow_id=uuid4(), state=state(message="no space left"))
    with pytest.raises(ClipcapError, match="no space left, and has told nothing") as told:
        dispatch._told(group, child)
    assert told.value.retryable == retryable


def test_a_group_that_its_worker_does_not_begin_is_given_out_again(tmp_path: Path) -> None:
    """Three times a night: who waits for room of a full cluster waits no longer for each group."""
    run = Run("run", storage.canonical(str(tmp_path)), "")
    order = dispatch.Order("describe", run, "group/group", {}, poll_s=0.01, worker_wait_s=0.1)
    server, given_out_again = Mock(), []
    server.read_flow_run.side_effect = lambda _: FlowRun(flow_id=uuid4(), state=Pending())
    with dispatch.watched():
        for _ in range(5):
            with pytest.raises(ServerError, match="no group has begun for 0 s") as told:
                dispatch._ended(FlowRun(flow_id=uuid4(), state=Pending()), order, server)
            given_out_again.append(told.value.retryable)
    assert given_out_again == [True, True, True, False, False]
    states = [call.args[1] for call in server.set_flow_run_state.call_args_list]
    assert [state.is_cancelled() for state in states] == [True] * 5


def test_a_worker_with_another_version_of_the_code_refuses(
    drawings: Path,
    tmp_path: Path,
    settings: NightlySettings,
    deployed: Path,
    prefect_server: PrefectServer,
    recorded: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how = DISPATCH.model_copy(
        update={"shard_deployment": "group/group-cpu", "shards_per_group": IMAGES}
    )
    monkeypatch.setattr(commits, "git_commit", lambda: "1" * 40)
    with (
        worker(prefect_server, "cpu-pool", tmp_path, "old", CLIPCAP_GIT_COMMIT="0" * 40),
        pytest.raises(
            PartitionsFailedError, match=r"git 111111111111\), but runs .*000000"
        ) as told,
    ):
        nightly(str(drawings), str(tmp_path / "out"), settings.model_copy(update={"dispatch": how}))
    assert isinstance(told.value.__cause__, SettingsError)


def test_a_night_without_its_deployment_leaves_nothing_behind(
    drawings: Path, tmp_path: Path, settings: NightlySettings, deployed: Path, recorded: object
) -> None:
    how = DISPATCH.model_copy(update={"deployment": "group/nobody"})
    with pytest.raises(SettingsError, match="must be a deployment group/nobody"):
        nightly(str(drawings), str(tmp_path / "out"), settings.model_copy(update={"dispatch": how}))
    assert not (tmp_path / "out").exists()


def test_a_night_that_nobody_takes_groups_of_says_so_and_ends(
    drawings: Path, tmp_path: Path, settings: NightlySettings, deployed: Path, recorded: object
) -> None:
    update = {"shard_deployment": "group/group-cpu", "worker_wait_s": 2, "poll_s": 0.2}
    how = DISPATCH.model_copy(update=update)
    with pytest.raises(PartitionsFailedError, match="prefect worker start --pool cpu-pool"):
        nightly(str(drawings), str(tmp_path / "out"), settings.model_copy(update={"dispatch": how}))


def test_without_a_server_a_night_that_shall_be_shared_is_refused(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    with pytest.raises(SettingsError, match="needs a Prefect server"):
        nightly.fn(str(drawings), str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()
