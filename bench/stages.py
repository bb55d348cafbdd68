"""A folder of images in; images per second of each stage, and what is not the model, out.

    python -m bench.stages IMAGES --model bundled
    python -m bench.stages IMAGES --model random-ViT-B-32

The reference is the loop that a user of open_clip writes: open, preprocess and stack one image
after another, `encode_image` in batches of 64. It runs in the same process, on the same images,
after each night; the ratio is stage to reference. Each figure is the median of `--repeats` runs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import open_clip
import torch
from PIL import Image

from bench.random_models import random_captioner, random_encoder
from clipcap import embedding, manifest, storage
from clipcap.embedding import EmbedSettings, Speed
from clipcap.labels import bank
from clipcap.layout import Run
from clipcap.outcomes import Outcome
from clipcap.stages import caption, embed, label, shard
from clipcap.stages.caption import CaptionSettings, CaptionSpeed
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings

BATCH = 64


@dataclass(frozen=True)
class Figure:
    """One stage in one run."""

    stage: str
    images: int
    wall_s: float
    model_s: float


def main() -> None:
    """Read the command line, run, print Markdown rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", choices=("bundled", "random-ViT-B-32"), default="bundled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        encoder, captioner = _models(chosen.model, Path(folder))
        runs, references = [], []
        for n in range(chosen.repeats + 1):  # the first one loads the models
            runs.append(_night(chosen, Path(folder) / f"out-{n}", encoder, captioner))
            references.append(_reference(chosen, encoder))
    _print(chosen.model, runs[1:], references[1:])


def _models(name: str, folder: Path) -> tuple[EmbedSettings, CaptionSettings]:
    if name == "bundled":
        return EmbedSettings(), CaptionSettings()
    encoder = EmbedSettings(model=str(random_encoder(folder / "encoder", "ViT-B-32")))
    return encoder, CaptionSettings(captioner=str(random_captioner(folder / "captioner", encoder)))


def _night(
    chosen: argparse.Namespace, out: Path, encoder: EmbedSettings, captioner: CaptionSettings
) -> list[Figure]:
    run = Run("bench", storage.canonical(str(out)), "2026-01-01")
    settings = ShardSettings(limit=chosen.limit)
    began = time.perf_counter()
    plan = shard.plan(str(chosen.images), run=run, settings=settings)
    figures = [Figure("list and plan", plan.listed, time.perf_counter() - began, 0.0)]
    targets = [part.shard for part in plan.planned]
    write = partial(shard.shard, run=run, settings=settings)
    figures.append(_timed("shard", lambda: [write(target) for target in targets]))
    shards = manifest.shards(run.out)
    speed = Speed(batch_size=BATCH)
    figures.append(
        _timed("embed", lambda: embed.embed(shards, run=run, settings=encoder, speed=speed))
    )
    describe = partial(
        caption.caption, run=run, settings=captioner, encoder=encoder, speed=CaptionSpeed()
    )
    figures.append(_timed("caption", lambda: [describe(target) for target in shards]))
    places, choice = [bank.load("scene_places")], LabelSettings()
    name = partial(label.label, run=run, settings=choice, encoder=encoder)
    figures.append(_timed("label", lambda: [name(target, places)[0] for target in shards]))
    return figures


def _timed(stage: str, work: Callable[[], list[Outcome]]) -> Figure:
    began = time.perf_counter()
    outcomes = work()
    wall_s = time.perf_counter() - began
    return Figure(
        stage,
        sum(outcome.computed for outcome in outcomes),
        wall_s,
        sum(outcome.model_s for outcome in outcomes),
    )


def _reference(chosen: argparse.Namespace, encoder: EmbedSettings) -> Figure:
    """Run the loop that a user of open_clip writes."""
    ref = embedding.reference(encoder)
    model, _, preprocess = open_clip.create_model_and_transforms(ref.model_spec)
    model.eval()
    found = (path for path in chosen.images.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    paths = sorted(found)[: chosen.limit]
    began = time.perf_counter()
    model_s = 0.0
    for at in range(0, len(paths), BATCH):
        stacked = torch.stack([preprocess(Image.open(path)) for path in paths[at : at + BATCH]])
        inside = time.perf_counter()
        with torch.inference_mode():
            model.encode_image(stacked, normalize=True)
        model_s += time.perf_counter() - inside
    return Figure("open_clip's loop", len(paths), time.perf_counter() - began, model_s)


def _print(model: str, runs: list[list[Figure]], references: list[Figure]) -> None:
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{where}, {model}, {runs[0][0].images} images, median of {len(runs)}")
    print("| stage | images/s | not the model | to open_clip's loop |\n| --- | --- | --- | --- |")
    for same in [*zip(*runs, strict=True), references]:
        rate = statistics.median(figure.images / figure.wall_s for figure in same)
        rest = statistics.median(1 - figure.model_s / figure.wall_s for figure in same)
        pairs = [
            (figure.images / figure.wall_s) / (reference.images / reference.wall_s)
            for figure, reference in zip(same, references, strict=True)
        ]
        compared = same[0].stage in ("embed", "open_clip's loop")
        ratio = f"{statistics.median(pairs):.2f}" if compared else ""
        print(f"| {same[0].stage} | {rate:.0f} | {rest:.0%} | {ratio} |")


if __name__ == "__main__":
    main()
