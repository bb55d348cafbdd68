"""Source in, shards out, as tasks: plan the night, write its shards, retire what is gone."""

from __future__ import annotations

from clipcap import alive, plans
from clipcap.gate import require_few_rejects
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome
from clipcap.plans import Plan
from clipcap.stages import shard as stage
from clipcap.stages.shard import ShardSettings
from tasks._task import Partition, task


@task(run_name="plan {source}")
def make_plan(source: str, run: Run, settings: ShardSettings) -> Plan:
    """List the source, compare it with the output and write down what is to do."""
    with alive.waiting():  # comparing is one step, of hours where there are billions
        return stage.plan(source, run=run, settings=settings)


@task(run_name="shard {partition}")
def write_shards(partition: Partition, run: Run, settings: ShardSettings) -> list[Outcome]:
    """Write each planned shard of a partition; what an earlier try has written stays."""
    return [stage.shard(shard, run=run, settings=settings) for shard in partition]


@task(run_name="check the rejects")
def check_rejects(run: Run, max_reject_rate: float, retired: tuple[Shard, ...]) -> None:
    """Stop before any model work if too many images were rejected."""
    require_few_rejects(run, max_reject_rate=max_reject_rate, retired=retired)


@task(run_name="retire {partition}")
def retire_images(partition: Partition, run: Run) -> list[Outcome]:
    """Take images that are gone or replaced out of the shards of a partition."""
    return [stage.retire(shard, run=run) for shard in partition]


@task(run_name="drop the plan")
def drop_plan(run: Run) -> None:
    """Remove what a run has planned and done."""
    plans.clear(run)
