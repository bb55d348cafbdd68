"""Shards to do in, what workers of Prefect did with them out: the night's part of sharing it."""

from __future__ import annotations

from collections.abc import Sequence

from clipcap.groups import Phase
from clipcap.layout import Shard
from flows._ledger import Ledger
from flows.settings import DispatchSettings, NightlySettings
from tasks.dispatch import Order, run_group, watched


def have_written(
    ledger: Ledger, planned: Sequence[Shard], settings: NightlySettings, how: DispatchSettings
) -> None:
    """Have workers write planned shards."""
    _each(ledger, planned, _order("shard", how.shard_deployment, ledger, settings, how), how)


def have_described(
    ledger: Ledger, shards: Sequence[Shard], settings: NightlySettings, how: DispatchSettings
) -> None:
    """Have workers embed, caption and label shards."""
    _each(ledger, shards, _order("describe", how.deployment, ledger, settings, how), how)


def _order(
    phase: Phase, deployment: str, ledger: Ledger, settings: NightlySettings, how: DispatchSettings
) -> Order:
    alone = settings.model_copy(update={"dispatch": None})
    return Order(
        phase=phase,
        run=ledger.run,
        deployment=deployment,
        settings=alone.model_dump(mode="json"),
        poll_s=how.poll_s,
        worker_wait_s=how.worker_wait_s,
    )


def _each(ledger: Ledger, shards: Sequence[Shard], order: Order, how: DispatchSettings) -> None:
    with watched():
        ledger.each_at_once(run_group, shards, how.shards_per_group, how.in_flight, order)
