"""What a run does in, what a person at a terminal or a log file sees of it out."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from clipcap import outcomes, storage
from clipcap.outcomes import Night, Outcome
from clipcap.stages.publish import Published

_WIDTH: Final = 10  # of a stage's name, with a gap
_DONE: Final = {"embed": "embedded", "caption": "captioned", "label": "labelled"}
_STEPS: Final = logging.getLogger("clipcap.steps")
_PLAIN_WIDTH: Final = 100  # of tables, where there is no terminal to ask


def stage_line(stage: str, night: Night) -> str:
    """Return what a stage did, with counts and rate, in one line."""
    done = [outcome for outcome in night.outcomes if outcome.stage == stage]
    seconds = dict(night.seconds).get(stage, 0.0)
    total = outcomes.total(stage, done, seconds=seconds)
    if stage == "shard":
        text, images = _taken_in(night), total.computed + total.rejected
    else:
        made = Counter[str]()  # of each label set; a new one may be the only one with work to do
        for outcome in done:
            made[outcome.of if stage == "label" else ""] += outcome.computed
        sets, images = len(+made), max(made.values(), default=0)
        text = _described(stage, images, done)
        text += f" with {_count(sets, 'label set')}" if stage == "label" and images else ""
    rate = f", {images / max(seconds, 1e-9):,.0f} images/s" if images else ""
    model = f" ({total.model_s:.1f} s in the model)" if total.model_s else ""
    return f"{stage:<{_WIDTH}}{text}, {seconds:.1f} s{model}{rate}"


def _taken_in(night: Night) -> str:
    plan = night.plan
    if plan is None:
        return "nothing planned"
    text = (
        f"{plan.listed:,} images listed: {plan.new:,} new, {plan.changed:,} changed, "
        f"{plan.deleted:,} gone, {plan.unchanged:,} unchanged"
    )
    reasons = outcomes.reasons(night.of("shard"))
    counted = ", ".join(f"{name} {count:,}" for name, count in reasons.items())
    return f"{text}; {sum(reasons.values()):,} rejected ({counted})" if reasons else text


def _described(stage: str, images: int, done: Sequence[Outcome]) -> str:
    shards = {outcome.shard for outcome in done}
    written = {outcome.shard for outcome in done if outcome.state == "written"}
    same = len(shards) - len(written)
    if not written:
        return f"nothing to do, {_count(same, 'shard')} unchanged"
    where = _count(len(written), "shard")
    text = f"{_count(images, 'image')} {_DONE.get(stage, 'done')} in {where}"
    return f"{text}, {_count(same, 'shard')} unchanged" if same else text


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def publish_line(published: Published) -> str:
    """Return what was published, in one line."""
    return (
        f"{'publish':<{_WIDTH}}{_count(published.live, 'live image')}, "
        f"{_count(published.objects, 'object')}, {published.seconds:.1f} s"
    )


def shown(url: str) -> str:
    """Return a URL as a person would type it."""
    path = storage.local_path(url)
    return url if path is None else str(path)


def tables_console() -> Console:
    """Return the console that tables are printed on."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False)


class Lines:
    """Prints a line for each partition and each stage: for log files."""

    def __init__(self) -> None:
        self._shards = self._done = self._images = 0
        self._began = 0.0

    def begin(self, stage: str) -> None:
        """Nothing: a stage's line comes when it is done."""

    def expect(self, stage: str, shards: int) -> None:
        """Count what is to come."""
        self._shards, self._done, self._images = shards, 0, 0
        self._began = time.monotonic()

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Print how far the stage is; the last partition's line is the stage's own."""
        self._done += len({outcome.shard for outcome in outcomes})
        self._images += sum(outcome.computed for outcome in outcomes)
        if self._done < self._shards and self._images:
            spent = time.monotonic() - self._began
            left = spent / self._done * (self._shards - self._done)
            text = f"{self._done} of {self._shards} shards, {spent:.0f} s, about {left:.0f} s left"
            click.echo(f"{stage:<{_WIDTH}}{text}")

    def end(self, stage: str, night: Night) -> None:
        """Print the stage's line; that of `publish` needs what was published."""
        if stage in ("shard", *_DONE):
            click.echo(stage_line(stage, night))

    def finish(self, night: Night, published: Published | None) -> None:
        """Print the last stage's line."""
        if published is not None:
            click.echo(publish_line(published))

    def fail(self, night: Night, error: BaseException) -> None:
        """Nothing: the command prints the error."""

    def close(self) -> None:
        """Nothing is left open."""


class _Steps(logging.Handler):
    """Moves a bar with the steps of a training, which the library tells to who listens."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        (now,) = record.args if isinstance(record.args, tuple) else (None,)
        done, total = getattr(now, "step", 0), getattr(now, "steps", None)
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)


class Bars(Lines):
    """Shows a bar while a stage is under way, then its line: for terminals."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._steps: _Steps | None = None

    def begin(self, stage: str) -> None:
        """Show that the stage is under way."""
        self.close()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn(f"{stage:<{_WIDTH}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps" if stage == "train" else "shards"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.add_task(stage, total=None)
        self._progress.start()
        if stage == "train":
            self._steps = _Steps(self._progress)
            _STEPS.addHandler(self._steps)
            _STEPS.setLevel(logging.DEBUG)
            _STEPS.propagate = False

    def expect(self, stage: str, shards: int) -> None:
        """Say how many shards there are."""
        if self._progress is not None and shards:
            self._progress.reset(self._progress.task_ids[0], total=shards)

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Move the bar."""
        if self._progress is not None:
            shards = len({outcome.shard for outcome in outcomes})
            self._progress.advance(self._progress.task_ids[0], shards)

    def end(self, stage: str, night: Night) -> None:
        """Take the bar away and print the stage's line."""
        self.close()
        super().end(stage, night)

    def close(self) -> None:
        """Take the bar away, whatever ended the stage."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._steps is not None:
            _STEPS.removeHandler(self._steps)
            _STEPS.setLevel(logging.NOTSET)
            _STEPS.propagate = True
            self._steps = None
