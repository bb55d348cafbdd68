"""A seed in, the whole bundled model out: `python -m clipcap.bundled.build OUT [--seed 0]`.

Draws scenes, trains the tiny CLIP, embeds scenes with it, trains the tiny captioner on those
embeddings, writes both folders, the demo's pictures, and `evaluation.json` with what was measured
on held-out scenes. The same seed gives the same weights on the same machine.
"""

import argparse
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipcap.bundled import demo, evaluation, tiny_captioner, tiny_clip
from clipcap.bundled.pool import Pool, draw_pool

log = logging.getLogger(__name__)

THREADS = 2
"""Sums are split among threads, so that another number gives slightly other weights."""

CLIP_SCENES = 40_000
FRESH_SCENES = 20_000
"""Scenes that only the captioner learns from: the CLIP fits its own training pictures too well."""

CLIP_EPOCHS = 10
CAPTIONER_EPOCHS = 6
EVALUATED_SCENES = 1_000
_BATCH = 500


def build(out: Path, *, seed: int) -> evaluation.Figures:
    """Make everything anew and write it under `out`; return what was measured."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    started = time.monotonic()
    encoder_folder, captioner_folder = out / "encoder", out / "captioner"
    pool = draw_pool(CLIP_SCENES, seed=seed, stream=1, split="train")
    log.info("drew %d scenes, %.0f s", len(pool.scenes), time.monotonic() - started)
    clip = tiny_clip.train(pool, tiny_clip.Recipe(seed=seed, epochs=CLIP_EPOCHS))
    tiny_clip.write_folder(clip, _empty(encoder_folder))
    fresh = draw_pool(FRESH_SCENES, seed=seed, stream=2, split="train")
    both = Pool(pool.scenes + fresh.scenes, np.concatenate([pool.pixels, fresh.pixels]))
    embedding_ND = embed(encoder_folder, both)
    log.info("embedded %d scenes, %.0f s", len(both.scenes), time.monotonic() - started)
    chosen = tiny_captioner.settings(seed, CAPTIONER_EPOCHS)
    captioner = tiny_captioner.make(encoder_folder, embedding_ND, both.scenes, chosen)
    captioner.save(str(_empty(captioner_folder)))
    demo.write_pictures(_empty(out / "pictures"), seed=seed)
    figures = evaluation.evaluate(
        encoder_folder, captioner_folder, count=EVALUATED_SCENES, seed=seed
    )
    evaluation.write(figures, out / "evaluation.json")
    log.info("done, %.0f s: %s", time.monotonic() - started, figures)
    return figures


def embed(encoder_folder: Path, pool: Pool) -> Tensor:
    """Embed a pool by the written encoder, as the embeddings table stores it."""
    model = tiny_clip.load(encoder_folder)
    pixels = torch.from_numpy(pool.pixels)
    with torch.inference_mode():
        parts = [
            model.encode_image(tiny_clip.normalised(part), normalize=True)
            for part in torch.split(pixels, _BATCH)
        ]
    return tiny_captioner.stored(torch.cat(parts))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Read the command line, build, and log each step."""
    parser = argparse.ArgumentParser(description="Make the bundled model and its pictures anew.")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="everything follows from it")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build(chosen.out, seed=chosen.seed)


if __name__ == "__main__":
    main()
