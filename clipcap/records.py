"""A night in, its rows of `runs` and `shard_runs` out."""

from __future__ import annotations

import json
import platform
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from clipcap import commits, layout, manifest, storage, tables
from clipcap.commits import Fingerprint
from clipcap.outcomes import Night, Outcome
from clipcap.settings import digest
from clipcap.stability import Drift

VERSION: Final = 1
_LOOKED_AT: Final = 50  # runs; those of single stages compare nothing
_PACKAGES: Final = (
    "torch",
    "open_clip_torch",
    "transformers",
    "pyarrow",
    "duckdb",
    "prefect",
    "Pillow",
)


def write(
    night: Night,
    *,
    state: Literal["Completed", "Failed"],
    seconds: Mapping[str, float],
    error_message: str | None = None,
    report_uri: str | None = None,
) -> None:
    """Write both tables of a run; a run that is told of twice has one row."""
    row = _run_row(night, state=state, seconds=seconds)
    row |= {"error_message": error_message, "report_uri": report_uri}
    _publish(layout.runs(night.run), "runs", [row], night)
    rows = [_shard_row(outcome, night) for outcome in night.outcomes]
    if rows:
        _publish(layout.shard_runs(night.run), "shard_runs", rows, night)


def _publish(url: str, name: layout.Table, rows: list[dict[str, Any]], night: Night) -> None:
    fingerprint = Fingerprint(digest([name, VERSION, layout.RECIPES]), night.run.run_id)
    table = tables.from_rows(rows, tables.SCHEMAS[name])
    commits.publish(url, table, fingerprint=fingerprint, run_id=night.run.run_id, metadata={})


def _run_row(night: Night, *, state: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    plan = night.plan
    ended = time.time()
    taken = sum(outcome.computed + outcome.rejected for outcome in night.of("shard"))
    duration_s = max(ended - night.started_at, 1e-9)
    return {
        "run_id": night.run.run_id,
        "flow_run_id": night.flow_run_id or None,
        "flow_run_name": night.flow_run_name or None,
        "deployment": night.deployment or None,
        "flow": night.flow,
        "trigger": night.trigger,
        "state": state,
        "started_at": datetime.fromtimestamp(night.started_at, UTC),
        "ended_at": datetime.fromtimestamp(ended, UTC),
        "duration_s": duration_s,
        "listed": plan.listed if plan else 0,
        "new": plan.new if plan else 0,
        "changed": plan.changed if plan else 0,
        "deleted": plan.deleted if plan else 0,
        "unchanged": plan.unchanged if plan else 0,
        "embedded": sum(outcome.computed for outcome in night.of("embed")),
        "captioned": sum(outcome.computed for outcome in night.of("caption")),
        "labelled": sum(outcome.computed for outcome in night.of("label")),
        "rejected": sum(outcome.rejected for outcome in night.outcomes),
        "shards_written": sum(outcome.state == "written" for outcome in night.of("shard")),
        "bytes_read": sum(outcome.bytes_read for outcome in night.outcomes),
        "bytes_written": sum(outcome.bytes_written for outcome in night.outcomes),
        "images_per_second": taken / duration_s,
        **_devices(night.outcomes),
        "host": socket.gethostname(),
        "stage_seconds": [{"stage": name, "seconds": value} for name, value in seconds.items()],
        "model_ids": list(night.model_ids),
        "params_json": night.params_json,
        "versions_json": json.dumps(versions(), sort_keys=True),
        "git_commit": commits.git_commit() or None,
        "extra_json": json.dumps({"drift": asdict(night.drift)}) if night.drift else None,
    }


def _devices(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    on_gpu = [outcome for outcome in outcomes if outcome.device.startswith("cuda")]
    used = sorted({outcome.device for outcome in outcomes} - {""})
    return {
        "device": ", ".join(used) or None,
        "gpu_seconds": sum(outcome.model_s for outcome in on_gpu) if on_gpu else None,
        "peak_gpu_bytes": max(one.peak_gpu_bytes for one in on_gpu) if on_gpu else None,
    }


@dataclass(frozen=True, slots=True)
class Compared:
    """A run that was compared with the nights before it, and what came of it."""

    run_id: str
    dt: str
    state: str
    drift: Drift


def newest_drift(out: str) -> Compared | None:
    """Return the newest run over an output that was compared; None if none of the last ones was."""
    runs = sorted(manifest.objects(out, "runs"), key=_written)
    for url in [found.url for found in runs[: -_LOOKED_AT - 1 : -1]]:
        (row,) = tables.read(url, ["run_id", "state", "extra_json"]).to_pylist()
        found = json.loads(row["extra_json"] or "{}").get("drift")
        if found:
            drift = TypeAdapter(Drift).validate_python(found)
            return Compared(row["run_id"], layout.shard_of(url).dt, row["state"], drift)
    return None


def _written(found: storage.ObjectInfo) -> tuple[str, datetime]:
    """Return when a run began, by its id, and, of those of one second, when its row was written."""
    began = found.url.rpartition("/")[2].partition("-")[0]
    return began, found.modified_at or datetime.min.replace(tzinfo=UTC)


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape the results."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in ("clipcap", *_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _shard_row(outcome: Outcome, night: Night) -> dict[str, Any]:
    return {
        "run_id": night.run.run_id,
        "shard": str(outcome.shard),
        "stage": outcome.stage,
        "state": outcome.state,
        "rows": outcome.rows,
        "rejected": outcome.rejected,
        "attempts": 1,
        "worker": outcome.worker or socket.gethostname(),
        "started_at": datetime.fromtimestamp(outcome.started_at, UTC),
        "duration_s": outcome.duration_s,
        "output_uri": outcome.url,
        "output_sha256": outcome.sha256 or None,
        "extra_json": json.dumps({"of": outcome.of, "model_s": outcome.model_s}),
    }
