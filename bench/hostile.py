"""Broken and malicious files in, what worker processes did with them out; 1 where any did harm.

    python -m bench.hostile FOLDER [--cases 20000] [--seed 0] [--seconds 10] [--memory-mb 512]

Every file of FOLDER, and `--cases` damaged ones (`bench.damage`) made from those and from pictures
of every format that is read, go through both modules that worker processes run: shard's
`clipcap.inspection` and embed's `clipcap.pixels`. In each request a whole picture lies among them
at a random place: its answer must be what it is alone.

Harm is: a bug raised, a neighbour's answer lost or changed, a file that took longer than its limit
allows, a worker with more memory than its limit, a reason that is none, a process left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswerError
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any

from bench import damage
from clipcap import inspection, pixels
from clipcap.errors import REASONS, ClipcapError, ImageError
from clipcap.images import ImageSettings
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.sharedmemory import SharedMemory
from clipcap.workers import CHUNK, Pool, WorkerSettings

MODEL = Preprocess(224, 224, "bicubic", "shortest", 0)
MOST_BASE_BYTES = 2**17  # of a file that damaged ones are made from
SLACK_BYTES = 2**26  # of libraries that a worker reads in only when it needs them
SHOWN = 20

Case = tuple[str, bytes]


@dataclass
class Report:
    """What became of the files in one module."""

    cases: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: str = ""
    seconds: float = 0.0
    worker_peak_mb: int = 0
    worker_allowed_mb: int = 0
    harm: list[str] = field(default_factory=list)


class Asking:
    """One thread's way to ask for files: its shared memory, and its slots for pixels."""

    def __init__(self, module: str) -> None:
        self._is_pixels = module == pixels.__name__
        self._files = SharedMemory(0)
        self._slots = SharedMemory(CHUNK * MODEL.height * MODEL.width * 3)
        self.shared: dict[str, Any] = {"settings": ImageSettings().model_dump()}
        if self._is_pixels:
            self.shared = {"memory": self._slots.path, "serial": self._slots.path}
            self.shared |= {"preprocess": asdict(MODEL), "settings": PixelSettings().model_dump()}

    def answers(self, pool: Pool, files: list[bytes], timeout_s: float) -> list[Any]:
        """Return what is said of each file; of pixels, their digest."""
        items: list[Any] = list(self._files.refilled(files))
        if self._is_pixels:
            self._slots.map[:] = bytes(len(self._slots.map))
            digests = [hashlib.sha256(data).hexdigest() for data in files]
            items = [[*item, digests[n], n] for n, item in enumerate(items)]
        [asked] = pool.submit(self.shared, items)
        answers = asked.result(timeout_s)
        size = len(self._slots.map) // CHUNK
        return [
            hashlib.sha256(self._slots.map[n * size : (n + 1) * size]).hexdigest()
            if self._is_pixels and answer is None
            else answer
            for n, answer in enumerate(answers)
        ]


class Trial:
    """One module's workers, and the files that go through them."""

    def __init__(self, module: str, settings: WorkerSettings, neighbour: bytes) -> None:
        self.report, self._settings, self._neighbour = Report(), settings, neighbour
        self._lock = Lock()
        self._others = set(_children("self"))
        self._pool = Pool(module, settings)
        self._free = [Asking(module) for _ in range(settings.count)]
        self._expected = self._asked([neighbour])[0][0]

    def _asked(self, files: list[bytes]) -> tuple[list[Any], float]:
        with self._lock:
            asking = self._free.pop()
        started = time.perf_counter()
        longest = (2 * self._settings.seconds + 30) * CHUNK
        try:
            found = asking.answers(self._pool, files, longest)
        finally:
            with self._lock:
                self._free.append(asking)
        return found, time.perf_counter() - started

    def run(self, cases: Iterable[Case], seed: int) -> None:
        """Have all cases worked on."""
        started, left = time.perf_counter(), _chunks(cases, seed)
        with ThreadPoolExecutor(self._settings.count) as threads:
            ends = [threads.submit(self._drain, left) for _ in range(self._settings.count)]
            for end in ends:
                end.result()
        self.report.seconds = round(time.perf_counter() - started, 1)

    def _drain(self, left: Iterator[tuple[int, list[Case]]]) -> None:
        while True:
            with self._lock:
                chunk = next(left, None)
            if chunk is None:
                return
            self._try(*chunk)

    def _try(self, place: int, cases: list[Case]) -> None:
        files = [data for _, data in cases]
        files.insert(place, self._neighbour)
        names = ", ".join(name for name, _ in cases)
        try:
            answers, took_s = self._asked(files)
        except (RuntimeError, ClipcapError, NoAnswerError) as error:
            self._blame(cases, names, error)
            return
        if answers.pop(place) != self._expected:
            self._harm(f"neighbour lost among {names}")
        late = sum(_reason(answer) == "timeout" for answer in answers)
        if took_s > 1.5 * self._settings.seconds * (late + 1) + 2:
            self._harm(f"{took_s:.1f} s for {names}")
        with self._lock:
            self._count(answers)
        if took_s > self.report.slowest_s:
            self._time(cases)

    def _count(self, answers: list[Any]) -> None:
        self.report.cases += len(answers)
        reasons = [reason for answer in answers if (reason := _reason(answer))]
        self.report.accepted += len(answers) - len(reasons)
        self.report.rejected.update(reasons)
        self.report.harm += [f"no reason: {name}" for name in reasons if name not in REASONS]

    def _time(self, cases: list[Case]) -> None:
        for name, data in cases:
            _, took_s = self._asked([data])
            with self._lock:
                if took_s > self.report.slowest_s:
                    self.report.slowest_s, self.report.slowest = round(took_s, 2), name

    def _blame(self, cases: list[Case], names: str, error: Exception) -> None:
        alone = []
        for name, data in cases:
            try:
                self._asked([data])
            except (RuntimeError, ClipcapError, NoAnswerError) as again:
                alone.append(f"{name}: {again}")
        self._harm("\n".join(alone) or f"together {names}: {error}")

    def _harm(self, sentence: str) -> None:
        with self._lock:
            self.report.harm.append(sentence)

    def close(self) -> None:
        """End the workers and count them."""
        zygotes = [pid for pid in _children("self") if pid not in self._others]
        pids = {pid for zygote in zygotes for pid in _children(zygote)}
        peaks = [self._pool.peak_bytes, *(_peak_bytes(pid) for pid in pids)]
        allowed = max(map(_peak_bytes, zygotes), default=0)
        allowed += self._settings.memory_bytes + SLACK_BYTES
        self._pool.close()
        self.report.replaced = self._pool.replaced
        self.report.worker_peak_mb, self.report.worker_allowed_mb = max(peaks) >> 20, allowed >> 20
        if max(peaks) > allowed:
            self._harm("a worker passed its limit of memory")
        time.sleep(0.5)
        self.report.harm += [f"process {pid} is left" for pid in pids if _peak_bytes(pid)]


def _reason(answer: object) -> str:
    return answer.reason if isinstance(answer, ImageError) else ""


def _chunks(cases: Iterable[Case], seed: int) -> Iterator[tuple[int, list[Case]]]:
    """Yield the cases of each request, and the neighbour's place among them."""
    left, draw = iter(cases), random.Random(seed)
    while chunk := list(islice(left, CHUNK - 1)):
        yield draw.randrange(len(chunk) + 1), chunk


def _children(process: int | str) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def files_below(folder: Path) -> Iterator[Case]:
    """Yield every file by its path below a folder."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path.relative_to(folder)), path.read_bytes()


def damaged(real: Iterable[Case], seed: int, count: int) -> Iterator[Case]:
    """Yield damaged files, each named by seed and number."""
    small = [data for _, data in real if len(data) <= MOST_BASE_BYTES]
    drawn = list(damage.pictures().values())
    bases = drawn * max(len(small) // len(drawn), 1) + small  # half of them whole to begin with
    for number in range(count):
        yield f"damaged {seed}/{number}", damage.case(bases, seed, number)


def main() -> int:
    """Read the command line, try both modules, print a report; return 1 where any did harm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--memory-mb", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    settings = WorkerSettings(
        processes=chosen.processes,
        seconds=chosen.seconds,
        memory_bytes=chosen.memory_mb * 2**20,
    )
    reports: dict[str, Any] = {}
    for module in (inspection.__name__, pixels.__name__):
        real = files_below(chosen.folder)
        cases = chain(real, damaged(files_below(chosen.folder), chosen.seed, chosen.cases))
        trial = Trial(module, settings, damage.pictures()["JPEG with EXIF and ICC"])
        trial.run(cases, chosen.seed)
        trial.close()
        reports[module] = vars(trial.report) | {"harm": trial.report.harm[:SHOWN]}
    reports["main_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    sys.stdout.write(json.dumps(reports, indent=1) + "\n")
    return int(any(report["harm"] for report in reports.values() if isinstance(report, dict)))


if __name__ == "__main__":
    raise SystemExit(main())
