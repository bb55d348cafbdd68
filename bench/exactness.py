"""Random GPT-2 small in, how many beams are token for token those of the original algorithm out.

    python -m bench.exactness --images 200 --mapper mlp
    python -m bench.exactness --images 200 --mapper transformer

The weights are sharpened, so that words are likely and unlikely, and the stop token is made
likelier, so that beams end at every length. The original is `tests/original.py`: uncached,
one image at a time, float32. Ours runs with batches of 1, 7 and 64, as a night does it: layers
packed, places that change hands.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bench.decoding import STOP, Captioner
from clipcap import prepacked, registry
from clipcap.decoders import beam
from tests.original import Asked, generate_beam

TOKENS, PREFIX = 20, 10


def main() -> None:
    """Read the command line, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--mapper", choices=("mlp", "transformer"), default="mlp")
    parser.add_argument("--bonus", type=float, default=12.0, help="added to the stop token's logit")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = sharpened(chosen.bonus)
    module = registry.load("clipcap.mappers", chosen.mapper)
    torch.manual_seed(1)
    mapper = module.Mapper(module.Settings(), 512, PREFIX, 768).eval()
    embedding = torch.nn.functional.normalize(torch.randn(chosen.images, 512))
    with torch.inference_mode():
        prefix = mapper(20 * embedding)
    expected = [generate_beam(model, one[None], Asked(STOP, max_tokens=TOKENS)) for one in prefix]
    lengths = Counter(len(tokens) for beams in expected for tokens, _ in beams)
    ended = sum(tokens[-1] == STOP for beams in expected for tokens, _ in beams)
    print(f"{chosen.mapper}: {chosen.images} images, {ended} of {5 * chosen.images} beams ended")
    print("lengths:", dict(sorted(lengths.items())), flush=True)
    fast = copy.deepcopy(model)
    prepacked.pack(fast)
    for size in (1, 7, 64):
        found = beam.decode(
            Captioner(fast, None), prefix, beam.Settings(max_tokens=TOKENS), slots=size
        )
        same = sum(
            one.token_ids == tokens
            for candidates, beams in zip(found, expected, strict=True)
            for one, (tokens, _) in zip(candidates, beams, strict=True)
        )
        print(f"| {chosen.mapper} | batch {size} | {same} of {5 * chosen.images} |", flush=True)


def sharpened(bonus: float) -> GPT2LMHeadModel:
    """Return a random GPT-2 of the small shape with likely words, the stop among them."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "wpe" not in name:
                parameter.mul_(4 if "wte" in name else 2)
        stop = model.transformer.wte.weight[STOP]
        model.transformer.ln_f.bias.add_(bonus * stop / stop.square().sum())
    return model


if __name__ == "__main__":
    main()
