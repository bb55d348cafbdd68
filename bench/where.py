"""Drawn scenes in, how often a label's best window holds the thing out; and what windows cost.

    python -m bench.where --scenes 600
    python -m bench.where --photographs 200 --model free
    python -m bench.where --photographs 200 --model bundled

Scenes are descriptions that no training of the bundled model saw, in four shapes; where each thing
was drawn is written down while it is drawn. `holds`: the window in which the right label is seen
best has the middle of the thing (of one of them) in it; `chance`: the share of all windows that
have. `away`: between the middles of both, in sides of the picture. Precision and recall are of the
labels that are accepted, by the whole image alone and by whole and windows.

The cost is that of the embed stage and of the windows over made-up photographs, in CPU seconds of
the process and its workers; `free` has ViT-B-32's preprocessing and no model.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

import flows  # noqa: F401 - sets how torch's threads wait, as in a night
from bench import cpu
from bench.tars_to_parquet import Free
from clipcap import embedding, layout, manifest, photographs, pixels, storage, workers
from clipcap.bundled import scenes
from clipcap.bundled.scenes import Scene
from clipcap.bundled.shapes import RGB, THINGS, Pen
from clipcap.crops import Crops
from clipcap.embedding import EmbedSettings, Speed
from clipcap.labels import bank
from clipcap.labels.heat import Finder
from clipcap.layout import Run
from clipcap.passes import Looked
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.stages import embed, shard
from clipcap.stages.shard import ShardSettings
from clipcap.windows import Grid

SHAPES = ((128, 128), (192, 128), (128, 192), (256, 128))
GRIDS = ("2", "3", "4", "5")
THRESHOLD = 0.5
Drawn = tuple[Scene, Image.Image, list[tuple[str, np.ndarray[Any, np.dtype[np.float64]]]]]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=0)
    parser.add_argument("--photographs", type=int, default=0)
    parser.add_argument("--model", default="bundled", help="free, bundled or an architecture")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if chosen.scenes:
        right(list(drawn(chosen.scenes)))
    if chosen.photographs:
        cost(chosen.photographs, chosen.model)


@contextmanager
def noted() -> Iterator[list[tuple[str, np.ndarray[Any, np.dtype[np.float64]]]]]:
    """Give a list that fills with what is drawn: its name, and its box in pixels."""
    found: list[tuple[str, np.ndarray[Any, np.dtype[np.float64]]]] = []

    def draw(name: str, shape: Callable[[Pen, RGB], None], pen: Pen, fill: RGB) -> None:
        corners = (pen.left, pen.top, pen.left + pen.width, pen.top + pen.height)
        found.append((name, np.array(corners) / 2))  # drawn at twice the size
        shape(pen, fill)

    with patch.object(
        scenes, "THINGS", {name: partial(draw, name, THINGS[name]) for name in THINGS}
    ):
        yield found


def drawn(count: int) -> Iterator[Drawn]:
    """Yield scenes, their pictures, and the boxes of their things."""
    rng = np.random.default_rng(7)
    for number in range(count):
        scene = scenes.random_scene(rng, split="held_out")
        with noted() as boxes:
            yield scene, scenes.draw(scene, rng, SHAPES[number % len(SHAPES)]), boxes


def right(found: list[Drawn]) -> None:
    """Print a row for each grid."""
    settings = EmbedSettings()
    encoder = embedding.load(settings, Speed(device="cpu"))
    wanted = Preprocess.of(embedding.reference(settings).preprocess)
    label_set = bank.load("scene_things").label_set
    given = bank.in_words(
        label_set, bank.encoded(label_set, encoder), scale=float(encoder.logit_scale or 1)
    )
    finder = Finder(given, threshold=THRESHOLD, top_k=1, chosen=range(given.count))
    files = [_png(picture) for _, picture, _ in found]
    plain = PixelSettings()
    whole_BD = _embedded(encoder, [pixels.pixels(data, wanted, plain) for data in files])
    print("| windows | holds | chance | times | away | precision, recall | whole image alone |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for grid in [Grid.of(text, overlap=overlap) for text in GRIDS for overlap in (False, True)]:
        levels = [one for data in files for one in pixels.windowed(data, wanted, plain, grid)]
        window_RD = _embedded(encoder, levels)
        heat = finder.find(whole_BD, window_RD.reshape(len(files), grid.count, -1))
        size = (len(files), given.count)
        best, both, alone = (np.zeros(size, kind) for kind in (int, bool, bool))
        best[heat.image_R, heat.index_R] = heat.best_R
        both[heat.image_R, heat.index_R] = heat.accepted_R
        alone[heat.image_R, heat.index_R] = heat.whole_R >= THRESHOLD
        figures = np.array(list(_judged(found, best, grid, label_set.names)))
        holds, chance, away = figures.mean(axis=0)
        name = f"{grid.rows} x {grid.columns}{', overlapping' if grid.overlap else ''}"
        said = [_said(one, found, label_set.names) for one in (both, alone)]
        print(
            f"| {name} | {holds:.3f} | {chance:.3f} | {holds / chance:.1f} | {away:.2f} | "
            f"{' | '.join(said)} |",
            flush=True,
        )


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _embedded(encoder: Any, levels: list[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: ANN401
    parts = [np.stack(levels[at : at + 256]) for at in range(0, len(levels), 256)]
    raw_BD = np.concatenate([encoder.encode_pixels(torch.from_numpy(one))() for one in parts])
    return np.asarray(raw_BD / np.linalg.norm(raw_BD, axis=1, keepdims=True), np.float32)


def _judged(
    found: list[Drawn],
    best_BN: np.ndarray[Any, np.dtype[np.int64]],
    grid: Grid,
    names: tuple[str, ...],
) -> Iterator[tuple[float, float, float]]:
    """Yield of each thing of each scene: held by its best window, by how many, how far away."""
    for image, (scene, picture, boxes) in enumerate(found):
        window_K4 = np.array(grid.boxes(*picture.size), np.float64)
        middle_K2 = (window_K4[:, :2] + window_K4[:, 2:]) / 2 / picture.size
        for thing in scene.things:
            mine = np.array([box for name, box in boxes if name == thing])
            middle_M2 = (mine[:, :2] + mine[:, 2:]) / 2
            inside_KM = (window_K4[:, None, :2] <= middle_M2).all(axis=2)
            holds_K = (inside_KM & (middle_M2 <= window_K4[:, None, 2:]).all(axis=2)).any(axis=1)
            place = best_BN[image, names.index(thing)]
            away_M = np.linalg.norm(middle_K2[place] - middle_M2 / picture.size, axis=1)
            yield float(holds_K[place]), float(holds_K.mean()), float(away_M.min())


def _said(accepted_BN: Any, found: list[Drawn], names: tuple[str, ...]) -> str:  # noqa: ANN401
    true_BN = np.array([[name in scene.things for name in names] for scene, _, _ in found])
    hits = (accepted_BN & true_BN).sum()
    return f"{hits / accepted_BN.sum():.3f}, {hits / true_BN.sum():.3f}"


def cost(count: int, model: str) -> None:
    """Print what an image costs embedded as a whole, and through windows."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        source.mkdir()
        rng = np.random.default_rng(0)
        for number, size in enumerate(photographs.sizes(count, megapixels=0.67, seed=0)):
            data = photographs.jpeg(photographs.photograph(rng, size))
            (source / f"{number:05}.jpg").write_bytes(data)
        files = [path.read_bytes() for path in source.iterdir()]
        settings = _settings(model, Path(folder))
        run = Run("bench", storage.canonical(f"{folder}/out"), "2000-01-01")
        plan = shard.plan(str(source), run=run, settings=ShardSettings())
        for part in plan.planned:
            shard.shard(part.shard, run=run, settings=ShardSettings())
        free = Free(settings) if model == "free" else None
        load = embedding.load if free is None else lambda *_: free
        with patch.object(embedding, "load", load):
            _cost(run, settings, files)
        workers.close()


def _settings(model: str, folder: Path) -> EmbedSettings:
    if model == "bundled":
        return EmbedSettings()
    from bench.random_models import random_encoder

    architecture = "ViT-B-32" if model == "free" else model
    return EmbedSettings(model=str(random_encoder(folder / "model", architecture)))


def _cost(run: Run, settings: EmbedSettings, files: list[bytes]) -> None:
    ref, speed = embedding.reference(settings), Speed(device="cpu", batch_size=64)
    targets = manifest.shards(run.out)
    whole_s = 0.0
    for _ in range(2):  # the first loads and warms
        for target in targets:
            storage.delete(layout.embeddings(run.out, target, model_id=ref.model_id))
        began = cpu.seconds()
        embed.embed(targets, run=run, settings=settings, speed=speed)
        whole_s = (cpu.seconds() - began) / len(files)
    print("| way | ms CPU an image | ms CPU a picture | pictures per CPU second | of embedding |")
    print("| --- | --- | --- | --- | --- |")
    _row("embed, the whole image", whole_s, 1, whole_s)
    sources = {target: embedding.current(target, ref, out=run.out) for target in targets}
    for grid in (Grid(3, 3, overlap=False), Grid(3, 3), Grid(5, 5)):
        crops = Crops(run.out, f"{run.out}-{grid}", Looked(settings, speed, ref), grid)
        began = cpu.seconds()
        crops.make(sources)
        name = f"{grid.rows} x {grid.columns}{' overlapping' if grid.overlap else ''} windows"
        _row(name, (cpu.seconds() - began) / len(files), grid.count, whole_s)
    wanted, plain = Preprocess.of(ref.preprocess), PixelSettings()
    with_grid = replace(wanted, grid=Grid(3, 3))
    ways: dict[str, Callable[[bytes], object]] = {
        "pixels alone: the whole image": lambda data: pixels.pixels(data, wanted, plain),
        "pixels alone: 3 x 3 overlapping, one decode": lambda data: list(
            pixels.windowed(data, wanted, plain, with_grid.grid or Grid(3, 3))
        ),
    }
    alone_s = 0.0
    for name, way in ways.items():
        began = time.process_time()
        for data in files:
            way(data)
        spent_s = (time.process_time() - began) / len(files)
        alone_s = alone_s or spent_s
        _row(name, spent_s, 9 if "3 x 3" in name else 1, alone_s)


def _row(name: str, seconds: float, pictures: int, whole_s: float) -> None:
    each = seconds / pictures
    print(
        f"| {name} | {1000 * seconds:.2f} | {1000 * each:.2f} | {1 / each:,.0f} | "
        f"{seconds / whole_s:.1f} times |",
        flush=True,
    )


if __name__ == "__main__":
    main()
