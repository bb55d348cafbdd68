"""Encoder folder, captioner and held-out scenes in, the share of right captions and labels out.

Goes the way of the stages: the encoder's own preprocessing and tokenizer, embeddings as the table
stores them, the captioner's own decoder, labels by averaged templates.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from clipcap import captioner as captioners
from clipcap.bundled.scenes import Scene, caption, draw, random_scene
from clipcap.encoders import openclip
from clipcap.labels import bank, scoring, sets

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
    """Embed images as the embeddings table has them: unit length, rounded to float16."""
    side = encoder(encoder_folder)
    parts = []
    for first in range(0, len(images), _BATCH):
        batch = [side.preprocess(image) for image in images[first : first + _BATCH]]
        parts.append(side.encode_images(torch.stack(batch)))
    return functional.normalize(torch.cat(parts), dim=-1).half().float()


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


def encoder(folder: Path) -> openclip.Encoder:
    """Return the encoder of a folder, on the CPU."""
    return openclip.load(openclip.Settings(model=str(folder), device="cpu"))


def _top1(encoder_folder: Path, name: str, embedding_ND: Tensor) -> list[str]:
    """Return the likeliest label of each embedding."""
    label_set, side = sets.load(name), encoder(encoder_folder)
    made = bank.in_words(label_set, bank.encoded(label_set, side), scale=side.logit_scale)
    _, score_NC = scoring.whole(embedding_ND.numpy(), made)
    return [label_set.names[index] for index in score_NC.argmax(axis=1)]


def _share(right: Sequence[bool], among: Sequence[bool] | None = None) -> float:
    kept = [r for r, a in zip(right, among or [True] * len(right), strict=True) if a]
    return round(sum(kept) / len(kept), 4)
