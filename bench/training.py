"""Random weights in, CPU seconds per training sample out: a loop of the original's beside ours.

    python -m bench.training [--steps 4] [--recipes finetune,frozen] [--ways plain,packed-bf16]

GPT-2 small, 40 captions a batch, five captions an image, 11.7 tokens on average. `finetune` is the
MLP mapper with P = 10, `frozen` the transformer mapper with 40 + 40 before a frozen language model.
`plain` is the original's loop: a batch is padded to 38 tokens, the head reads every position, and
the frozen language model gets gradients all the same. The others are `clipcap.trainer` with its
default settings but for those named. One thread, CPU seconds of the process; the first step, which
also makes the optimizer's buffers, is not counted.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from bench.random_models import GPT2_SMALL
from clipcap import captioner as captioners
from clipcap import trainer
from clipcap.captioner import Captioner
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.progress import Hooks
from clipcap.training import TrainSettings

DIM, BATCH, AN_IMAGE, LONGEST = 512, 40, 5, 38
MEAN, DEVIATION = 11.7, 2.7
RECIPES: dict[str, dict[str, Any]] = {
    "finetune": {"prefix_length": 10, "mapper": Choice(name="mlp")},
    "frozen": {
        "prefix_length": 40,
        "mapper": Choice(name="transformer", settings={"clip_length": 40}),
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "buckets-fp32": {"packing": False, "precision": "fp32"},
    "buckets-bf16": {"packing": False, "precision": "bf16"},
    "packed-autocast": {"packing": True, "precision": "fp32"},
    "packed-fp32": {"packing": True, "precision": "fp32"},
    "packed-bf16": {"packing": True, "precision": "bf16"},
}
PLAIN = ("plain", "plain-autocast")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--ways", default=",".join([*PLAIN, *WAYS]))
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | way | CPU seconds a sample | to plain |\n| --- | --- | --- | --- |")
    for recipe in chosen.recipes.split(","):
        base = 0.0
        for way in chosen.ways.split(","):
            best = min(seconds(recipe, way, chosen.steps) for _ in range(chosen.repeats))
            base = base or best
            print(f"| {recipe} | {way} | {best:.4f} | {base / best:.2f} |", flush=True)


def seconds(recipe: str, way: str, steps: int) -> float:
    """Return the CPU seconds that one caption takes."""
    images = (steps + 1) * BATCH // AN_IMAGE
    captioner = _captioner(**RECIPES[recipe])
    embedding_ND = functional.normalize(torch.randn(images, DIM))
    captions = _captions(images)
    if way in PLAIN:
        ticks = list(plain(captioner, embedding_ND, captions, recipe, autocast=way != "plain"))
    else:
        ticks = list(_ours(captioner, embedding_ND, captions, recipe, way))
    return (ticks[-1] - ticks[0]) / (BATCH * (len(ticks) - 1))


def _ours(
    captioner: Captioner,
    embedding_ND: Tensor,
    captions: list[list[str]],
    recipe: str,
    way: str,
) -> list[float]:
    mode: Any = recipe
    settings = TrainSettings(
        language_model=mode, batch_size=BATCH, epochs=1, validation_share=0.0, **WAYS[way]
    )
    ticks: list[float] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "packed-autocast"):
        trainer.train(
            embedding_ND,
            captions,
            captioner,
            settings,
            hooks=Hooks(on_progress=lambda _: ticks.append(time.process_time())),
        )
    return ticks


def plain(
    captioner: Captioner,
    embedding_ND: Tensor,
    captions: list[list[str]],
    recipe: str,
    *,
    autocast: bool,
) -> Iterator[float]:
    """Train as the original does; yield the CPU clock after each step."""
    mapper, gpt = captioner.mapper.train(), captioner.language_model
    gpt.train(recipe == "finetune")
    learning: list[nn.Parameter] = [*mapper.parameters()]
    learning += gpt.parameters() if recipe == "finetune" else []
    optimizer = torch.optim.AdamW(learning, lr=2e-5, eps=1e-6, weight_decay=0.0)
    length = captioner.card.prefix_length
    rows = [(n, text) for n, texts in enumerate(captions) for text in texts]
    random.Random(0).shuffle(rows)
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids = [captioner.tokenizer(text)["input_ids"] for _, text in part]
        token_BT = torch.tensor([one + [0] * (LONGEST - len(one)) for one in ids])
        mask_BT = torch.tensor(
            [[1.0] * (length + len(one)) + [0.0] * (LONGEST - len(one)) for one in ids]
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prefix_BPE = mapper(embedding_ND[[n for n, _ in part]])
            read_BTE = torch.cat((prefix_BPE, gpt.transformer.wte(token_BT)), 1)
            logits_BTV = gpt(inputs_embeds=read_BTE, attention_mask=mask_BT).logits
            logits_BTV = logits_BTV[:, length - 1 : -1]
            loss = functional.cross_entropy(
                logits_BTV.reshape(-1, logits_BTV.shape[-1]), token_BT.flatten(), ignore_index=0
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.process_time()


def _captioner(prefix_length: int, mapper: Choice) -> Captioner:
    fit = EncoderFit(model_id="random", dim=DIM)
    card = Card(captioner_id="random", encoder=fit, prefix_length=prefix_length, mapper=mapper)
    model = captioners.random_language_model("gpt2", dict(GPT2_SMALL), seed=0)
    words = {f"w{n}": n for n in range(GPT2_SMALL["vocab_size"] - 1)} | {".": 50256}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return captioners.new(card, model, wrapped, seed=0)


def _captions(images: int) -> list[list[str]]:
    chance = random.Random(0)

    def one() -> str:
        words = min(LONGEST, max(3, round(chance.gauss(MEAN, DEVIATION)))) - 1
        return " ".join([f"w{chance.randrange(1, 50_000)}" for _ in range(words)] + ["."])

    return [[one() for _ in range(AN_IMAGE)] for _ in range(images)]


if __name__ == "__main__":
    main()
