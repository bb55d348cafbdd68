"""Encoder folder, captioner and held-out scenes in, the share of right captions and labels out.

Goes the public way: the encoder's own preprocessing and tokenizer by open_clip, the captioner's own
decoder, labels by averaged templates as the label stage makes them.
"""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from clipcap import captioner as captioners
from clipcap.bundled.scenes import Scene, caption, draw, random_scene

LABEL_SETS = Path(__file__).parents[1] / "labelsets"
_BATCH = 250


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares of right answers; all scenes held out from every training."""

    scenes: int
    seed: int
    caption_exact: float
    caption_exact_single_kind: float
    caption_exact_two_kinds: float
    place_top1: float
    thing_top1: float
    """The likeliest kind of thing is one of those in the scene."""
    thing_top1_single_kind: float


def held_out_images(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    """Draw held-out scenes of the sizes that pictures in a bucket may have."""
    rng = np.random.default_rng([seed, 7])
    scenes = [random_scene(rng, split="held_out") for _ in range(count)]
    sizes = [(64, 64), (96, 96), (160, 120), (224, 224), (240, 320)]
    return [(scene, draw(scene, rng, sizes[i % len(sizes)])) for i, scene in enumerate(scenes)]


def embed(encoder_folder: Path, images: Sequence[Image.Image]) -> Tensor:
    """Embed images by open_clip's own preprocessing, as stored: unit length, rounded to float16."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{encoder_folder}")
    model.eval()
    parts = []
    with torch.inference_mode():
        for first in range(0, len(images), _BATCH):
            batch = torch.stack([preprocess(image) for image in images[first : first + _BATCH]])
            parts.append(model.encode_image(batch, normalize=True).half().float())
    return torch.cat(parts)


def label_embeddings(encoder_folder: Path, label_set: str) -> tuple[list[str], Tensor]:
    """Names of a bundled label set, and one unit vector for each: the mean over all templates."""
    content: dict[str, Any] = tomllib.loads((LABEL_SETS / f"{label_set}.toml").read_text())
    model = open_clip.create_model(f"local-dir:{encoder_folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{encoder_folder}")
    names, templates = content["names"], content["templates"]
    texts = tokenizer([template.format(name) for name in names for template in templates])
    with torch.inference_mode():
        text_ND = model.encode_text(texts, normalize=True)
    mean_CD = text_ND.view(len(names), len(templates), -1).mean(1)
    return names, functional.normalize(mean_CD, dim=-1)


def evaluate(encoder_folder: Path, captioner_folder: Path, *, count: int, seed: int) -> Figures:
    """Draw `count` held-out scenes, caption and label them, and compare with the truth."""
    pairs = held_out_images(count, seed)
    embedding_ND = embed(encoder_folder, [image for _, image in pairs])
    scenes = [scene for scene, _ in pairs]
    candidates = captioners.load(str(captioner_folder)).caption(embedding_ND)
    written = [found[0].text for found in candidates]
    exact = [text == caption(scene) for text, scene in zip(written, scenes, strict=True)]
    places = _top1(encoder_folder, "scene_places", embedding_ND)
    things = _top1(encoder_folder, "scene_things", embedding_ND)
    thing_right = [name in scene.things for name, scene in zip(things, scenes, strict=True)]
    single = [len(scene.things) == 1 for scene in scenes]
    return Figures(
        scenes=count,
        seed=seed,
        caption_exact=_share(exact),
        caption_exact_single_kind=_share(exact, single),
        caption_exact_two_kinds=_share(exact, [not one for one in single]),
        place_top1=_share([n == s.place for n, s in zip(places, scenes, strict=True)]),
        thing_top1=_share(thing_right),
        thing_top1_single_kind=_share(thing_right, single),
    )


def write(figures: Figures, path: Path) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(asdict(figures), indent=2) + "\n")


def _top1(encoder_folder: Path, label_set: str, embedding_ND: Tensor) -> list[str]:
    names, text_CD = label_embeddings(encoder_folder, label_set)
    return [names[index] for index in (embedding_ND @ text_CD.T).argmax(1).tolist()]


def _share(right: Sequence[bool], among: Sequence[bool] | None = None) -> float:
    kept = [r for r, a in zip(right, among or [True] * len(right), strict=True) if a]
    return round(sum(kept) / len(kept), 4)
