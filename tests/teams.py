"""A folder and a plan in, captioners that one process and two trained out.

    python -m tests.teams FOLDER < PLAN.json

Runs as a process of its own: it imports everything, does no work itself, and forks one child for
each process of a training, in the environment that torchrun makes. The plan is a list of trainings:
`name`, `processes`, `settings`, and where one dies with SIGKILL, `dies`: `[rank, step]`. Writes, as
JSON, how each child of a training ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401 - imported once, not in each child

from clipcap import parallel, storage, trainer
from clipcap.lessons import Examples
from clipcap.progress import Hooks, Progress
from clipcap.resume import Checkpoint
from clipcap.training import TrainSettings
from tests.captioners import embeddings, tiny_captioner
from tests.forks import together

IMAGES, TEXTS = 13, 5
WORDS = ("ball", "car", "boat", "cat", "dog", "house", "tree")


def main(folder: Path, plan: list[dict[str, Any]]) -> list[list[int]]:
    """Do one training after another; those of one name go on from each other."""
    return [
        together(partial(_train, folder, one, rank, port) for rank in range(one["processes"]))
        for one in plan
        for port in [_free_port()]
    ]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _train(folder: Path, one: dict[str, Any], rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(one["processes"]), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    settings = TrainSettings.model_validate(one["settings"])
    captioner = tiny_captioner()
    said = [
        [f"a {WORDS[(n + k) % 7]} on the sea." for k in range(1 + n % 4)] for n in range(IMAGES)
    ]
    said += [[f"a {WORDS[n]} and a tree."] for n in range(TEXTS)]
    examples = Examples(embeddings(len(said)), said, texts=TEXTS)
    at = folder / one["name"]
    at.mkdir(exist_ok=True)
    checkpoint = Checkpoint(storage.canonical(str(at / "state.safetensors")), "of this data")

    def on_progress(progress: Progress) -> None:
        with (at / f"steps-{rank}.txt").open("a") as told:
            told.write(f"{progress.step}\n")
        if one.get("dies") == [rank, progress.step]:
            os.kill(os.getpid(), signal.SIGKILL)

    hooks = Hooks(on_progress=on_progress, load=checkpoint.load, save=checkpoint.save, save_steps=3)
    with parallel.joined(torch.device("cpu")):
        trainer.learn(examples, captioner, settings, hooks=hooks)
    captioner.save(str(at / f"captioner-{rank}"))  # inside, transformers saves for the first alone


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1]), json.load(sys.stdin)), sys.stdout)
