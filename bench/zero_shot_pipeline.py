"""Photographs and 1,000 names in, CPU seconds an image of transformers' pipeline and of ours out.

    python -m bench.zero_shot_pipeline FOLDER_OF_PHOTOGRAPHS --images 64 --reference 16

The same random weights of ViT-B/32's shape, the same names and sentence ("This is a photo of {}.").
The reference is `pipeline("zero-shot-image-classification")` at batch 8, as its documentation has
it: it encodes every name for every batch. Ours are nights of `clipcap run`, each a process of its
own, all its children counted: images read, decoded, resized, embedded and labelled, the labels
written as Parquet. What a night costs however many images it has (loading the model) is taken off
by a night with two new images; encoding the names once in an output's life is told apart.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import open_clip
import torch

from bench import transformers_models

TEMPLATE = "This is a photo of {}."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--reference", type=int, default=16)
    parser.add_argument("--precision", default="bf16")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"{name} {n}" for n, name in enumerate(open_clip.IMAGENET_CLASSNAMES)]
    photographs = sorted(chosen.photographs.glob("*.jpg"))[: chosen.images]
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        transformers_models.clip(model, small=False)
        reference = by_pipeline(model, photographs[: chosen.reference], names)
        print(f"pipeline, batch 8: {reference:.3f} CPU s an image", flush=True)
        names_s, night_s, further = ours(Path(place), photographs, names, chosen.precision)
    print(f"ours, {chosen.precision}: {further:.4f} CPU s an image")
    print(f"names once {names_s:.1f} s, a night whatever its images {night_s:.1f} s")
    print(f"each further image: {reference / further:.0f} times")


def by_pipeline(model: Path, photographs: list[Path], names: list[str]) -> float:
    """Return the CPU seconds an image of transformers' pipeline, loading not counted."""
    from transformers import pipeline

    classify = pipeline("zero-shot-image-classification", model=str(model), device="cpu")
    given = [str(one) for one in photographs]
    choices: dict[str, Any] = {
        "candidate_labels": names,
        "hypothesis_template": TEMPLATE,
        "batch_size": 8,
    }
    began = time.process_time()
    found = list(classify(given, **choices))
    spent = time.process_time() - began
    if [len(one) for one in found] != [len(names)] * len(given):
        raise SystemExit("the pipeline did not score every name for every image")
    return spent / len(given)


def ours(
    place: Path, photographs: list[Path], names: list[str], precision: str
) -> tuple[float, float, float]:
    """Return CPU seconds of the names, of a night without images, and of each image."""
    quoted = ", ".join(f'"{name}"' for name in names)
    (place / "names.toml").write_text(f'names = [{quoted}]\ntemplates = ["{TEMPLATE}"]\n')
    (place / "settings.json").write_text(f'{{"embed": {{"precision": "{precision}"}}}}')
    (place / "in").mkdir()
    spent = []
    for part in (photographs[:2], photographs[2:4], photographs[4:]):
        for one in part:
            shutil.copy(one, place / "in" / one.name)
        spent.append(night(place))
    first, few, many = spent
    per_image = (many - few) / (len(photographs) - 6)
    return first - few, few - 2 * per_image, per_image


def night(place: Path) -> float:
    """Run one night; return the CPU seconds of it and all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["run", place / "in", place / "out", "--model", place / "model"]
    command += ["--label-set", place / "names.toml", "--captioner", "none"]
    command += ["--settings", place / "settings.json"]
    subprocess.run(
        [sys.executable, "-m", "clipcap", *map(str, command)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
