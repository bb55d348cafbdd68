"""Spans, counters and files of numbers: none unless asked for, and never in a run's way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from clipcap.errors import TooManyRejectsError
from clipcap.layout import Run
from clipcap.outcomes import Night
from flows import _spans, _telemetry
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.architecture.tree import ROOT

NIGHT = Night(Run("r", "file:///out", "2026-11-20"), "nightly", "test", 0.0, "{}")


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: dict[str, list[bytes]] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> dict[str, Span]:
        """Return every span by its name."""
        sent = [ExportTraceServiceRequest.FromString(one) for one in self.bodies["/v1/traces"]]
        return {
            span.name: span
            for one in sent
            for resource in one.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def counted(self) -> dict[tuple[str, str], float]:
        """Return the last value of every counter, by its name and its stage, reason or state."""
        found = {}
        for one in self.bodies["/v1/metrics"]:
            sent = ExportMetricsServiceRequest.FromString(one)
            for resource in sent.resource_metrics:
                for metric in [
                    metric for scope in resource.scope_metrics for metric in scope.metrics
                ]:
                    for point in metric.sum.data_points:
                        of = {a.key: a.value.string_value for a in point.attributes}
                        by = [of.get(f"clipcap.{name}") for name in ("stage", "reason", "state")]
                        found[metric.name, next(filter(None, by))] = point.as_double or point.as_int
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Nothing."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector on this machine, and the environment that asks for it."""
    with Receiver() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found
        found.shutdown()
        thread.join()


def test_nobody_hears_of_a_run_unless_asked_to() -> None:
    assert _telemetry.telemetry(NIGHT) == []


def test_a_night_sends_a_span_for_each_stage_and_counts_its_rows(
    receiver: Receiver, drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    nightly.fn(str(drawings), str(tmp_path / "out"), settings)

    spans = receiver.spans()
    assert set(spans) == {"nightly", "shard", "embed", "caption", "label", "publish"}
    run = spans.pop("nightly")
    assert {span.parent_span_id for span in spans.values()} == {run.span_id}
    assert all(0 < span.start_time_unix_nano < span.end_time_unix_nano for span in spans.values())
    counted = receiver.counted()
    assert [counted["clipcap.computed", stage] for stage in ("shard", "embed", "caption")] == [
        6
    ] * 3
    assert counted["clipcap.shards", "embed"] == 3
    assert counted["clipcap.runs", "Completed"] == 1
    assert 0 < counted["clipcap.model_seconds", "embed"] < counted["clipcap.seconds", "embed"]
    assert counted["clipcap.bytes_written", "shard"] > 0


def test_a_night_that_stops_sends_its_error_and_its_rejects(
    receiver: Receiver, drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    (drawings / "no.png").write_bytes(b"no picture")
    (drawings / "none.png").write_bytes(b"")

    with pytest.raises(TooManyRejectsError):
        nightly.fn(str(drawings), str(tmp_path / "out"), settings)

    spans = receiver.spans()
    assert spans["nightly"].status.message.startswith("TooManyRejectsError: Stopped: 25%")
    counted = receiver.counted()
    assert counted["clipcap.rejects", "empty_file"] == 1
    assert counted["clipcap.runs", "Failed"] == 1


def test_a_collector_that_is_not_there_costs_a_run_a_few_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_spans, "CLOSE_S", 0.5)
    (spans,) = _telemetry.telemetry(NIGHT)
    began = time.monotonic()
    spans.begin("shard")
    spans.finish(NIGHT, None)
    assert time.monotonic() - began < 4


def test_a_collector_that_never_answers_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spans and counters share the five seconds: one after the other, they took ten."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        monkeypatch.setattr(_spans, "CLOSE_S", 3.0)
        (spans,) = _telemetry.telemetry(NIGHT)
        began = time.monotonic()
        spans.begin("shard")
        spans.finish(NIGHT, None)
        assert 2.9 < time.monotonic() - began < 5


def test_the_guide_says_how_long_a_silent_collector_takes() -> None:
    words = {5.0: "five", 10.0: "ten"}
    guide = (ROOT / "deployments" / "README.md").read_text()
    assert f"costs at most {words[_spans.CLOSE_S]} seconds at the end of a run" in guide


def test_without_the_extra_a_run_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(_telemetry, "_is_installed", lambda _name: False)
    assert _telemetry.telemetry(NIGHT) == []
    assert "pip install opentelemetry-sdk opentelemetry-exporter" in caplog.text


def metrics(file: Path) -> dict[tuple[str, ...], float]:
    """Return what a file says, by name and what it is of."""
    return {
        (
            sample.name.removeprefix("clipcap_last_run_"),
            *list(sample.labels.values())[2:],
        ): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }


def test_files_for_prometheus_hold_the_last_run_and_when_one_was_completed(
    drawings: Path, tmp_path: Path, settings: NightlySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "metrics"
    monkeypatch.setenv("CLIPCAP_METRICS_FOLDER", str(folder))
    out = str(tmp_path / "out")

    nightly.fn(str(drawings), out, settings)

    completed, last = sorted(folder.iterdir())
    found = metrics(last)
    assert (found["completed",], found["live_images",]) == (1, 6)
    assert found["stage_computed", "embed"] == 6
    assert found["stage_seconds", "publish"] > 0
    at = metrics(completed)["completed_timestamp_seconds",]

    for n in range(6):
        (drawings / f"{n}.png").write_bytes(b"no picture")
    with pytest.raises(TooManyRejectsError):
        nightly.fn(str(drawings), out, settings)

    found = metrics(last)
    assert (found["completed",], found["rejected", "not_an_image"]) == (0, 6)
    assert metrics(completed)["completed_timestamp_seconds",] == at


def test_a_folder_that_cannot_be_written_is_told_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPCAP_METRICS_FOLDER", str(tmp_path / "file"))
    (textfile,) = _telemetry.telemetry(NIGHT)
    textfile.finish(NIGHT, None)
    assert "cannot be written" in caplog.text
