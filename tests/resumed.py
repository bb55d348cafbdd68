"""A folder and points to die at in; captioners trained to there and then to their end out.

    python -m tests.resumed FOLDER POINT ...

Runs as a process of its own: it imports everything, does no work itself, and forks a child for
each training. A child ends itself with SIGKILL, which nothing in the library can catch: POINT is
`before:N` or `after:N`, of the N-th write of the state, `step:N`, or `never`. Writes, as JSON,
how each child of a point ended and which steps it took.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401 - imported once, not in each child

from clipcap import storage, trainer
from clipcap.lessons import Examples
from clipcap.progress import Hooks, Progress, State
from clipcap.resume import Checkpoint
from clipcap.training import TrainSettings
from tests.captioners import embeddings, tiny_captioner
from tests.forks import forked

IMAGES, TEXTS = 30, 20
SETTINGS = TrainSettings(
    epochs=3, batch_size=8, learning_rate=3e-3, validation_share=0.2, validations=4,
    embedding_noise=0.01, weight_decay=0.01, accumulate=2, seed=3,
)  # fmt: skip
WORDS = ("ball", "car", "boat", "cat", "dog", "house", "tree")


def captions() -> list[list[str]]:
    """Return one to four captions of each image."""
    return [
        [f"a {WORDS[(n + k) % len(WORDS)]} on the sea." for k in range(1 + n % 4)]
        for n in range(IMAGES)
    ]


def main(folder: Path, points: list[str]) -> list[dict[str, Any]]:
    """Train to each point and then on to the end."""
    found = []
    for point in points:
        at = folder / point.replace(":", "-")
        at.mkdir()
        statuses = [forked(partial(_train, at, one)) for one in (point, "never")]
        steps = [_steps(at / f"{name}.txt") for name in (point, "never")]
        found.append({"point": point, "folder": str(at), "statuses": statuses, "steps": steps})
    return found


def _steps(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _train(folder: Path, point: str) -> None:
    """Go on from where a process before was killed, and save the captioner."""
    torch.set_num_threads(1)
    kind, _, at = point.partition(":")
    checkpoint = Checkpoint(storage.canonical(str(folder / "state.safetensors")), "of this data")
    saves = [0]

    def save(state: State) -> None:
        saves[0] += 1
        _die((kind, at) == ("before", str(saves[0])))
        checkpoint.save(state)
        _die((kind, at) == ("after", str(saves[0])))

    def on_progress(progress: Progress) -> None:
        with (folder / f"{point}.txt").open("a") as told:
            told.write(f"{progress.step}\n")
        _die((kind, at) == ("step", str(progress.step)))

    captioner = tiny_captioner()
    for block in captioner.language_model.transformer.h:
        block.mlp.dropout.p = 0.1  # the random state matters
    hooks = Hooks(on_progress=on_progress, load=checkpoint.load, save=save, save_steps=5)
    said = [*captions(), *([f"a {WORDS[n % len(WORDS)]} and a tree."] for n in range(TEXTS))]
    examples = Examples(embeddings(len(said)), said, texts=TEXTS)
    trainer.learn(examples, captioner, SETTINGS, hooks=hooks)
    captioner.save(str(folder / "captioner"))


def _die(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1]), sys.argv[2:]), sys.stdout)
