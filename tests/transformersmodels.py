"""A folder in, a random model of transformers with processor and tokenizer written into it, out."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2Tokenizer,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from tests.models import CONTEXT, DIM, SIDE_PX, WORDS, write_tokenizer

END = len(WORDS) + 3
"""The number of `<end>` in the tests' tokenizer, the highest."""
PATCH_PX = 8
PATCHES = 20
WEIGHTS = "model.safetensors"
LAYER: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def make_clip(folder: Path, seed: int = 0, **text: Any) -> CLIPModel:  # noqa: ANN401 - any setting
    """Write a CLIPModel of D = 16 for 32 pixels as `save_pretrained` does; return the model."""
    of_text = _text(hidden_size=32, eos_token_id=END, hidden_act="quick_gelu") | text
    config = CLIPConfig(
        text_config=CLIPTextConfig(**of_text).to_dict(),
        vision_config=CLIPVisionConfig(
            **LAYER, hidden_size=32, image_size=SIDE_PX, patch_size=PATCH_PX
        ).to_dict(),
        projection_dim=DIM,
    )
    model: CLIPModel = _random(lambda: CLIPModel(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    size = {"shortest_edge": SIDE_PX}
    processor = CLIPImageProcessor(size=size, crop_size={"height": SIDE_PX, "width": SIDE_PX})
    _saved(model, processor, folder)
    return model


def make_siglip(folder: Path, seed: int = 0) -> SiglipModel:
    """Write a SiglipModel of D = 16 for 32 pixels as `save_pretrained` does; return the model."""
    config = SiglipConfig(
        text_config=SiglipTextConfig(**_text(hidden_size=DIM)).to_dict(),
        vision_config=SiglipVisionConfig(
            **LAYER, hidden_size=DIM, image_size=SIDE_PX, patch_size=PATCH_PX
        ).to_dict(),
    )
    model: SiglipModel = _random(lambda: SiglipModel(config), seed)
    processor = SiglipImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX})
    _saved(_sigmoid(model), processor, folder)
    return model


def make_siglip2(folder: Path, seed: int = 0) -> Siglip2Model:
    """Write a Siglip2Model of D = 16 for 20 patches in any arrangement; return the model."""
    config = Siglip2Config(
        text_config=Siglip2TextConfig(**_text(hidden_size=DIM)).to_dict(),
        vision_config=Siglip2VisionConfig(
            **LAYER, hidden_size=DIM, num_patches=16, patch_size=PATCH_PX
        ).to_dict(),
    )
    model: Siglip2Model = _random(lambda: Siglip2Model(config), seed)
    processor = Siglip2ImageProcessor(patch_size=PATCH_PX, max_num_patches=PATCHES)
    _saved(_sigmoid(model), processor, folder)
    signs = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_lowercase)
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    Siglip2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return model


def change(folder: Path, name: str, **values: Any) -> None:  # noqa: ANN401 - any JSON
    """Change a JSON file of a folder; None takes a value out."""
    path = folder / name
    kept = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: one for key, one in kept.items() if one is not None}))


def _text(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - any setting
    sizes = {"vocab_size": END + 1, "max_position_embeddings": CONTEXT}
    return LAYER | sizes | {"pad_token_id": 0, "bos_token_id": END - 1, **values}


def _random(make: Callable[[], Any], seed: int) -> Any:  # noqa: ANN401 - of three classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():  # parity of what is nearly constant would prove nothing
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and name.endswith("bias"):
                    parameter.normal_(std=0.1)
                elif parameter.ndim > 1:
                    parameter.mul_(1.2)
    return model


def _sigmoid(model: Any) -> Any:  # noqa: ANN401 - of two classes
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    return model


def _saved(model: PreTrainedModel, processor: Any, folder: Path) -> None:  # noqa: ANN401 - as above
    write_tokenizer(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
