"""What a run does in, what Prefect's pages show of it out: progress, summary, tables of counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event

from clipcap import outcomes, storage
from clipcap.errors import DriftError, TooManyRejectsError
from clipcap.outcomes import Night, Outcome
from clipcap.stages.drift import sentence
from clipcap.stages.publish import Published

_CANARIES: Final = 20
EVENTS: Final[dict[type[BaseException], str]] = {
    TooManyRejectsError: "clipcap.run.too-many-rejects",
    DriftError: "clipcap.run.drift",
}
"""What `deployments/automations.yaml` waits for."""
_MARKS: Final = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_IN_LINKS: Final = "%:/?#@!$&*+,;=~"


class Artifacts:
    """Writes Prefect artifacts of the flow run that is going on."""

    def __init__(self) -> None:
        self._progress: UUID | None = None
        self._shards = 0
        self._done = 0

    def begin(self, stage: str) -> None:
        """Nothing to show yet."""

    def expect(self, stage: str, shards: int) -> None:
        """Open a bar for the shards of a stage, where there are any."""
        self._progress, self._shards, self._done = None, shards, 0
        if shards:
            made: Any = create_progress_artifact(0.0, description=f"{stage}: {shards} shards")
            self._progress = made

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Move the bar."""
        self._done += len({outcome.shard for outcome in outcomes})
        if self._progress is not None:
            update_progress_artifact(self._progress, 100.0 * self._done / self._shards)

    def end(self, stage: str, night: Night) -> None:
        """Nothing: the summary has the numbers of every stage."""

    def finish(self, night: Night, published: Published | None) -> None:
        """Write the summary, and tables of the stages and of the rejects."""
        create_markdown_artifact(summary(night, published), key=f"{night.flow}-summary")
        create_table_artifact(stage_rows(night), key=f"{night.flow}-stages")
        rejects = [
            {"reason": reason, "images": count}
            for reason, count in outcomes.reasons(night.outcomes).items()
        ]
        if rejects:
            create_table_artifact(rejects, key=f"{night.flow}-rejects")

    def fail(self, night: Night, error: BaseException) -> None:
        """Write what was done until then and why it ended; tell automations of what they know.

        Nothing of a run that is being cancelled, which shall end now.
        """
        if not isinstance(error, Exception):
            return
        told = f"{summary(night, None)}\nEnded: {type(error).__name__}.\n\n{quoted(error)}"
        with suppress(httpx.HTTPError):  # the run's own error says more than the server's
            create_markdown_artifact(told, key=f"{night.flow}-summary")
        if event := EVENTS.get(type(error)):
            said = storage.without_credentials(str(error))
            emit_event(
                event,
                resource={
                    "prefect.resource.id": f"prefect.flow-run.{night.flow_run_id}",
                    "prefect.resource.name": night.flow_run_name,
                },
                payload={"out": night.run.out, "run": night.run.run_id, "message": said},
            )


def quoted(error: BaseException) -> str:
    """Return an error's lines as Markdown that shows them as they are."""
    return "\n".join(f"    {line}" for line in storage.without_credentials(str(error)).splitlines())


def summary(night: Night, published: Published | None) -> str:
    """Return what was done, as Markdown."""
    lines = [f"# {night.flow} of {night.run.dt}", "", f"Run `{night.run.run_id}`."]
    if plan := night.plan:
        lines += [
            "",
            f"{plan.listed} images listed: {plan.new} new, {plan.changed} changed, "
            f"{plan.deleted} gone, {plan.unchanged} unchanged.",
        ]
    if reasons := outcomes.reasons(night.outcomes):
        counted = ", ".join(f"{name} {count}" for name, count in reasons.items())
        lines += ["", f"Rejected: {counted}."]
    if night.drift is not None:
        told = [f"- {_plain(sentence(one))}" for one in night.drift.over]
        told += [
            f"- canary {_plain(f'{one.image}: {one.why}')}" for one in night.drift.moved[:_CANARIES]
        ]
        lines += ["", "Not as on earlier nights:", "", *told] if told else []
    if published is not None:
        lines += [
            "",
            f"{published.live} live images in {_plain(night.run.out)}.",
            "",
            f"[Report](<{quote(published.report_url, safe=_IN_LINKS)}>): "
            f"{_plain(published.report_url)}",
        ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return a text in which Markdown and HTML see nothing but letters: files have such names."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", line)


def stage_rows(night: Night) -> list[dict[str, Any]]:
    """Return one row of counts and rates for each stage."""
    rows = []
    for stage, seconds in night.seconds:
        done = [outcome for outcome in night.outcomes if outcome.stage == stage]
        total = outcomes.total(stage, done, seconds=seconds)
        rows.append(
            {
                "stage": stage,
                "shards": total.shards,
                "written": total.written,
                "rows": total.rows,
                "computed": total.computed,
                "rejected": total.rejected,
                "seconds": round(seconds, 1),
                "computed per second": round(total.computed / max(seconds, 1e-9), 1),
            }
        )
    return rows
