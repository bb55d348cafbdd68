"""Tars in, images per second of clip-retrieval's own inference on them out: the peer, as it comes.

    python -m bench.clip_retrieval ENVIRONMENT TARS... --model ViT-B-32
    python -m bench.clip_retrieval ENVIRONMENT TARS... --model null

ENVIRONMENT is a folder outside of this repository. The first call makes a virtual environment of
6 GB in it: clip-retrieval 2.45.0 with every dependency at a version that it asks for itself
(numpy 1, pyarrow 15, webdataset 0.2, open_clip 2), beside the torch and torchvision that run here.

Nothing of it is changed. What it needs and does not ask for: `setuptools<70`, since `clip` imports
`pkg_resources.packaging`. So that no hub is asked, the model is named by the path of weights, which
`open_clip:ViT-B-32/PATH` allows; they are random, made once by its own open_clip. For `null`, which
isolates reading and preprocessing, `all_clip.load_clip` is replaced: the preprocessing stays
open_clip's, the model is an average pool to 8 x 8 and a fixed projection to 512 numbers.

It runs as its README has it (`clip_inference`, tars, images only, numpy files out), `--workers`
loader processes and batches of `--batch-size`. Wall time and CPU time are those of its process and
of all that it starts. A run has a start-up of 10 to 20 CPU seconds (imports, in several processes,
and the model), so every repeat runs twice, the second time over each tar `--times` times: the
difference is what an image costs in a long run, and that is the rate to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

PACKAGES = (
    "clip-retrieval==2.45.0",
    f"torch=={version('torch').partition('+')[0]}",
    f"torchvision=={version('torchvision').partition('+')[0]}",
)
UNASKED = "setuptools<70"
ARCHITECTURE = "ViT-B-32"
DRIVER = """
import json, sys
asked = json.loads(sys.argv[1])

if asked["model"] == "null":
    import all_clip, open_clip, torch

    class Null(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.projection = torch.randn(3 * 8 * 8, 512)

        def encode_image(self, image):
            return torch.nn.functional.adaptive_avg_pool2d(image, 8).flatten(1) @ self.projection

        encode_text = None

    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=224), is_train=False
    )
    all_clip.load_clip = lambda **_: (Null(), preprocess, None)

from clip_retrieval.clip_inference.main import main
main(
    input_dataset=asked["tars"], output_folder=asked["out"], input_format="webdataset",
    enable_text=False, batch_size=asked["batch_size"], num_prepro_workers=asked["workers"],
    clip_model=asked["clip_model"], output_partition_count=1,
)
"""
WEIGHTS = """
import sys, open_clip, torch
torch.manual_seed(0)
torch.save(open_clip.create_model(sys.argv[1]).state_dict(), sys.argv[2])
"""


@dataclass(frozen=True)
class Run:
    """One run: how many images came out, and the wall and CPU seconds of all its processes."""

    images: int
    wall_s: float
    cpu_s: float


def main() -> None:
    """Read the command line, run, print a Markdown row for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path)
    parser.add_argument("tars", type=Path, nargs="+")
    parser.add_argument("--model", choices=(ARCHITECTURE, "null"), default=ARCHITECTURE)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    environment = made(chosen.environment.resolve())
    inference(chosen, environment, 1)  # its libraries come from the disk the first time
    pairs = [
        (inference(chosen, environment, 1), inference(chosen, environment, chosen.times))
        for _ in range(chosen.repeats)
    ]
    print(f"clip-retrieval, {chosen.model}, {pairs[0][0].images} images, median of {len(pairs)}")
    print("| | images/s wall | images per CPU second |\n| --- | --- | --- |")
    print(_row("a run of its own", [first for first, _ in pairs]))
    further = [Run(b.images - a.images, b.wall_s - a.wall_s, b.cpu_s - a.cpu_s) for a, b in pairs]
    print(_row("each further image", further))


def made(environment: Path) -> Path:
    """Make the virtual environment and the weights where they are not there yet."""
    done = environment / "installed.txt"
    wanted = "\n".join((*PACKAGES, UNASKED))
    if not done.is_file() or done.read_text() != wanted:
        venv.create(environment, with_pip=True, clear=True)
        pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", UNASKED], check=True)
        weights = [ARCHITECTURE, str(_weights(environment))]
        subprocess.run([str(_python(environment)), "-c", WEIGHTS, *weights], check=True)
        done.write_text(wanted)
    return environment


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _weights(environment: Path) -> Path:
    return environment / f"{ARCHITECTURE}.pt"


def inference(chosen: argparse.Namespace, environment: Path, times: int) -> Run:
    """Run `clip_inference` once in processes of its own, every tar so many times."""
    with tempfile.TemporaryDirectory() as folder:
        tars = [str(_linked(path, Path(folder), n)) for n in range(times) for path in chosen.tars]
        asked = {
            "model": chosen.model,
            "clip_model": f"open_clip:{ARCHITECTURE}/{_weights(environment)}",
            "tars": f"{{{','.join(tars)}}}" if len(tars) > 1 else tars[0],
            "out": f"{folder}/out",
            "batch_size": chosen.batch_size,
            "workers": chosen.workers,
        }
        before, began = _cpu_s(), time.perf_counter()
        done = subprocess.run(
            [str(_python(environment)), "-c", DRIVER, json.dumps(asked)],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
            capture_output=True,
            text=True,
            check=False,
        )
        wall_s, cpu_s = time.perf_counter() - began, _cpu_s() - before
        if done.returncode:
            sys.exit(f"clip-retrieval failed:\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}")
        return Run(_rows(Path(folder) / "out"), wall_s, cpu_s)


def _linked(tar: Path, folder: Path, number: int) -> Path:
    """Return another name of a tar: a list of tars may not name one twice."""
    link = folder / f"{number}-{tar.name}"
    link.symlink_to(tar.resolve())
    return link


def _cpu_s() -> float:
    """Return the CPU seconds of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rows(out: Path) -> int:
    """Return how many embeddings were written; what it dropped is not counted."""
    return sum(len(np.load(path, mmap_mode="r")) for path in out.rglob("img_emb_*.npy"))


def _row(name: str, runs: list[Run]) -> str:
    wall = statistics.median(run.images / run.wall_s for run in runs)
    cpu = statistics.median(run.images / run.cpu_s for run in runs)
    return f"| {name} | {wall:.1f} | {cpu:.1f} |"


if __name__ == "__main__":
    main()
