"""Small images by the hundred thousand in, the memory of every process after each shard out.

    python -m bench.memory --images 200000 --tars 20

The tars hold made-up pictures of 48 to 96 pixels. They are taken in where they lie, then embedded
by a free model (its preprocessing is that of ViT-B-32). Resident memory is sampled when a shard
ends: what the main process holds, and the largest worker. It is flat if what comes after the first
tenth adds nothing.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from bench.random_models import random_encoder
from bench.tars_to_parquet import Free
from clipcap import embedding, manifest, shards, storage, workers
from clipcap.embedding import EmbedSettings, Speed
from clipcap.layout import Run
from clipcap.stages import embed, shard
from clipcap.stages.shard import ShardSettings


def main() -> None:
    """Read the command line, make the tars, run both stages, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--tars", type=int, default=20)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write(place / "tars", chosen.images, chosen.tars)
        settings = EmbedSettings(model=str(random_encoder(place / "model", "ViT-B-32")))
        run = Run("bench", storage.canonical(str(place / "out")), "2000-01-01")
        with patch.object(embedding, "load", return_value=Free(settings)):
            measure(str(place / "tars" / "*.tar"), run, settings)
        workers.close()


def write(folder: Path, images: int, tars: int) -> None:
    """Write the tars: each picture is another one, drawn cheaply."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for number in range(tars):
        files = [(f"{number:03}{n:06}", "jpg", small(noise, rng)) for n in range(images // tars)]
        (folder / f"{number:05}.tar").write_bytes(shards.pack(files)[0])


def small(noise: np.ndarray, rng: np.random.Generator) -> bytes:
    """Return a small JPEG."""
    left, top = rng.integers(0, 400, 2)
    width, height = rng.integers(48, 97, 2)
    stream = io.BytesIO()
    Image.fromarray(noise[top : top + height, left : left + width]).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def measure(source: str, run: Run, settings: EmbedSettings) -> None:
    """Run both stages shard by shard and print what is held after each tenth."""
    taking = ShardSettings()
    plan = shard.plan(source, run=run, settings=taking)
    print("| stage | images so far | main process, MB | largest worker, MB | images/s |")
    print("| --- | --- | --- | --- | --- |")
    done, began = 0, time.perf_counter()
    for part in plan.planned:
        done += shard.shard(part.shard, run=run, settings=taking).computed
        row("shard", done, began)
    done, began = 0, time.perf_counter()
    targets = manifest.shards(run.out)
    for at in range(0, len(targets), 2):
        outcomes = embed.embed(
            targets[at : at + 2], run=run, settings=settings, speed=Speed(batch_size=64)
        )
        done += sum(one.computed for one in outcomes)
        row("embed", done, began)


def row(stage: str, done: int, began: float) -> None:
    """Print what every process holds now."""
    own, *others = resident()
    seconds = time.perf_counter() - began
    print(
        f"| {stage} | {done:,} | {own:.0f} | {max(others):.0f} | {done / seconds:.0f} |", flush=True
    )


def resident() -> Iterator[float]:
    """Yield megabytes of this process, then of all that it has started."""
    found, wanted = {}, [Path("/proc/self").resolve().name]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                lines = (folder / "status").read_text().splitlines()
            except OSError:
                continue
            values = dict(line.split(":", 1) for line in lines)
            found[folder.name] = (values["PPid"].strip(), values.get("VmRSS", "0 kB").split()[0])
    for pid in wanted:
        yield int(found[pid][1]) / 1024
        wanted += [child for child, (parent, _) in found.items() if parent == pid]


if __name__ == "__main__":
    main()
