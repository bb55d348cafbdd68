"""A source, an output and settings in; the night done on a Ray cluster of two nodes, as JSON, out.

    python -m tests.rayed SOURCE OUT SETTINGS.json [KILL]

Runs as a process of its own, since a cluster belongs to the process that starts it. KILL: the
second node dies when the first partition of this stage is done; or `other-code`: it runs a commit
that nobody knows; or `dies`: no night, but a task whose process always ends. Writes how it ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prefect import flow
from ray.cluster_utils import Cluster

from clipcap.layout import Shard
from clipcap.outcomes import Outcome
from flows import _join
from flows._ray import RaySettings, spread
from flows._tell import LISTENER
from flows.console import Lines
from flows.nightly import nightly
from flows.settings import NightlySettings
from tasks._task import Partition, task

NODE = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
"""A GPU that is only said to be there: how Ray hands it out is what matters."""
OTHER: Final = {"env_vars": {"CLIPCAP_GIT_COMMIT": "0" * 40}}


class Killer(Lines):
    """Ends a node when the first partition of a stage is done."""

    def __init__(self, cluster: Any, stage: str, out: str) -> None:  # noqa: ANN401 - Ray's own
        super().__init__()
        self._cluster, self._stage, self._out = cluster, stage, out
        self.there: dict[str, int] = {}
        """What was committed when the node died, and when it was written."""
        self._node = cluster.add_node(**NODE, **(OTHER if stage == "other-code" else {}))

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Kill, once."""
        if stage == self._stage and self._node is not None:
            folders = (Path(self._out, name) for name in ("manifest", "embeddings"))
            found = (path for folder in folders for path in folder.rglob("*.parquet"))
            self.there = {str(path): path.stat().st_mtime_ns for path in found}
            self._cluster.remove_node(self._node, allow_graceful=False)
            self._node = None


def main(source: str, out: str, settings: NightlySettings, kill: str) -> dict[str, Any]:
    """Do the night on two nodes of one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    killer = Killer(cluster, kill, out)
    token = LISTENER.set(killer)
    try:
        on = NightlySettings.model_validate(
            {**settings.model_dump(), "ray": {"address": cluster.address}}
        )
        state = nightly(source, out, on, return_state=True)
    finally:
        LISTENER.reset(token)
        cluster.shutdown()  # type: ignore[no-untyped-call]
    return {
        "state": state.name,
        "message": state.message,
        "run": str(state.state_details.flow_run_id),
        "there": killer.there,
    }


@task(run_name="dies {partition}", needs_gpu=True)
def dies(partition: Partition) -> list[Outcome]:
    """End the process, as a lack of memory does."""
    os._exit(9 if partition.shards else 8)


@flow
def lost() -> str:
    """Have a partition worked on that no process survives, and return what is said of it."""
    with spread(RaySettings(cpus_per_task=1)):
        (attempt,) = _join.each(dies, [Partition((Shard("2026-01-01", "a"),))])
    return f"{type(attempt).__name__}: {attempt}"


if __name__ == "__main__":
    kill = (sys.argv[4:] or [""])[0]
    chosen = NightlySettings.model_validate_json(Path(sys.argv[3]).read_text())
    told = lost() if kill == "dies" else main(sys.argv[1], sys.argv[2], chosen, kill)
    json.dump(told, sys.stdout)
