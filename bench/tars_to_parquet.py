"""Tars in, images per CPU second from them to Parquet out, against the bare loops.

    python -m bench.tars_to_parquet TARS... --model free
    python -m bench.tars_to_parquet TARS... --model ViT-B-32 --precision bf16
    python -m bench.tars_to_parquet TARS... --model bundled
    python -m bench.tars_to_parquet TARS... --model ViT-L-14 --precision bf16 --device cuda

`free` has the preprocessing of ViT-B-32 and no model: the data path alone. The tars are taken in
where they lie; then the embed stage runs over them, once before it is measured. Bounds, in the same
process: `decode` is a loop of `pixels` over the same bytes, in one thread of as many processes as
the stage has; `forward` is the model over pixels that are there, in as many threads as the stage
has, one batch begun before the one before it is waited for. A stage that wasted nothing would take
the sum of both for an image on a CPU; on a GPU, the forward's by the clock. CPU seconds are those
of the process and of its workers.

Each repeat is a fresh process; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import flows  # noqa: F401 - sets how torch's threads wait, as in a night
from bench import cpu
from clipcap import embedding, layout, manifest, storage, tables, workers
from clipcap.embedding import EmbedSettings, Speed
from clipcap.layout import Run, Shard
from clipcap.preprocessing import Preprocess
from clipcap.stages import embed, shard
from clipcap.stages.shard import ShardSettings
from clipcap.workers import WorkerSettings

FORWARD_S = 10.0
DECODED = 400
DIM = 512


def main() -> None:
    """Read the command line; measure in processes of their own; print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", type=Path, nargs="+")
    parser.add_argument("--model", default="free", help="free, bundled or an architecture")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(once(chosen)))
        return
    command = [sys.executable, "-m", "bench.tars_to_parquet", *sys.argv[1:], "--once"]
    runs = []
    for _ in range(chosen.repeats):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), file=sys.stderr)
    show(chosen, runs)


def once(chosen: argparse.Namespace) -> dict[str, float]:
    """Take in, embed and run the bare loops once."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(chosen, Path(folder))
        speed = Speed(
            batch_size=chosen.batch_size,
            device=chosen.device,
            decode=WorkerSettings(processes=chosen.processes),
        )
        run = Run("bench", storage.canonical(f"{folder}/out"), "2000-01-01")
        with patch.object(embedding, "load", _loader(chosen.model, settings)):
            figures = _night(chosen, run, settings, speed)
            figures |= _bare(manifest.shards(run.out), run, settings, speed)
        workers.close()
        return figures


def _settings(chosen: argparse.Namespace, folder: Path) -> EmbedSettings:
    if chosen.model == "bundled":
        return EmbedSettings(precision=chosen.precision)
    from bench.random_models import random_encoder

    architecture = "ViT-B-32" if chosen.model == "free" else chosen.model
    return EmbedSettings(
        model=str(random_encoder(folder / "model", architecture)), precision=chosen.precision
    )


class Free:
    """An encoder that costs nothing: some numbers of the picture are its embedding."""

    def __init__(self, settings: EmbedSettings) -> None:
        import torch

        ref = embedding.reference(settings)
        self.ref, self.model_id, self.sha256 = ref, ref.model_id, ref.sha256
        self.preprocess_json, self.preprocess_sha256 = ref.preprocess_json, ref.preprocess_sha256
        self.dim, self.logit_scale, self.logit_bias = DIM, 1.0, None
        self.device, self.precision = torch.device("cpu"), "fp32"

    def encode_pixels(self, pixels_BHWC: Any) -> Callable[[], Any]:  # noqa: ANN401
        """Return what was in the first row."""
        flat = pixels_BHWC.reshape(len(pixels_BHWC), -1)[:, :DIM].float() + 1
        return lambda: flat


def _loader(model: str, settings: EmbedSettings) -> Callable[..., Any]:
    if model != "free":
        return embedding.load
    free = Free(settings)
    return lambda *_: free


def _night(
    chosen: argparse.Namespace, run: Run, settings: EmbedSettings, speed: Speed
) -> dict[str, float]:
    folder = chosen.tars[0].parent
    source = str(folder / "*.tar") if len(chosen.tars) > 1 else str(chosen.tars[0])
    taking = ShardSettings(decode=speed.decode)
    wall, spent = time.perf_counter(), cpu.seconds()
    plan = shard.plan(source, run=run, settings=taking)
    outcomes = [shard.shard(part.shard, run=run, settings=taking) for part in plan.planned]
    shard_s, shard_cpu = time.perf_counter() - wall, cpu.seconds() - spent
    targets = manifest.shards(run.out)
    embed.embed(targets[:1], run=run, settings=settings, speed=speed)  # loads and warms
    for target in targets[:1]:
        url = layout.embeddings(run.out, target, model_id=embedding.reference(settings).model_id)
        storage.delete(url)
    wall, spent = time.perf_counter(), cpu.seconds()
    done = embed.embed(targets, run=run, settings=settings, speed=speed)
    wall, spent = time.perf_counter() - wall, cpu.seconds() - spent
    images = sum(one.computed for one in done)
    return {
        "listed": plan.listed,
        "images": images,
        "rejected": sum(one.rejected for one in (*outcomes, *done)),
        "shard_s": shard_s / plan.listed,
        "shard_cpu_s": shard_cpu / plan.listed,
        "embed_s": wall / images,
        "embed_cpu_s": spent / images,
        "model_s": sum(one.model_s for one in done) / wall,
        "read_s": sum(one.read_s for one in done) / wall,
        "decode_s": sum(one.decode_s for one in done) / wall,
    }


def _bare(
    targets: Sequence[Shard], run: Run, settings: EmbedSettings, speed: Speed
) -> dict[str, float]:
    """Return seconds per image of decoding alone and of the model alone."""
    import torch

    from clipcap.pixels import pixels

    wanted = Preprocess.of(embedding.reference(settings).preprocess)
    files = [data for target in targets for data in _files(target, run)]
    files = files[:: max(len(files) // DECODED, 1)]
    decoded = [pixels(data, wanted) for data in files[:16]]
    count = speed.decode.count
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as processes:
        shares = [files[start::count] for start in range(count)]
        decode = statistics.mean(processes.map(decode_alone, shares, [wanted] * count))
    encoder = embedding.load(settings, speed)
    batch = torch.from_numpy(np.stack(decoded * (speed.batch_size or 64 // 16 + 1)))
    batch = batch[: speed.batch_size]
    encoder.encode_pixels(batch)()
    count, wall, spent = len(batch), time.perf_counter(), time.process_time()
    waiting = encoder.encode_pixels(batch)
    while time.perf_counter() - wall < FORWARD_S:
        begun = encoder.encode_pixels(batch)
        waiting()
        waiting, count = begun, count + len(batch)
    waiting()
    return {
        "bare_decode_cpu_s": decode,
        "bare_forward_s": (time.perf_counter() - wall) / count,
        "bare_forward_cpu_s": (time.process_time() - spent) / count,
    }


def decode_alone(files: list[bytes], wanted: Preprocess) -> float:
    """Return the CPU seconds that an image takes in a loop."""
    import torch

    from clipcap.pixels import pixels

    torch.set_num_threads(1)
    good = []
    for data in files[:16]:
        pixels(data, wanted)
    spent = time.process_time()
    for data in files:
        good.append(pixels(data, wanted).shape)
    return (time.process_time() - spent) / len(good)


def _files(target: Shard, run: Run) -> list[bytes]:
    table = tables.read(layout.manifest(run.out, target))
    tar = manifest.tar_url(run.out, target, tables.metadata(table))
    data = storage.read(tar)
    rows = table.select(["member_offset", "member_bytes"]).to_pylist()
    return [data[row["member_offset"] :][: row["member_bytes"]] for row in rows]


def show(chosen: argparse.Namespace, runs: list[dict[str, float]]) -> None:
    """Print the medians."""
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    bare = found["bare_decode_cpu_s"]
    bound = bare + (0 if chosen.model == "free" else found["bare_forward_cpu_s"])
    rows = {
        "take in (in place), images per CPU second": 1 / found["shard_cpu_s"],
        "tars to Parquet, images/s": 1 / found["embed_s"],
        "tars to Parquet, images per CPU second": 1 / found["embed_cpu_s"],
        "bare decode, images per CPU second": 1 / bare,
        "bare forward, images per CPU second": 1 / max(found["bare_forward_cpu_s"], 1e-9),
        "bare forward, images/s": 1 / found["bare_forward_s"],
        "share of the bare forward, by the clock": found["bare_forward_s"] / found["embed_s"],
        "share of the bound": bound / found["embed_cpu_s"],
        "in the model": found["model_s"],
        "waiting for reading": found["read_s"],
        "waiting for decoding": found["decode_s"],
    }
    print(f"{chosen.model} {chosen.precision}: {found['listed']:.0f} images listed, "
          f"{found['images']:.0f} embedded, {found['rejected']:.0f} rejected")  # fmt: skip
    for name, value in rows.items():
        print(f"| {name} | {value:.3g} |")


if __name__ == "__main__":
    main()
