"""Captions in bf16 and int8 in, how many are those of float32 out.

    python -m bench.rounding --images 64

Two models: a random GPT-2 of the small shape, sharpened as in `bench/exactness.py`, where every
rounding counts; and the bundled captioner, which is tiny and trained, on embeddings of texts, near
which those of its scenes lie. Printed: the share of images whose best caption is token for token
that of float32, and the mean difference of its mean log-probability, where it is the same caption
and in all.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from itertools import product
from statistics import mean

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from bench.decoding import PREFIX, Captioner
from bench.exactness import sharpened
from clipcap import captioner, embedding, models, prepacked
from clipcap.bundled.shapes import COLOURS, PLACES, THINGS
from clipcap.candidates import Candidate
from clipcap.decoders import beam
from clipcap.embedding import EmbedSettings, Speed

FORMATS = ("fp32", "bf16", "int8")


def main() -> None:
    """Read the command line, caption, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | numbers | the same | log p, the same captions | log p, all |")
    print("| --- | --- | --- | --- | --- |")
    with torch.inference_mode():
        show("random GPT-2", {name: random_ones(name, chosen.images) for name in FORMATS})
        show("bundled", {name: bundled_ones(name) for name in FORMATS})


def random_ones(name: str, images: int) -> list[list[Candidate]]:
    """Caption random embeddings with the random model."""
    model: GPT2LMHeadModel = copy.deepcopy(sharpened(12.0))
    torch.manual_seed(0)
    mapper = nn.Sequential(nn.Linear(512, 3840), nn.Tanh(), nn.Linear(3840, PREFIX * 768))
    prefix = mapper(20 * nn.functional.normalize(torch.randn(images, 512))).view(images, PREFIX, -1)
    if name != "fp32":
        model.bfloat16()
    prepacked.pack(model, eight_bits=name == "int8")
    settings = beam.Settings(max_tokens=20)
    return beam.decode(Captioner(model, None), prefix.to(model.dtype), settings, slots=32)


def bundled_ones(name: str) -> list[list[Candidate]]:
    """Caption texts with the bundled captioner."""
    scenes = product(COLOURS, THINGS, PLACES)
    texts = [f"a {colour} {thing} {place}." for colour, thing, place in scenes]
    read = embedding.load(EmbedSettings(), Speed(device="cpu")).encode_texts(texts)
    model = captioner.load(models.captioner_folder(models.BUNDLED)).for_captions(name)  # type: ignore[arg-type]
    return model.caption(torch.as_tensor(read.numpy()))


def show(model: str, found: dict[str, Sequence[Sequence[Candidate]]]) -> None:
    """Print a row for each format."""
    for name, captions in found.items():
        pairs = [(a[0], b[0]) for a, b in zip(captions, found["fp32"], strict=True)]
        off = [abs(a.logprob_mean - b.logprob_mean) for a, b in pairs]
        same = [a.token_ids == b.token_ids for a, b in pairs]
        kept = mean(value for value, is_same in zip(off, same, strict=True) if is_same)
        print(f"| {model} | {name} | {mean(same):.1%} | {kept:.4f} | {mean(off):.4f} |", flush=True)


if __name__ == "__main__":
    main()
