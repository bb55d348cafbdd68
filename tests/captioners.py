"""A seed in, a tiny random captioner out: two layers, 32 wide, some thirty words."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clipcap import captioner
from clipcap.captioner import Captioner
from clipcap.cards import Card, Choice, EncoderFit

DIM_CLIP = 16
STOP = 1
# fmt: off
WORDS = [
    "!", ".", "a", "an", "one", "two", "three", "red", "blue", "green", "black", "white", "ball",
    "balls", "car", "cars", "boat", "cat", "cats", "dog", "house", "tree", "on", "in", "at",
    "the", "grass", "sea", "snow", "night", "room", "and",
]
# fmt: on
"""Word 0 is `!`, as in GPT-2, the token that the original's padding could never learn."""


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words; `special` may give it an `eos_token`."""
    vocabulary = {word: index for index, word in enumerate([*WORDS, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", **special
    )


def language_model(seed: int = 0, sharpness: float = 1.0, stop_bonus: float = 0.0) -> Any:  # noqa: ANN401
    """Return a random GPT-2 of two layers.

    A sharper one has likely and unlikely words; the bonus, a logit, makes the full stop likelier.
    """
    shape = {
        "vocab_size": len(WORDS) + 1,
        "n_positions": 48,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = captioner.random_language_model("gpt2", shape, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(sharpness)
        stop_E = model.get_input_embeddings().weight[STOP]
        model.transformer.ln_f.bias.add_(stop_bonus * stop_E / stop_E.square().sum())
    return model.eval()


def tiny_captioner(
    seed: int = 0,
    *,
    sharpness: float = 1.0,
    stop_bonus: float = 0.0,
    normalized: bool = True,
    prefix_length: int = 4,
    mapper: str = "mlp",
) -> Captioner:
    """Return a captioner that reads embeddings of 16 numbers."""
    card = Card(
        captioner_id="tiny",
        note="knows nothing",
        encoder=EncoderFit(
            model_id="tiny-clip", sha256="a" * 64, preprocess_sha256="b" * 64, dim=DIM_CLIP
        ),
        normalized=normalized,
        prefix_length=prefix_length,
        mapper=Choice(name=mapper),
        decode=Choice(name="beam", settings={"max_tokens": 12}),
    )
    model = language_model(seed, sharpness, stop_bonus)
    return captioner.new(card, model, word_tokenizer(), seed=seed).eval()


def llama_captioner() -> Captioner:
    """Return one before a language model with rotary positions and plain linear layers."""
    tiny = tiny_captioner()
    shape: dict[str, Any] = {
        "vocab_size": len(WORDS) + 1, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    model = captioner.random_language_model("llama", shape, seed=0)
    return captioner.new(tiny.card, model.eval(), tiny.tokenizer, seed=0)


def embeddings(count: int, seed: int = 0) -> torch.Tensor:
    """Return `count` random unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, DIM_CLIP, generator=generator))
