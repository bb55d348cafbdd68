"""Random embeddings in, CPU seconds per caption out: ours, transformers' `generate`, the original.

    python -m bench.decoding --images 64
    python -m bench.decoding --images 256 --lengths

A random GPT-2 of the small shape behind an MLP mapper, prefix 10, beam 5, 20 tokens, one thread,
float32 and bfloat16, and ours with matrix products of 8 bits beside bfloat16 (`int8`). Without
`--lengths` nothing ever stops. With it the captions stop as captions of photographs do: a stop
after each token, by chance and by image, mean 11.7 tokens, standard deviation 2.7, and every two
hundredth image never stops before token 67. `generate` has the same stops. `original` is
`generate_beam` of rmokady/CLIP_prefix_caption written plainly, as in `tests/original.py`: one image
at a time, every beam read again from its start at each step, the head on every position; few
images. Candidates take turns; medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from clipcap import prepacked, search, trees
from clipcap.decoders import beam
from tests.original import Asked, generate_beam

PREFIX, BEAMS, STOP, NEVER = 10, 5, 13, 200


class Captioner:
    """What the decoder sees: a random language model, and tokens instead of texts."""

    def __init__(self, model: GPT2LMHeadModel, stops: Tensor | None) -> None:
        """Take a model; `stops` says after how many tokens each image stops."""
        self.model, self.stops, self.device = model, stops, torch.device("cpu")

    def stop_token(self, stop: str | None) -> int:
        """Return GPT-2's full stop."""
        return STOP

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return nothing: no word is forbidden."""
        return []

    def text(self, token_ids: Sequence[int]) -> str:
        """Return no text."""
        return ""

    def continuations(self) -> tuple[str, ...]:
        """Return nothing: no word is wished for."""
        return ()

    def tree(self, beams: int, max_tokens: int, slots: int) -> trees.Tree:
        """Return an empty tree."""
        return trees.of(self.model, takes_trees=True, beams=beams, slots=slots)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", type=int, default=2, help="images for the original")
    parser.add_argument("--lengths", action="store_true")
    parser.add_argument("--only", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    exact: Any = GPT2LMHeadModel(GPT2Config())
    exact.eval()
    mapper = nn.Sequential(nn.Linear(512, 3840), nn.Tanh(), nn.Linear(3840, PREFIX * 768))
    with torch.inference_mode():
        prefix = mapper(nn.functional.normalize(torch.randn(chosen.images, 512)))
    prefix = prefix.view(chosen.images, PREFIX, 768)
    stops = lengths(chosen.images) if chosen.lengths else None
    tokens = 67 if chosen.lengths else chosen.tokens
    for dtype in (torch.float32, torch.bfloat16):
        model = exact.to(dtype)
        fast = copy.deepcopy(model)
        prepacked.pack(fast)
        given = prefix.to(dtype)
        work: dict[str, tuple[Callable[[], object], int]] = {
            "ours": (
                partial(ours, fast, given, stops, tokens, chosen.batch_size),
                chosen.images,
            ),
            "generate": (
                partial(generate, model, given, stops, tokens, chosen.batch_size),
                chosen.images,
            ),
            "original": (partial(original, model, given[: chosen.plain], tokens), chosen.plain),
        }
        if dtype == torch.bfloat16:
            eight = copy.deepcopy(model)
            prepacked.pack(eight, eight_bits=True)
            work["int8"] = (
                partial(ours, eight, given, stops, tokens, chosen.batch_size),
                chosen.images,
            )
        if chosen.lengths or chosen.only:
            work = {k: v for k, v in work.items() if k in (chosen.only or "ours,int8,generate")}
        took: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(chosen.repeats):
            for name, (run, count) in work.items():
                began = time.process_time()
                with torch.inference_mode():
                    run()
                took[name].append((time.process_time() - began) / count)
        best = {name: statistics.median(seconds) for name, seconds in took.items()}
        for name, seconds in best.items():
            ratio = " ".join(f"{other} {best[other] / seconds:.2f}x" for other in best)
            print(f"| {str(dtype)[6:]} | {name} | {seconds:.3f} | {ratio} |", flush=True)


def lengths(images: int) -> Tensor:
    """Return how many tokens each image's captions have."""
    rng = np.random.default_rng(0)
    found = np.clip(np.rint(rng.normal(11.7, 2.7, images)), 4, 40).astype(int)
    found[NEVER // 2 :: NEVER] = 67
    return torch.from_numpy(found)


def ours(
    model: GPT2LMHeadModel, prefix: Tensor, stops: Tensor | None, tokens: int, slots: int
) -> object:
    """Run the beam search."""
    settings = beam.Settings(beam_size=BEAMS, max_tokens=tokens)
    captioner = Captioner(model, stops)
    beams = Timed(captioner, settings) if stops is not None else beam.Beams(captioner, settings)
    tree = captioner.tree(BEAMS, tokens, slots)
    return search.run(tree, beams, prefix, slots=slots)


class Timed(beam.Beams):
    """Stops each image's beams when it is told."""

    def extend(self, logits_NKV: Tensor) -> None:
        """Let the stop be the only choice at its time, and none before."""
        captioner: Any = self._captioner
        stops = captioner.stops[torch.tensor(self.image_N)]
        due = (self.step_N + 1 >= stops)[:, None]
        logits_NKV[:, :, STOP] = torch.where(due, 1e4, -torch.inf).to(logits_NKV.dtype)
        super().extend(logits_NKV)


class Stops(LogitsProcessor):
    """The same for `generate`."""

    def __init__(self, stops: Tensor) -> None:
        """Take the lengths of the images of a batch."""
        self.stops = stops.repeat_interleave(BEAMS)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Let the stop be the only choice at its time, and none before."""
        due = input_ids.shape[1] + 1 >= self.stops
        scores[:, STOP] = torch.where(due, 1e4, -torch.inf).to(scores.dtype)
        return scores


def generate(
    model: Any,  # noqa: ANN401 - transformers' own types are dynamic
    prefix: Tensor,
    stops: Tensor | None,
    tokens: int,
    batch: int,
) -> object:
    """Run transformers' beam search with its cache."""
    for at in range(0, len(prefix), batch):
        part = prefix[at : at + batch]
        given = [] if stops is None else [Stops(stops[at : at + batch])]
        model.generate(
            inputs_embeds=part,
            attention_mask=torch.ones(part.shape[:2], dtype=torch.long, device=part.device),
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=STOP if given else None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList(given),
        )
    return None


def original(model: GPT2LMHeadModel, prefix: Tensor, tokens: int) -> object:
    """Run the plain algorithm."""
    for one in prefix:
        generate_beam(model, one[None], Asked(stop=-1, max_tokens=tokens))
    return None


if __name__ == "__main__":
    print("| numbers | candidate | CPU s per caption | others take |\n| --- | --- | --- | --- |")
    main()
