"""Partitions of small images in; what a recorded night costs against the plain library loop out.

    python -m bench.overhead --partitions 100 --images 100

The reference calls the stages of the library in one process, one shard after another, without
Prefect. The night does the same work, each shard a task run of each stage, recorded by a Prefect
server that runs beside it. Both take the same images with the bundled models, in turn; an overhead
by partition weighs ten times as much on 100 images as on 1,000.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings

from bench import cpu
from clipcap import manifest, storage
from clipcap.labels import bank
from clipcap.layout import Run
from clipcap.outcomes import Night, Outcome
from clipcap.planning import PackSettings
from clipcap.stages import caption, embed, label, publish, shard
from clipcap.stages.shard import ShardSettings
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.prefect_servers import prefect_server


def main() -> None:
    """Read the command line, run, print Markdown rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--partitions", type=int, default=100)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    settings = NightlySettings(
        shard=ShardSettings(pack=PackSettings(max_images=chosen.images)), shards_per_partition=1
    )
    with tempfile.TemporaryDirectory() as place:
        few = _drawn(Path(place) / "few", chosen.images)
        source = _drawn(Path(place) / "in", chosen.partitions * chosen.images)
        with prefect_server(Path(place) / "server") as server:
            quiet = {PREFECT_API_URL: server.url, PREFECT_LOGGING_LEVEL: "WARNING"}
            pairs = []
            with temporary_settings(quiet):
                _loop(few, f"{place}/plain", settings)  # these load the models
                nightly(few, f"{place}/night", settings)
                for n in range(chosen.repeats):
                    plain = _timed(lambda: _loop(source, f"{place}/plain-{n}", settings))  # noqa: B023
                    night = _timed(lambda: nightly(source, f"{place}/night-{n}", settings))  # noqa: B023
                    pairs.append((plain, night))
    _print(chosen, pairs)


def _drawn(folder: Path, count: int) -> str:
    random = np.random.default_rng(0)
    folder.mkdir()
    for n in range(count):
        colours = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((96, 72), Image.Resampling.BICUBIC)
        image.save(folder / f"{n:06d}.jpg")
    return str(folder)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    began, before = time.perf_counter(), cpu.seconds()
    work()
    return time.perf_counter() - began, cpu.seconds() - before


def _loop(source: str, out: str, settings: NightlySettings) -> None:
    """Do a night as a script would that calls the library."""
    run = Run("bench", storage.canonical(out), "2026-01-01")
    started = time.time()
    plan = shard.plan(source, run=run, settings=settings.shard)
    done: list[Outcome] = []
    done += [shard.shard(part.shard, run=run, settings=settings.shard) for part in plan.planned]
    live = manifest.shards(run.out)
    encoder = settings.embed
    given = [bank.load(name) for name in settings.label.label_sets]
    done += embed.embed(live, run=run, settings=encoder, speed=settings.speed)
    if (how := settings.caption) is not None:
        speed = settings.caption_speed
        done += [
            caption.caption(one, run=run, settings=how, encoder=encoder, speed=speed)
            for one in live
        ]
    for one in live:
        done += label.label(one, given, run=run, settings=settings.label, encoder=encoder)
    night = Night(run, "nightly", "bench", started, "{}", plan, tuple(done))
    publish.publish(night, settings=settings.publish)


def _print(
    chosen: argparse.Namespace, pairs: list[tuple[tuple[float, float], tuple[float, float]]]
) -> None:
    print(f"{chosen.partitions} partitions of {chosen.images} images, median of {len(pairs)}")
    print("| | seconds | CPU seconds |\n| --- | --- | --- |")
    for name, at in (("the library's stages in a loop", 0), ("a night, recorded by a server", 1)):
        wall, used = (statistics.median(pair[at][n] for pair in pairs) for n in (0, 1))
        print(f"| {name} | {wall:.1f} | {used:.1f} |")
    ratios = [statistics.median(night[n] / plain[n] for plain, night in pairs) for n in (0, 1)]
    print(f"| the night to the loop | {ratios[0]:.3f} | {ratios[1]:.3f} |")


if __name__ == "__main__":
    main()
