"""A folder in, a random CLIP in open_clip's own form written into it, for tests without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import pretrained
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from clipcap.modelfolder import CONFIGURATION
from clipcap.pretrained import TABLE

DIM = 16
SIDE_PX = 32
CONTEXT = 16
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "pink")
WORDS = (
    *("a", "an", "the", "of", "on", "in", "at", "and", "with", "photo", "picture", "drawing"),
    *("one", "two", "three", "grass", "beach", "snow", "night", "sea", "room"),
    *("house", "tree", "car", "boat", "ball", "flower", "bird", "cat", "dog", "fish", "cup"),
    *COLOURS,
)
WEIGHTS = "open_clip_model.safetensors"
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def tiny_config() -> dict[str, Any]:
    """Return the content of `open_clip_config.json` for the tiny CLIP."""
    return {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {
                "image_size": SIDE_PX,
                "layers": 1,
                "width": 32,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": len(_vocabulary()),
                "hf_tokenizer_name": "in-this-folder",
                "width": 32,
                "heads": 2,
                "layers": 1,
            },
        },
        "preprocess_cfg": PREPROCESS,
    }


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIP of D = 16 for 32 pixels, with random weights and a tokenizer of known words."""
    config = tiny_config()
    write_tokenizer(folder)
    (folder / CONFIGURATION).write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config["model_cfg"])
        spread(model)
    write_weights(model, folder)
    return folder


def make_clip(folder: Path, architecture: str, **preprocess: Any) -> Any:  # noqa: ANN401
    """Write a random model of a published shape; return the very model, as open_clip made it.

    Args:
        folder: where to.
        architecture: open_clip's name of it.
        preprocess: what the published weights of this shape were trained with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(architecture, force_preprocess_cfg=preprocess)
        spread(model)
    config = {
        "model_cfg": open_clip.get_model_config(architecture),
        "preprocess_cfg": model.visual.preprocess_cfg,
    }
    if config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        write_tokenizer(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIGURATION).write_text(json.dumps(config), encoding="utf-8")
    write_weights(model, folder)
    return model.eval()


def change(folder: Path, section: str, **values: Any) -> None:  # noqa: ANN401 - any JSON
    """Change a folder's configuration; None takes a value out."""
    path = folder / CONFIGURATION
    read = json.loads(path.read_text())
    kept = read[section] | values
    read[section] = {key: value for key, value in kept.items() if value is not None}
    path.write_text(json.dumps(read))


def spread(model: torch.nn.Module) -> None:
    """Make random weights tell images and texts apart: parity of constants would prove nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                parameter.fill_(3.0)
            elif parameter.ndim > 1:
                parameter.mul_(2.0)


def write_weights(model: torch.nn.Module, folder: Path) -> None:
    """Write a model's weights as open_clip's folders have them."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole words; the end of a text has the highest number, as in CLIP."""
    vocabulary = _vocabulary()
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unknown>",
        bos_token="<start>",
        eos_token="<end>",
    ).save_pretrained(folder)


def pictures(count: int = 4) -> list[Image.Image]:
    """Return drawn pictures of several sizes and shapes: wide, high, small, large."""
    drawn = []
    for number in range(count):
        size = ((320, 200), (90, 300), (40, 33), (640, 480))[number % 4]
        picture = Image.new("RGB", size, (40 * number % 256, 90, 200 - 30 * number % 200))
        draw = ImageDraw.Draw(picture)
        for step in range(9):
            corner = (step * size[0] // 11, (step * (number + 3) % 9) * size[1] // 11)
            far = (corner[0] + size[0] // 5, corner[1] + size[1] // 4)
            draw.ellipse((*corner, *far), fill=COLOURS[(step + number) % len(COLOURS)])
        drawn.append(picture)
    return drawn


def registry() -> dict[str, list[Any]]:
    """Return open_clip's published models: name to repository, preprocessing and QuickGELU."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {
        f"{architecture}/{tag}": [
            entry["hf_hub"],
            {key: list(entry[key]) if key in ("mean", "std") else entry[key] for key in keys},
            bool(entry.get("quick_gelu")),
        ]
        for architecture, tag in pretrained.list_pretrained()
        for entry in [pretrained.get_pretrained_cfg(architecture, tag)]
    }


def write_registry() -> None:
    """Write open_clip's registry again, after an upgrade: `clipcap/bundled/open_clip.json`."""
    kinds: dict[str, int] = {}
    lines = []
    for name, (location, preprocess, quick_gelu) in registry().items():
        kind = kinds.setdefault(json.dumps(preprocess), len(kinds))
        lines.append(f"    {json.dumps(name)}: {json.dumps([location, kind, quick_gelu])}")
    head = '{\n  "preprocess": [\n    ' + ",\n    ".join(kinds)
    TABLE.write_text(head + '\n  ],\n  "models": {\n' + ",\n".join(lines) + "\n  }\n}\n")


def _vocabulary() -> dict[str, int]:
    names = ("<pad>", "<unknown>", *WORDS, "<start>", "<end>")
    return {name: number for number, name in enumerate(names)}
