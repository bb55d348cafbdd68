"""Random embeddings in, captions per second of a GPU out: ours, ours unrecorded, `generate`.

    python -m bench.gpu_decoding --batches 32,128,512 --numbers bf16

A random GPT-2 of the small shape, prefix 10, beam 5, 20 tokens; nothing stops. Wall seconds, the
device waited for; medians. `recorded` is what captions are found with on a GPU (CUDA graphs),
`plain` the same search without them, `generate` that of transformers with its cache. Ours must
find the same tokens recorded and plain.

The bound is that of memory: each step reads all weights and the keys and values of every image, at
the speed that a large copy on this device has. `--device cpu --tiny` tries the program out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from bench.decoding import BEAMS, PREFIX, Captioner, generate
from clipcap import graphs, search, trees
from clipcap.decoders import beam

TINY = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99}
NUMBERS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Work:
    """What is measured, and on what."""

    model: GPT2LMHeadModel
    prefix: Tensor
    tokens: int
    repeats: int


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--numbers", choices=NUMBERS, default="bf16")
    parser.add_argument("--batches", default="32,128,512")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small model")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    device, dtype = torch.device(chosen.device), NUMBERS[chosen.numbers]
    shape: dict[str, Any] = TINY if chosen.tiny else {}
    config = GPT2Config(**shape)
    model = GPT2LMHeadModel(config).train(mode=False).to(device, dtype)
    prefix = torch.randn(chosen.images, PREFIX, config.n_embd).to(device, dtype)
    work = Work(model, prefix, chosen.tokens, chosen.repeats)
    speed = bandwidth(device)
    print(f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device}, ", end="")
    print(f"torch {torch.__version__}, {chosen.numbers}, {speed / 1e9:,.0f} GB/s by copying\n")
    print("| batch | candidate | captions/s | share of the bound |\n| --- | --- | --- | --- |")
    best: dict[str, float] = {}
    for batch in map(int, chosen.batches.split(",")):
        limit = batch * speed / (chosen.tokens * step_bytes(work, batch))
        for name, rate in measured(work, batch).items():
            best[name] = max(best.get(name, 0.0), rate)
            print(f"| {batch} | {name} | {rate:,.1f} | {rate / limit:.0%} |", flush=True)
    print(f"\nAt the best batches: {best['recorded'] / best['generate']:.2f} times `generate`.")


def measured(work: Work, batch: int) -> dict[str, float]:
    """Return the captions per second of each candidate, which take turns."""
    slots = min(batch, len(work.prefix))
    recorded = graphs.Recorded(work.model, BEAMS, slots, recorder(work.model.device))
    runs: dict[str, Callable[[], object]] = {
        "recorded": lambda: found(work, recorded.cleared(), slots),
        "plain": lambda: found(work, trees.Shared(work.model, BEAMS, slots), slots),
        "generate": partial(generate, work.model, work.prefix, None, work.tokens, batch),
    }
    with torch.inference_mode():
        if runs["recorded"]() != runs["plain"]():
            print("recorded and plain steps find other tokens")
        runs["recorded"]()  # widths are recorded when they come again
        took: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(work.repeats):
            for name, run in runs.items():
                took[name].append(seconds(run, work.model.device))
    return {name: len(work.prefix) / statistics.median(each) for name, each in took.items()}


def recorder(device: torch.device) -> Callable[[graphs.Run], graphs.Recording]:
    """Return what records on a GPU; elsewhere what runs a step again."""
    if device.type == "cuda":
        return graphs.record

    def again(run: graphs.Run) -> graphs.Recording:
        logits_NKV = run().clone()

        def replay() -> None:
            logits_NKV.copy_(run())

        return graphs.Recording(logits_NKV, replay)

    return again


def found(work: Work, tree: trees.Tree, slots: int) -> list[tuple[int, ...]]:
    """Return the tokens of the best caption of each image, by our search."""
    captioner = Captioner(work.model, None)
    captioner.device = work.model.device
    beams = beam.Beams(captioner, beam.Settings(beam_size=BEAMS, max_tokens=work.tokens))
    return [one[0].token_ids for one in search.run(tree, beams, work.prefix, slots=slots)]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return how long something takes, until the device is done."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait until a GPU has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    one = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    other.copy_(one)
    took = min(seconds(partial(other.copy_, one), device) for _ in range(5))
    return 2 * COPIED_BYTES / took


def step_bytes(work: Work, batch: int) -> float:
    """Return the bytes that a step must read: all weights, and what the images have said so far."""
    config, size = work.model.config, work.prefix.element_size()
    weights = sum(parameter.numel() for parameter in work.model.parameters()) * size
    keys = PREFIX + BEAMS * work.tokens / 2  # of an image, in the middle of its caption
    return weights + 2 * batch * keys * config.n_layer * config.n_embd * size


if __name__ == "__main__":
    main()
