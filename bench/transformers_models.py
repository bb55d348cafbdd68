"""A folder in, a random CLIPModel or SiglipModel with CLIP's own vocabulary written into it out."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import bytes_to_unicode
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
WORDS = 49_408


def clip(folder: Path, *, small: bool) -> CLIPModel:
    """Write a random CLIPModel: of ViT-B/32's shape, or small enough for a great many texts."""
    sizes = SMALL | {"hidden_size": 64} if small else {}
    text = CLIPTextConfig(**sizes, eos_token_id=WORDS - 1, bos_token_id=WORDS - 2)
    vision = CLIPVisionConfig(**sizes)
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=64 if small else 512,
    )
    torch.manual_seed(0)
    model: CLIPModel = _livelier(CLIPModel(config).eval())
    _saved(model, CLIPImageProcessor(), folder)
    return model


def siglip(folder: Path) -> SiglipModel:
    """Write a small random SiglipModel with a scale and a bias as such models have."""
    sizes: dict[str, Any] = SMALL | {"hidden_size": 64}
    ends: dict[str, Any] = {
        "bos_token_id": WORDS - 2,
        "eos_token_id": WORDS - 1,
        "pad_token_id": WORDS - 1,
    }
    text = SiglipTextConfig(**sizes, **ends, vocab_size=WORDS, max_position_embeddings=64)
    config = SiglipConfig(
        text_config=text.to_dict(), vision_config=SiglipVisionConfig(**sizes).to_dict()
    )
    torch.manual_seed(0)
    model: SiglipModel = _livelier(SiglipModel(config).eval())
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
        model.logit_bias.fill_(-4.0)
    _saved(model, SiglipImageProcessor(), folder)
    return model


def vocabulary() -> tuple[dict[str, int], Any]:
    """Return CLIP's byte pairs, which open_clip brings, as transformers wants them."""
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : WORDS - 2 - 512 + 1]]
    signs = list(bytes_to_unicode().values())
    words = [*signs, *(f"{sign}</w>" for sign in signs), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: n for n, word in enumerate(words)}, merges


def _livelier(model: Any) -> Any:  # noqa: ANN401 - of two classes
    """Make random weights larger: parity of what is nearly constant would prove nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embedding" not in name:
                parameter.mul_(3)
    return model


def _saved(model: Any, processor: Any, folder: Path) -> None:  # noqa: ANN401 - of two classes
    words, merges = vocabulary()
    length = model.config.text_config.max_position_embeddings
    inputs = ["input_ids"] if isinstance(model, SiglipModel) else ["input_ids", "attention_mask"]
    tokenizer = CLIPTokenizer(
        vocab=words, merges=merges, model_max_length=length, model_input_names=inputs
    )
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
