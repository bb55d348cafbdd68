"""What a run does in, a file of its numbers for node_exporter's textfile collector out.

A night ends; a port of it would be scraped by nobody. Files are replaced whole, so a scrape sees
one run or the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import GaugeMetricFamily

from clipcap import outcomes
from clipcap.outcomes import Night
from clipcap.settings import digest
from clipcap.stages.publish import Published
from flows._telemetry import COUNTED, Quiet, counts

log = logging.getLogger("clipcap.flows")


@dataclass(frozen=True, slots=True)
class Gauge:
    """One number of the last run."""

    name: str
    text: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


class Textfile(Quiet):
    """Writes one file for each flow and output: the last run, as Prometheus asks of batch jobs."""

    def __init__(self, folder: Path, night: Night) -> None:
        name = f"clipcap-{night.flow}-{digest(night.run.out)[:12]}"
        self._file, self._completed = folder / f"{name}.prom", folder / f"{name}-completed.prom"
        self._labels = {"flow": night.flow, "out": night.run.out}

    def end(self, stage: str, night: Night) -> None:
        """Write how far the run is."""
        self._write(self._file, self._gauges(night))

    def finish(self, night: Night, published: Published | None) -> None:
        """Write the whole run, and when it was completed: what stays when a later one fails."""
        now = time.time()
        gauges = [*self._gauges(night), *_ended(now, completed=True)]
        if published is not None:
            gauges.append(Gauge("live_images", "Live images told to readers.", published.live))
        self._write(self._file, gauges)
        self._write(self._completed, [Gauge("completed_timestamp_seconds", "When it ended.", now)])

    def fail(self, night: Night, error: BaseException) -> None:
        """Write what was done before the end."""
        self._write(self._file, [*self._gauges(night), *_ended(time.time(), completed=False)])

    def _gauges(self, night: Night) -> Iterator[Gauge]:
        yield Gauge("start_timestamp_seconds", "When it began.", night.started_at)
        for stage, counted in counts(night).items():
            for name, value in counted.items():
                yield Gauge(f"stage_{name}", COUNTED[name], value, {"stage": stage})
        for reason, count in outcomes.reasons(night.outcomes).items():
            yield Gauge("rejected", "Images left out, by reason.", count, {"reason": reason})

    def _write(self, file: Path, gauges: Iterable[Gauge]) -> None:
        families: dict[str, GaugeMetricFamily] = {}
        for one in gauges:
            labels = {**self._labels, **one.labels}
            name = f"clipcap_last_run_{one.name}"
            family = families.setdefault(
                name, GaugeMetricFamily(name, one.text, labels=list(labels))
            )
            family.add_metric(list(labels.values()), one.value)
        registry = CollectorRegistry()
        registry.register(_Families(families.values()))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(str(file), registry)
        except OSError as error:
            log.warning("The metrics of this run cannot be written: %s", error)


def _ended(now: float, *, completed: bool) -> list[Gauge]:
    return [
        Gauge("end_timestamp_seconds", "When it ended.", now),
        Gauge("completed", "1 if it ended well, 0 if not.", completed),
    ]


class _Families:
    """What Prometheus's client asks for numbers."""

    def __init__(self, families: Iterable[Any]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        return self._families
