"""Settings of a Ray cluster in, the same flow's partitions on its nodes out; needs the extra `ray`.

Ray sends tasks as pickles to whoever it believes to be its nodes: a cluster is as trusted as the
machine that starts the flow. Nodes need the same packages, and their own keys to the stores.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from prefect import Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from pydantic import Field

from clipcap import alive, groups
from clipcap.errors import DeviceError, SettingsError, WorkerLostError
from clipcap.settings import Settings
from tasks._task import needs_gpu

if TYPE_CHECKING:
    from prefect_ray import RayTaskRunner

_LOST_NODES: Final = 3  # so often a task begins anew elsewhere; it finds what it committed
_ANSWERS_S: Final = 120.0  # of a node that starts its first process
_SWITCHES: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RaySettings(Settings):
    """Which Ray cluster works on the partitions of a night, and what each of them claims there."""

    address: str | None = None
    """Address of the cluster (`host:6379`, or `ray://host:10001`); empty: the one that runs on this
    machine, or else a new one."""
    gpus_per_task: float | None = Field(default=None, ge=0)
    """GPUs that a partition to embed or caption claims; empty: one, where the cluster has any."""
    cpus_per_task: float = Field(default=1, gt=0)
    """CPUs that every partition claims."""


class Cluster:
    """A Ray cluster that the flow run is connected to."""

    def __init__(self, runner: RayTaskRunner[Any], settings: RaySettings) -> None:
        """Look what the cluster has.

        Raises:
            DeviceError: no node of it can ever take a partition.
        """
        self._runner, self._cpus = runner, settings.cpus_per_task
        nodes = _nodes()
        has_gpu = any(node["Resources"].get("GPU") for node in nodes)
        asked = settings.gpus_per_task
        self._gpus = float(has_gpu) if asked is None else asked
        self._workers = [node for node in nodes if node["Resources"].get("CPU", 0) >= self._cpus]
        if not any(node["Resources"].get("GPU", 0) >= self._gpus for node in self._workers):
            raise DeviceError(
                f"A node of the Ray cluster must have {self._cpus:g} CPUs and {self._gpus:g} GPUs "
                f"free for one partition, but none of the {len(nodes)} has. Start one that has, or "
                "lower ray.cpus_per_task and ray.gpus_per_task."
            )

    def require_same_code(self) -> None:
        """Ask every node that may take a partition now which code it runs.

        Raises:
            SettingsError: one runs other code than this process, or none.
        """
        import ray  # noqa: PLC0415 - an extra
        from ray.util import scheduling_strategies as strategies  # noqa: PLC0415

        ask = ray.remote(num_cpus=0)(groups.code)
        there = [
            strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for node in self._workers
        ]
        answers = [ask.options(scheduling_strategy=one).remote() for one in there]
        deadline = time.monotonic() + _ANSWERS_S
        for node, answer in zip(self._workers, answers, strict=True):
            where = f"The node {node['NodeManagerAddress']} of the Ray cluster"
            try:
                runs = ray.get(answer, timeout=max(deadline - time.monotonic(), 1.0))
            except ray.exceptions.RayError as error:
                if node["NodeID"] not in {one["NodeID"] for one in _nodes()}:
                    continue  # it went meanwhile, and takes no partition
                raise SettingsError(
                    f"{where} must say which code it runs, but does not: {_last_line(error)} "
                    "Install clipcap there as here, and restart `ray`."
                ) from error
            groups.require_same_code(groups.code(), runs, where=where)

    def submit(self, task: Task[..., Any], *args: Any, **kwargs: Any) -> PrefectFuture[Any]:  # noqa: ANN401 - the task's own
        """Send a task to a node; one process takes many, so that it loads a model once."""
        from prefect_ray.context import remote_options  # noqa: PLC0415 - an extra

        options: dict[str, Any] = {"num_cpus": self._cpus, "max_retries": _LOST_NODES}
        if self._gpus and needs_gpu(task):
            options |= {"num_gpus": self._gpus, "max_calls": 0}  # Ray's own choice is one call
        given = inspect.signature(task.fn).bind(*args, **kwargs).arguments
        with remote_options(**options):
            sent: PrefectFuture[Any] = self._runner.submit(task, dict(given))
        return sent

    def result(self, future: PrefectFuture[Any]) -> object:
        """Wait for a task, and return what it gave, or the error that ended it."""
        import ray  # noqa: PLC0415 - an extra

        with alive.waiting():
            try:
                return future.result(raise_on_failure=False)
            except ray.exceptions.RayError as error:
                if not isinstance(error, _lost()):
                    return error
                lost = WorkerLostError(
                    f"A node of the Ray cluster, or its process, ended before it could say what it "
                    f"did, {_LOST_NODES + 1} times: {_last_line(error)} What it committed is kept."
                )
                lost.__cause__ = error
                return lost


CLUSTER: ContextVar[Cluster | None] = ContextVar("CLUSTER", default=None)
"""Set while a flow run has a cluster for its partitions."""


@contextmanager
def spread(settings: RaySettings | None) -> Iterator[None]:
    """Let a cluster, if there shall be one, work on the partitions of what is inside.

    Raises:
        SettingsError: Ray is not installed, a node runs other code, or nobody records the run: its
            tasks are Prefect's.
        DeviceError: the cluster has no room for a single partition, or does not answer.
    """
    if settings is None:
        yield
        return
    if FlowRunContext.get() is None:
        raise SettingsError(
            "Partitions go to Ray as Prefect's task runs, but this run is not recorded by a "
            "server. Set PREFECT_API_URL and leave out --no-server, or set ray to null."
        )
    with _connected(settings) as runner:
        cluster = Cluster(runner, settings)
        cluster.require_same_code()
        token = CLUSTER.set(cluster)
        try:
            yield
        finally:
            CLUSTER.reset(token)


@contextmanager
def _connected(settings: RaySettings) -> Iterator[RayTaskRunner[Any]]:
    """Connect to the cluster; Ray reports to nobody how it is used."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    try:
        from prefect_ray import RayTaskRunner  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingsError(
            "Ray is not installed here: `pip install prefect-ray`, on every node."
        ) from error
    setup = {"worker_process_setup_hook": "flows._logs.send_to_prefect"}
    kwargs: dict[str, Any] = {
        "runtime_env": setup,
        "log_to_driver": False,
        "logging_level": "error",
    }
    if not settings.address:
        kwargs["include_dashboard"] = False
    try:
        runner: RayTaskRunner[Any] = RayTaskRunner(settings.address, kwargs).__enter__()
    except ConnectionError as error:
        raise DeviceError(
            f"The Ray cluster at {settings.address} must answer, but does not: {error}. Is "
            "`ray start` running there, with the same version of Ray and Python?"
        ) from error
    try:
        yield runner
    finally:
        runner.__exit__(None, None, None)


def _nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are alive."""
    import ray  # noqa: PLC0415 - an extra

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def _lost() -> tuple[type[Exception], ...]:
    """Return what says that a node or a process has gone, and not that what it ran has failed."""
    from ray import exceptions  # noqa: PLC0415 - an extra

    return (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
