"""What one stage did to one shard: small, plain, and the row of `shard_runs`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clipcap.commits import Commit
from clipcap.layout import Run, Shard
from clipcap.plans import Plan
from clipcap.stability import Drift

log = logging.getLogger(__name__)

StageName = Literal["shard", "embed", "caption", "label"]
State = Literal["written", "unchanged", "retired"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stage over one shard.

    `computed` counts rows made by this run; the other `rows` were there or were reused by content.
    Of `duration_s` in all, `model_s` went by inside the model, and for `read_s` and `decode_s` the
    model waited until images were read, and decoded; in seconds. `device` is what the model ran on,
    `peak_gpu_bytes` the most memory of it that the process has used; both empty where it did not
    run. `worker` is who did it, where that was another process than the run's own.
    """

    stage: StageName
    shard: Shard
    state: State
    rows: int
    url: str
    fingerprint: str
    started_at: float
    duration_s: float
    computed: int = 0
    rejected: int = 0
    model_s: float = 0.0
    device: str = ""
    peak_gpu_bytes: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    of: str = ""
    sha256: str = ""
    reasons: tuple[tuple[str, int], ...] = ()
    examples: tuple[str, ...] = field(default=())
    worker: str = ""


@dataclass(frozen=True, slots=True)
class StageTotal:
    """One stage over all shards of a run, in numbers."""

    stage: str
    shards: int
    written: int
    rows: int
    computed: int
    rejected: int
    seconds: float
    model_s: float


def committed(
    stage: StageName,
    shard: Shard,
    commit: Commit,
    *,
    state: State,
    started_at: float,
    **counted: Any,  # noqa: ANN401 - the fields of Outcome
) -> Outcome:
    """Return what a stage did that ended with a commit, and log it in one line.

    `counted` are further fields of the outcome.
    """
    done = Outcome(
        stage=stage,
        shard=shard,
        state=state,
        rows=commit.rows,
        url=commit.url,
        fingerprint=commit.fingerprint,
        sha256=commit.sha256,
        started_at=started_at,
        duration_s=time.time() - started_at,
        **counted,
    )
    taken = done.computed + (done.rejected if stage == "shard" else 0)
    log.info(
        "%s %s%s: %s, %d rows, %d computed, %d rejected, %.1f s, %.0f images/s",
        stage, shard, f" with {done.of}" if done.of else "", state, done.rows, done.computed,
        done.rejected, done.duration_s, taken / max(done.duration_s, 1e-9),
    )  # fmt: skip
    return done


def unchanged(stage: StageName, shard: Shard, commit: Commit, *, of: str) -> Outcome:
    """Return that there was nothing to do, and log no line: of such shards there are many."""
    return Outcome(
        stage=stage,
        shard=shard,
        state="unchanged",
        rows=commit.rows,
        url=commit.url,
        fingerprint=commit.fingerprint,
        started_at=time.time(),
        duration_s=0.0,
        of=of,
    )


@dataclass(frozen=True, slots=True)
class Night:
    """Everything a run did, for its row and its report; `seconds` is wall time by stage."""

    run: Run
    flow: str
    trigger: str
    started_at: float
    params_json: str
    plan: Plan | None = None
    outcomes: tuple[Outcome, ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()
    model_ids: tuple[str, ...] = ()
    flow_run_id: str = ""
    flow_run_name: str = ""
    deployment: str = ""
    drift: Drift | None = None

    def of(self, stage: StageName) -> list[Outcome]:
        """Return the outcomes of one stage."""
        return [outcome for outcome in self.outcomes if outcome.stage == stage]


def total(stage: str, outcomes: Sequence[Outcome], *, seconds: float) -> StageTotal:
    """Add up what a stage did; `seconds` is its wall time."""
    return StageTotal(
        stage=stage,
        shards=len({outcome.shard for outcome in outcomes}),
        written=sum(outcome.state != "unchanged" for outcome in outcomes),
        rows=sum(outcome.rows for outcome in outcomes),
        computed=sum(outcome.computed for outcome in outcomes),
        rejected=sum(outcome.rejected for outcome in outcomes),
        seconds=seconds,
        model_s=sum(outcome.model_s for outcome in outcomes),
    )


def reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the rejects of all shards by reason, most first."""
    counted: dict[str, int] = {}
    for outcome in outcomes:
        for reason, count in outcome.reasons:
            counted[reason] = counted.get(reason, 0) + count
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))
