"""Random embeddings and fixed candidates in, CPU seconds per image and candidate out.

    python -m bench.choosing --images 16

A random GPT-2 of the small shape behind an MLP mapper, prefix 10, 20 candidates of about 12 tokens
that are the same for all images, one thread, float32 and bfloat16. `apart` begin unlike each other,
`alike` are five sentences with four endings each. `ours` reads a prefix once and the candidates
behind it as a tree; `plain` reads prefix and candidate anew for each, one row at a time, `batched`
the candidates of an image as one padded batch; both with the head on the candidate's positions
alone. Candidates of the measurement take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from clipcap import likelihood, prepacked
from clipcap.captioner import Captioner
from clipcap.cards import Card, EncoderFit
from clipcap.tries import Tokens

PREFIX, DIM = 10, 512


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--plain", type=int, default=2, help="images for the plain loops")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    exact = GPT2LMHeadModel(GPT2Config()).eval()
    mapper = nn.Sequential(nn.Linear(DIM, 3840), nn.Tanh(), nn.Linear(3840, PREFIX * 768))
    with torch.inference_mode():
        prefix = mapper(nn.functional.normalize(torch.randn(chosen.images, DIM)))
    prefix = prefix.view(chosen.images, PREFIX, 768)
    for dtype in (torch.float32, torch.bfloat16):
        model = exact.to(dtype)
        fast = GPT2LMHeadModel(GPT2Config()).eval()
        fast.load_state_dict(exact.state_dict())
        prepacked.pack(fast.to(dtype))
        for name, texts in (("apart", apart()), ("alike", alike())):
            measure(name, texts, (model, fast), prefix.to(dtype), chosen)


def apart(count: int = 20) -> list[Tokens]:
    """Return candidates of 9 to 15 tokens, 12 in the mean."""
    return [tuple(torch.randint(50257, (9 + n % 7,)).tolist()) for n in range(count)]


def alike() -> list[Tokens]:
    """Return five sentences of eight tokens with four endings of four each."""
    heads = [torch.randint(50257, (8,)).tolist() for _ in range(5)]
    return [(*head, *torch.randint(50257, (4,)).tolist()) for head in heads for _ in range(4)]


def measure(
    name: str,
    texts: list[Tokens],
    models: tuple[GPT2LMHeadModel, GPT2LMHeadModel],
    prefix: Tensor,
    chosen: argparse.Namespace,
) -> None:
    """Print a row for each way to score."""
    model, fast = models
    few = prefix[: chosen.plain]
    work: dict[str, tuple[Callable[[], Tensor], int]] = {
        "ours": (partial(ours, fast, prefix, texts), len(prefix)),
        "batched": (partial(batched, model, few, texts), len(few)),
        "plain": (partial(plain, model, few, texts), len(few)),
    }
    took: dict[str, list[float]] = {way: [] for way in work}
    said: dict[str, Tensor] = {}
    for _ in range(chosen.repeats):
        for way, (run, count) in work.items():
            began = time.process_time()
            with torch.inference_mode():
                said[way] = run()
            took[way].append((time.process_time() - began) / count / len(texts))
    differ = float((said["ours"][: chosen.plain] - said["plain"]).abs().max())
    best = {way: statistics.median(seconds) for way, seconds in took.items()}
    for way, seconds in best.items():
        ratio = f"{seconds / best['ours']:.1f}x"
        numbers = str(prefix.dtype)[6:]
        print(f"| {numbers} | {name} | {way} | {1000 * seconds:.1f} | {ratio} |", flush=True)
    print(f"| | | largest difference of a sum | {differ:.1e} | |", flush=True)


def ours(model: GPT2LMHeadModel, prefix: Tensor, texts: list[Tokens]) -> Tensor:
    """Score with `clipcap.likelihood`."""
    fit = EncoderFit(model_id="none", dim=DIM)
    card = Card(captioner_id="random", encoder=fit, prefix_length=PREFIX)
    captioner = Captioner(card, nn.Identity(), model, None)
    found = likelihood.of_prefixes(captioner, prefix, [texts] * len(prefix))
    return torch.stack([torch.from_numpy(one.sum_C) for one in found])


def plain(model: GPT2LMHeadModel, prefix: Tensor, texts: list[Tokens]) -> Tensor:
    """Read prefix and candidate anew, a row at a time."""
    return torch.tensor([[one(model, prefix_PE, ids) for ids in texts] for prefix_PE in prefix])


def one(model: GPT2LMHeadModel, prefix_PE: Tensor, ids: Tokens) -> float:
    """Return log p of one candidate behind one prefix."""
    token_T = torch.tensor(ids)
    read = torch.cat((prefix_PE, model.get_input_embeddings()(token_T[:-1])))[None]
    logits = model(inputs_embeds=read, use_cache=False, logits_to_keep=len(ids)).logits[0]
    return float(logits.float().log_softmax(-1).gather(1, token_T[:, None]).sum())


def batched(model: GPT2LMHeadModel, prefix: Tensor, texts: list[Tokens]) -> Tensor:
    """Read prefix and candidates anew, those of an image as one padded batch."""
    width = max(map(len, texts))
    token = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts])
    is_word = torch.arange(width) < torch.tensor([len(ids) for ids in texts])[:, None]
    words = model.get_input_embeddings()(token[:, :-1])
    found = []
    for prefix_PE in prefix:
        read = torch.cat((prefix_PE.expand(len(texts), -1, -1), words), 1)
        logits = model(inputs_embeds=read, use_cache=False, logits_to_keep=width).logits
        log_p = logits.float().log_softmax(-1).gather(2, token[:, :, None])[:, :, 0]
        found.append((log_p * is_word).sum(1))
    return torch.stack(cast("list[Tensor]", found))


if __name__ == "__main__":
    print("| numbers | candidates | way | ms CPU per image and candidate | of ours |")
    print("| --- | --- | --- | --- | --- |")
    main()
