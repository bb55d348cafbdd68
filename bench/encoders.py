"""Model folders in, a table of the forward alone out: images per second by number format and batch.

    python -m bench.encoders [--images FOLDER] [--batches 8,32,128] [MODEL ...]

Without a name: the bundled model, and a ViT-B-32 with random weights. `open_clip` is its own model
with its own tensors, in float32 and with lowered weights; `ours` is `encode_pixels`, which
normalises too. One thread is timed in CPU seconds, more in seconds by the clock.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from clipcap import models, pixels, precision, tuning
from clipcap.encoders import openclip
from clipcap.forward import normalised
from clipcap.models import EncoderRef
from clipcap.preprocessing import Preprocess

_REPEATS = 5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Embed = Callable[[Tensor], Tensor]
"""uint8 pixels [B, H, W, 3] in, embeddings [B, D] out."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--images", type=Path, help="photographs, to compare embeddings of")
    parser.add_argument("--batches", default="8,32,128")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--formats", default="fp32,bf16")
    chosen = parser.parse_args()
    batches, threads = ([int(n) for n in getattr(chosen, k).split(",")] for k in _NUMBERS)
    heads = [f"{n} thread{'s' if n > 1 else ''}, images/s" for n in threads]
    print(f"| model | forward | batch | {' | '.join(heads)} | to fp32 | max 1 - cos |")
    print("|" + " --- |" * (len(heads) + 5))
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.names or ["bundled", random_vit(Path(folder) / "random-vit-b-32")]:
            bench(name, batches, threads, chosen)


_NUMBERS = ("batches", "threads")


def random_vit(folder: Path) -> str:
    """Write a ViT-B-32 with random weights."""
    from bench.random_models import random_encoder

    return str(random_encoder(folder, "ViT-B-32"))


def bench(name: str, batches: list[int], threads: list[int], chosen: argparse.Namespace) -> None:
    """Print the rows of one model."""
    ref = models.encoder(name)
    asked = pictures(ref, chosen.images)
    exact_BD = None
    base: dict[tuple[int, int], float] = {}
    for label, embed in forwards(ref, chosen.formats.split(",")):
        found_BD = torch.cat([embed(part).double() for part in torch.split(asked, 16)])
        exact_BD = found_BD if exact_BD is None else exact_BD
        off = (1 - torch.nn.functional.cosine_similarity(found_BD, exact_BD)).max()
        for size in batches:
            rates = {count: rate(embed, made_up(ref, size), count) for count in threads}
            for count, found in rates.items():
                base.setdefault((size, count), found)
            columns = [f"{found:.1f}" for found in rates.values()]
            ratio = rates[threads[0]] / base[size, threads[0]]
            row = [Path(name).name, label, str(size), *columns, f"{ratio:.2f}", f"{off:.1e}"]
            print(f"| {' | '.join(row)} |", flush=True)


def forwards(ref: EncoderRef, formats: list[str]) -> list[tuple[str, Embed]]:
    """Return the ways to embed, float32 as open_clip has it first."""
    mean_C, std_C = (torch.tensor(ref.preprocess[part]) for part in ("mean", "std"))
    found: list[tuple[str, Embed]] = []
    for label in formats:
        plain = built(ref)
        plain.visual.to(_DTYPES[label])

        def theirs(pixels_BHWC: Tensor, model: Any = plain, form: str = label) -> Tensor:  # noqa: ANN401
            images_BCHW = normalised(pixels_BHWC, mean_C, std_C).contiguous()
            with torch.inference_mode():
                embeddings_BD: Tensor = model.encode_image(images_BCHW.to(_DTYPES[form]))
            return embeddings_BD.float()

        found.append((f"open_clip {label}", theirs))
        found.append((f"ours {label}", ours(ref, label)))
    return found


def ours(ref: EncoderRef, label: str) -> Embed:
    """Return `encode_pixels` in a format, whether or not it is near enough to be taken."""
    model = built(ref)
    model.visual.to(memory_format=torch.channels_last)
    if label != "fp32":
        model.visual = precision.lowered(copy.deepcopy(model.visual), _DTYPES[label])
    none: Any = None
    encoder = openclip.Encoder(ref, model, none, none, "fp32")
    return lambda pixels_BHWC: encoder.encode_pixels(pixels_BHWC)()


def built(ref: EncoderRef) -> Any:  # noqa: ANN401 - open_clip has no types
    """Return open_clip's own model on the CPU."""
    local = ref.model_spec.startswith(models.LOCAL)
    return open_clip.create_model(ref.model_spec, None if local else ref.weights).eval()


def pictures(ref: EncoderRef, folder: Path | None) -> Tensor:
    """Return what embeddings are compared of: the pictures of `precision`, and photographs."""
    wanted = Preprocess.of(ref.preprocess)
    plain = {"mean": [0.0] * 3, "std": [1 / 255] * 3}
    levels = precision.reference_images(ref.preprocess | plain)
    found = list(levels.round().byte().permute(0, 2, 3, 1))
    for path in sorted(folder.glob("*.jpg")) if folder else []:
        found.append(torch.from_numpy(np.array(pixels.pixels(path.read_bytes(), wanted))))
    return torch.stack(found)


def made_up(ref: EncoderRef, size: int) -> Tensor:
    """Return pixels to time with."""
    stand_in: Any = argparse.Namespace(preprocess_json=ref.preprocess_json)
    return tuning.made_up(stand_in, size)


def rate(embed: Embed, pixels_BHWC: Tensor, threads: int) -> float:
    """Return images per second: the median, in CPU seconds for one thread."""
    clock = time.process_time if threads == 1 else time.perf_counter
    torch.set_num_threads(threads)
    embed(pixels_BHWC)
    seconds = []
    for _ in range(_REPEATS):
        began = clock()
        embed(pixels_BHWC)
        seconds.append(clock() - began)
    torch.set_num_threads(1)
    return len(pixels_BHWC) / statistics.median(seconds)


if __name__ == "__main__":
    main()
