"""What a run does in, spans and counters sent to an OpenTelemetry collector out.

Address, headers and timeouts are those of OpenTelemetry's own variables; what is spoken is OTLP
over HTTP. A collector that does not answer costs a run `CLOSE_S` at its end, no more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

import clipcap
from clipcap import outcomes, storage
from clipcap.outcomes import Night, Outcome
from clipcap.stages.publish import Published
from flows._telemetry import COUNTED, Counts, Quiet, added, counts

CLOSE_S: Final = 5.0
"""What sending the rest may take when the run is over, spans and counters together."""


class Spans(Quiet):
    """Sends a span for the run and each stage, and counters that grow with every partition."""

    def __init__(self, night: Night) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "clipcap"}
        resource = Resource.create({**named, "service.version": clipcap.__version__})
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._of = {"clipcap.flow": night.flow, "clipcap.out": night.run.out}
        self._count()
        self._tracer = self._traces.get_tracer("clipcap", clipcap.__version__)
        self._run = self._tracer.start_span(
            night.flow,
            attributes={
                **self._of,
                "clipcap.run_id": night.run.run_id,
                "clipcap.dt": night.run.dt,
                "clipcap.trigger": night.trigger,
                "prefect.flow-run.id": night.flow_run_id,
            },
        )
        self._stage: Span | None = None
        self._told: Counts = {}

    def _count(self) -> None:
        meter = self._metrics.get_meter("clipcap", clipcap.__version__)
        self._counters = {
            name: meter.create_counter(f"clipcap.{name}", description=text)
            for name, text in COUNTED.items()
        }
        self._rejects = meter.create_counter("clipcap.rejects", description="Images, by reason.")
        self._runs = meter.create_counter("clipcap.runs", description="Runs, by how they ended.")

    def begin(self, stage: str) -> None:
        """Open the stage's span."""
        self._end_stage()
        under = set_span_in_context(self._run)
        self._stage = self._tracer.start_span(stage, context=under, attributes=self._of)

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """Count a partition."""
        told = self._told.setdefault(stage, {})
        for name, value in added(outcomes).items():
            self._add(stage, name, value)
            told[name] = told.get(name, 0.0) + value

    def end(self, stage: str, night: Night) -> None:
        """Close the stage's span with its numbers."""
        found = self._rest(night).get(stage, {})
        if self._stage is not None:
            self._stage.set_attributes({f"clipcap.{name}": value for name, value in found.items()})
        self._end_stage()

    def finish(self, night: Night, published: Published | None) -> None:
        """Close the run's span and send the rest."""
        if published is not None:
            self._run.set_attribute("clipcap.live_images", published.live)
        self._close(night, "Completed")

    def fail(self, night: Night, error: BaseException) -> None:
        """Close what is open with the error, and send the rest."""
        said = storage.without_credentials(str(error))
        status = Status(StatusCode.ERROR, f"{type(error).__name__}: {said}")
        for span in (self._stage, self._run):
            if span is not None:
                span.set_status(status)
        self._close(night, "Failed")

    def _rest(self, night: Night) -> Counts:
        """Count what no partition told: seconds, and stages without any."""
        found = counts(night)
        for stage, counted in found.items():
            told = self._told.setdefault(stage, {})
            for name, value in counted.items():
                self._add(stage, name, value - told.get(name, 0.0))
                told[name] = value
        return found

    def _add(self, stage: str, name: str, value: float) -> None:
        if value > 0:
            self._counters[name].add(value, {**self._of, "clipcap.stage": stage})

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.end()
            self._stage = None

    def _close(self, night: Night, state: str) -> None:
        self._rest(night)
        for reason, count in outcomes.reasons(night.outcomes).items():
            self._rejects.add(count, {**self._of, "clipcap.reason": reason})
        self._runs.add(1, {**self._of, "clipcap.state": state})
        self._end_stage()
        self._run.end()
        # In threads: an exporter that waits for its collector must not hold up a run that is over.
        ends = (self._traces.shutdown, self._metrics.shutdown)
        closing = [threading.Thread(target=end, daemon=True) for end in ends]
        for one in closing:
            one.start()
        over = time.monotonic() + CLOSE_S
        for one in closing:
            one.join(max(over - time.monotonic(), 0.0))
