"""Files in, how fast they become tars out, against `tar` on the same files.

    python -m bench.photographs FOLDER --count 2000
    python -m bench.sharding FOLDER --repeats 5

`pack` is what moves the bytes: many reads at a time, headers, one whole tar written. `stage` is the
shard stage as a night runs it: with sha256, the decoding of every image (for what is broken, its
size, EXIF, flags), the perceptual hash and the manifest. `hash` shows what of that is the digest.
All read from the page cache and write to the same disk; runs of the candidates take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from bench import cpu
from clipcap import ahead, keys, shards, storage, workers
from clipcap.layout import Run
from clipcap.planning import PackSettings
from clipcap.stages import shard
from clipcap.stages.shard import ShardSettings

PACK = PackSettings()
PER_THREAD = 8


@dataclass(frozen=True)
class Took:
    """Seconds of one run: by the clock and of all processors."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Read the command line, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    files = sorted(path for path in chosen.folder.rglob("*") if path.is_file())
    size = sum(len(path.read_bytes()) for path in files)
    runs: dict[str, list[Took]] = {name: [] for name in ("tar", "pack", "hash", "stage")}
    with tempfile.TemporaryDirectory() as place:
        stage(files[:32], chosen.folder, Path(place) / "warm")
        for turn in range(chosen.repeats):
            target = Path(place) / str(turn)
            target.mkdir()
            runs["tar"].append(timed(partial(tar, files, target / "by-tar")))
            runs["pack"].append(timed(partial(pack, files, target / "pack")))
            runs["hash"].append(timed(partial(digest, files)))
            runs["stage"].append(timed(partial(stage, files, chosen.folder, target / "stage")))
            shutil.rmtree(target)
    workers.close()
    show(runs, len(files), size)


def timed(work: Callable[[], None]) -> Took:
    """Run once."""
    wall, spent = time.perf_counter(), cpu.seconds()
    work()
    return Took(time.perf_counter() - wall, cpu.seconds() - spent)


def parts(files: Sequence[Path]) -> list[list[Path]]:
    """Return the files of each tar, as a night packs them."""
    found: list[list[Path]] = [[]]
    size = 0
    for path in files:
        more = path.stat().st_size
        if len(found[-1]) == PACK.max_images or size + more > PACK.max_bytes:
            found.append([])
            size = 0
        found[-1].append(path)
        size += more
    return found


def tar(files: Sequence[Path], target: Path) -> None:
    """Let `tar` write the same number of tars."""
    target.mkdir()
    for number, part in enumerate(parts(files)):
        names = "\n".join(path.name for path in part)
        command = [
            "tar",
            "-C",
            str(part[0].parent),
            "-cf",
            str(target / f"{number}.tar"),
            "-T",
            "-",
        ]
        subprocess.run(command, input=names, text=True, check=True)


def pack(files: Sequence[Path], target: Path) -> None:
    """Read and write as the stage does, and nothing else."""
    target.mkdir()

    def read(some: Sequence[Path]) -> list[tuple[str, str, bytes]]:
        urls = [storage.canonical(str(path)) for path in some]
        return [(keys.sample_key(url), "jpg", storage.read_range(url, 0, None)) for url in urls]

    for number, part in enumerate(parts(files)):
        several = [part[at : at + PER_THREAD] for at in range(0, len(part), PER_THREAD)]
        found = ahead.mapped(read, several, threads=storage.IN_FLIGHT)
        data, _ = shards.parts(list(chain.from_iterable(found)))
        storage.write(storage.canonical(str(target / f"{number}.tar")), *data)


def digest(files: Sequence[Path]) -> None:
    """Read and digest."""
    for path in files:
        hashlib.sha256(path.read_bytes()).hexdigest()


def stage(files: Sequence[Path], source: Path, target: Path) -> None:
    """Run the shard stage over as many files of a folder."""
    run = Run("bench", storage.canonical(str(target)), "2000-01-01")
    settings = ShardSettings(limit=len(files))
    plan = shard.plan(str(source), run=run, settings=settings)
    for part in plan.planned:
        shard.shard(part.shard, run=run, settings=settings)


def show(runs: dict[str, list[Took]], count: int, size: int) -> None:
    """Print medians, and the ratio to `tar` of each turn."""
    print(f"{count} files of {size / count / 1e3:.0f} kB")
    print(
        "| | wall s | CPU s | images/s | time of tar, wall | CPU |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for name, found in runs.items():
        wall, spent = (
            statistics.median(getattr(one, kind) for one in found) for kind in ("wall_s", "cpu_s")
        )
        ratios = [
            statistics.median(
                getattr(one, kind) / getattr(other, kind)
                for one, other in zip(found, runs["tar"], strict=True)
            )
            for kind in ("wall_s", "cpu_s")
        ]
        print(f"| {name} | {wall:.2f} | {spent:.2f} | {count / wall:.0f} "
              f"| {ratios[0]:.2f} | {ratios[1]:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
