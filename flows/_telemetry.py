"""What a run does in, who else hears of it out: OpenTelemetry or Prometheus, where asked for.

Asked for by the environment alone: `OTEL_EXPORTER_OTLP_ENDPOINT` (and its kin) sends to a
collector; `CLIPCAP_METRICS_FOLDER` writes files for node_exporter's textfile collector, since a
night ends and a port of it would be scraped too late. Neither ends a run or holds it up.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clipcap import outcomes
from clipcap.outcomes import Night, Outcome
from flows._tell import Listener

log = logging.getLogger("clipcap.flows")

FOLDER: Final = "CLIPCAP_METRICS_FOLDER"
ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
COUNTED: Final = {
    "shards": "Shards that a stage went through.",
    "written": "Shards that a stage wrote anew.",
    "rows": "Rows that stand in the stage's table.",
    "computed": "Rows made by this run; the others were there.",
    "rejected": "Images left out.",
    "seconds": "Wall time.",
    "model_seconds": "Of it inside the model.",
    "bytes_read": "Bytes read.",
    "bytes_written": "Bytes written.",
}
"""What is counted by stage, with its help."""
Counts = dict[str, dict[str, float]]


def telemetry(night: Night) -> list[Listener]:
    """Return who else shall hear of a run: nobody, unless the environment asks for it."""
    found: list[Listener] = []
    if folder := os.environ.get(FOLDER):
        from flows._textfile import Textfile  # noqa: PLC0415 - only where asked for

        found.append(Textfile(Path(folder), night))
    if any(os.environ.get(name) for name in ENDPOINTS):
        if _is_installed("opentelemetry.exporter.otlp.proto.http"):
            from flows._spans import Spans  # noqa: PLC0415 - an extra

            found.append(Spans(night))
        else:
            log.warning(
                "OpenTelemetry is asked for by the environment, but its exporter is not here: "
                "`pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http`. "
                "Nothing is sent."
            )
    return found


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def counts(night: Night) -> Counts:
    """Return what every stage did until now, by `COUNTED`."""
    return {
        stage: added([one for one in night.outcomes if one.stage == stage]) | {"seconds": seconds}
        for stage, seconds in night.seconds
    }


def added(found: Sequence[Outcome]) -> dict[str, float]:
    """Return what outcomes of one stage add up to; their wall time is not theirs to say."""
    total = outcomes.total("", found, seconds=0.0)
    return {
        "shards": total.shards,
        "written": total.written,
        "rows": total.rows,
        "computed": total.computed,
        "rejected": total.rejected,
        "model_seconds": total.model_s,
        "bytes_read": sum(one.bytes_read for one in found),
        "bytes_written": sum(one.bytes_written for one in found),
    }


class Quiet:
    """Hears of a run and says nothing."""

    def begin(self, stage: str) -> None:
        """Nothing."""

    def expect(self, stage: str, shards: int) -> None:
        """Nothing."""

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Nothing."""

    def end(self, stage: str, night: Night) -> None:
        """Nothing."""
