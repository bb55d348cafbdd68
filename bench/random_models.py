"""The name of an architecture in, a model folder of the true shape with random weights out."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clipcap import captioner, embedding
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.embedding import EmbedSettings

GPT2_SMALL = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


def random_encoder(folder: Path, architecture: str) -> Path:
    """Write a `local-dir:` folder of open_clip with random weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    preprocess = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {
        "model_cfg": open_clip.get_model_config(architecture),
        "preprocess_cfg": preprocess,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def random_captioner(folder: Path, encoder: EmbedSettings) -> Path:
    """Write a captioner of ClipCap's shape: MLP mapper, P = 10, GPT-2 small, random weights."""
    ref = embedding.reference(encoder)
    words = {f"word{n}": n for n in range(GPT2_SMALL["vocab_size"] - 2)}
    words |= {".": len(words), "<unk>": len(words) + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    model = captioner.random_language_model("gpt2", GPT2_SMALL, seed=0)
    fit = EncoderFit(
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )
    card = Card(
        captioner_id="random-gpt2",
        note="Random weights: for measuring speed only.",
        encoder=fit,
        prefix_length=10,
        decode=Choice(name="beam", settings={"max_tokens": 20, "stop": "."}),
    )
    captioner.new(card, model, wrapped, seed=0).save(str(folder))
    return folder
