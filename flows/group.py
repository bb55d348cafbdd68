"""A group of a night's shards in, their tables out, by a process of its own, on any machine.

Started by `tasks/dispatch.py`, one run for each group. Models are loaded once in the process. What
was done, or why it was not, is written beside the plans before the run ends.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from prefect.runtime import flow_run

from clipcap import groups, storage
from clipcap.errors import ClipcapError
from clipcap.groups import Failure, Group, Told
from clipcap.outcomes import Outcome
from flows import _join
from flows._flow import flow
from flows._logs import sent_to_prefect
from flows._watchdog import Watchdog
from flows.settings import NightlySettings
from tasks._task import Partition, is_retryable
from tasks.caption import caption_partition
from tasks.embed import embed_partition
from tasks.label import label_partition
from tasks.shard import write_shards


@flow(name="group", run_name="{work}")
def group(work: Group = Group(), settings: NightlySettings = NightlySettings()) -> None:
    """Do one group of the shards of a night; a night with `dispatch` starts it.

    Args:
        work: The shards, and whose they are.
        settings: Those of the night.
    """
    with ExitStack() as stack:
        if _join.in_flow_run():
            stack.enter_context(sent_to_prefect())
        stack.enter_context(Watchdog(_no_words))
        groups.require_known(work)
        stack.enter_context(_Telling(work))
        groups.require_same_code((work.version, work.git_commit), groups.code(), where="The worker")
        outcomes = _done(work, settings)
        worker = _worker()
        told = tuple(replace(outcome, worker=worker) for outcome in outcomes)
        groups.write(work, Told(by=_by(), outcomes=told))


def _done(work: Group, settings: NightlySettings) -> list[Outcome]:
    """Do what is to do; what is committed already is looked at, and left alone."""
    partition, run, encoder = Partition(work.named), work.run, settings.embed
    if work.phase == "shard":
        return _join.call(write_shards, partition, run, settings.shard)
    embedded = _join.call(embed_partition, partition, run, encoder, settings.speed)
    captioned: list[Outcome] = []
    if asked := settings.caption:
        speed = settings.caption_speed
        captioned = _join.call(caption_partition, partition, run, asked, encoder, speed)
    labelled = _join.call(label_partition, partition, run, settings.label, encoder)
    return [*embedded, *captioned, *labelled]


def _no_words(_error: object) -> None:
    """Tell nobody: a group that told nothing is given out again."""


def _by() -> str:
    return str(flow_run.id or "")


def _worker() -> str:
    """Return who does this: Prefect's name of the worker, if it is known, and the machine."""
    name = os.environ.get("PREFECT__WORKER_NAME", "")
    host = socket.gethostname()
    return f"{name}@{host}" if name else host


class _Telling:
    """Writes down why a group was not done, before its error ends the run."""

    def __init__(self, work: Group) -> None:
        self._work = work

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return  # done, or killed: whoever asked for the group sees that
        known = isinstance(error, ClipcapError)
        sentence = str(error) if known else f"{type(error).__name__}: {error}"
        failure = Failure(
            kind=type(error).__name__,
            sentence=storage.without_credentials(sentence),
            is_retryable=is_retryable(error),
        )
        groups.write(self._work, Told(by=_by(), failure=failure))
