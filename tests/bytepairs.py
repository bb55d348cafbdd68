"""A seed in, a tiny random captioner out that writes in pieces of words, as GPT-2 does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from clipcap import bytepairs, captioner
from clipcap.captioner import Captioner
from tests.captioners import tiny_captioner

GPT2 = Path(__file__).parents[2] / "shared" / "data" / "gpt2_bpe"
TEXT = [
    "a cat and a dog on the grass. the cat sat. a red catalogue of cars! a hot dog, a t-shirt.",
    "two cats (a black cat and the white one) at a café. three giraffes and a giraffe in snow.",
] * 4


def tiny_pairs() -> Any:  # noqa: ANN401 - transformers' own types are dynamic
    """Return a tokenizer of GPT-2's kind with a few pieces, made here."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")  # type: ignore[no-untyped-call]


def tokenizer(kind: str) -> Any:  # noqa: ANN401 - as above
    """Return `tiny` or `gpt2` pairs; the test is skipped where GPT-2's are absent."""
    if kind == "tiny":
        return tiny_pairs()
    if not GPT2.is_dir():
        pytest.skip(f"GPT-2's words are not at {GPT2}")
    return bytepairs.tokenizer(str(GPT2), 50257)


def pair_captioner(kind: str, likely: Mapping[str, float]) -> Captioner:
    """Return a captioner that likes to say the tokens of some texts, each with a bonus in logits.

    So it says whole words and not only pieces.
    """
    words = tokenizer(kind)
    shape = {
        "vocab_size": len(words), "n_positions": 48, "n_embd": 32, "n_layer": 1, "n_head": 2,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    model = captioner.random_language_model("gpt2", shape, seed=0)
    bonus_V = torch.zeros(len(words))
    for text, bonus in likely.items():
        bonus_V[words.encode(text, add_special_tokens=False)] = bonus
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    head = torch.nn.Linear(32, len(words))
    head.weight, head.bias = model.get_input_embeddings().weight, torch.nn.Parameter(bonus_V)
    model.lm_head = head
    card = tiny_captioner().card
    return captioner.new(card, model.eval(), words, seed=0).eval()
