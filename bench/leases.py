"""A store in, requests and milliseconds of a lease, and seconds of Delta commits, out.

    python -m bench.leases
    python -m bench.leases --ceph

A night takes its lease, shows that it lives, and gives it back; a commit names so many new files of
one table, and the next one ten more. CPU seconds are those of this process, all threads.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clipcap import conditions, delta, leases, storage

REPEATS = 20
CALLS = ("list_objects", "read", "create", "write", "delete")
"""Each is one request to a store, for folders of up to 1,000 objects."""


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of storage."""
    counts: Counter[str] = Counter()
    real = {name: getattr(storage, name) for name in CALLS}

    def call(name: str, *args: Any) -> Any:  # noqa: ANN401
        counts[name] += 1
        return real[name](*args)

    for name in CALLS:
        setattr(storage, name, partial(call, name))
    try:
        yield counts
    finally:
        for name, function in real.items():
            setattr(storage, name, function)


def night(out: str) -> None:
    """Hold a lease, and no more."""
    with leases.held(out, what="bench", run_id="bench"):
        pass


def beat(lease: leases.Lease) -> None:
    """Show that a holder lives."""
    lease._beat_if_possible()


def row(name: str, work: Callable[[], object]) -> None:
    """Print requests, and the medians of wall and CPU time."""
    with counted() as counts:
        work()
    walls, cpus = [], []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    asked = ", ".join(f"{count} {call}" for call, count in sorted(counts.items()))
    wall_ms, cpu_ms = (1_000 * statistics.median(times) for times in (walls, cpus))
    print(f"| {name} | {counts.total()} ({asked}) | {wall_ms:.1f} | {cpu_ms:.1f} |")


def commits(out: str, count: int) -> None:
    """Print the seconds of the first commit of so many files, of ten more, and of no change."""
    urls = [f"{out}/labels/labelset=a/dt=2026-11-20/{n:016x}.parquet" for n in range(count + 10)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(partial(_put, data=b"x" * 100), urls[:count]))
        told = [_timed(out)]
        list(pool.map(partial(_put, data=b"x" * 100), urls[count:]))
    told += [_timed(out), _timed(out)]
    print(f"| {count:,} | {' | '.join(told)} |")


def opened(out: str, nights: int) -> None:
    """Print how long a log of so many commits of five files takes to be read."""
    log = f"{out}/labels/_delta_log"
    for name in ("a", "b"):
        _put(f"{out}/labels/labelset=a/dt=2026-11-20/{name}.parquet", b"x" * 100)
        delta.register(out, {}, run_id="bench")
    line = '{"add":{"path":"labelset=a/dt=2026-11-20/%016x.parquet","partitionValues":'
    line += '{"labelset":"a","dt":"2026-11-20"},"size":100,"modificationTime":1,"dataChange":true}}'
    texts = {
        f"{log}/{n:020d}.json": "\n".join(line % (100 * n + m) for m in range(5))
        for n in range(2, nights)
    }
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: _put(item[0], item[1].encode()), texts.items()))
    wall = time.perf_counter()
    delta._state(out, "labels")
    print(f"a log of {nights:,} commits is read in {time.perf_counter() - wall:.2f} s")


def _put(url: str, data: bytes) -> None:
    storage.write(url, data)


def _timed(out: str) -> str:
    wall, cpu = time.perf_counter(), time.process_time()
    delta.register(out, {}, run_id="bench")
    return f"{time.perf_counter() - wall:.2f} ({time.process_time() - cpu:.2f})"


def main(root: str) -> None:
    """Print both tables for one store."""
    row("probe alone (`clipcap doctor`)", lambda: conditions.kind(f"{root}/probe"))
    night(f"{root}/lease")
    row("a night's lease", lambda: night(f"{root}/lease"))
    with leases.held(f"{root}/beat", what="bench", run_id="bench") as lease:
        row("a sign of life (every 20 s)", lambda: beat(lease))
    print("\n| files | first commit | ten more | nothing to commit |\n| --- | --- | --- | --- |")
    for count in (1_000, 10_000):
        commits(f"{root}/{count}", count)
    opened(f"{root}/long", 1_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ceph", action="store_true")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        if not parser.parse_args().ceph:
            main(storage.canonical(folder))
            sys.exit()
        from tests.servers import make_bucket, shared_s3

        with shared_s3(Path(folder)) as address:
            os.environ.update(address.environment)
            main(make_bucket(address, "bench"))
