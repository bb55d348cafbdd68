"""Drawn scenes in, a tiny open_clip CLIP trained on them out, written as a `local-dir:` folder.

Three losses are added up. The contrastive one puts each picture beside its full caption. The same
one with short texts ("a picture of a cat.") puts it beside every thing and place that it shows, for
labels. A third one reads things, colours, count and place off the embedding with linear heads that
are thrown away afterwards: it keeps those details in the embedding that captions need.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from clipcap.bundled import words
from clipcap.bundled.pool import SIDE_PX, Pool
from clipcap.bundled.scenes import Scene, caption, phrase
from clipcap.bundled.shapes import COLOURS, PLACES, THINGS

log = logging.getLogger(__name__)

DIM_CLIP = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how the CLIP is trained; changing any of it changes the weights."""

    seed: int = 0
    epochs: int = 10
    batch_size: int = 256
    peak_rate: float = 2e-3
    weight_decay: float = 0.05
    short_text_weight: float = 1.0
    heads_weight: float = 1.0
    shift_px: int = 3


def config() -> dict[str, Any]:
    """The content of `open_clip_config.json`."""
    return {
        "model_cfg": {
            "embed_dim": DIM_CLIP,
            "vision_cfg": {
                "layers": [1, 2, 2, 1],
                "width": 16,
                "head_width": 64,
                "image_size": SIDE_PX,
            },
            "text_cfg": {
                "context_length": words.CLIP_CONTEXT,
                "vocab_size": len(words.vocabulary()),
                "hf_tokenizer_name": "clipcap-tiny-clip",
                "width": 96,
                "heads": 3,
                "layers": 2,
                "pad_id": 0,
                "eos_id": len(words.vocabulary()) - 1,
                "pool_type": "eos",
            },
        },
        "preprocess_cfg": {
            "size": [SIDE_PX, SIDE_PX],
            "mode": "RGB",
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }


def write_folder(model: CLIP, folder: Path) -> None:
    """Write config, tokenizer and weights: stored as float16, loaded as float32 by open_clip."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config(), indent=2) + "\n")
    words.write_tokenizer(folder, for_clip=True)
    tensors = {name: _half(value) for name, value in sorted(model.state_dict().items())}
    save_file(tensors, folder / "open_clip_model.safetensors")


def _half(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous()
    return tensor.half() if tensor.is_floating_point() else tensor


class _Texts:
    """Every text that training needs, as token numbers, and which scene each one is true of."""

    def __init__(self, scenes: tuple[Scene, ...]) -> None:
        self._tokenizer = words.tokenizer(for_clip=True)
        unique: dict[str, int] = {}
        numbers = [
            [unique.setdefault(caption(side), len(unique)) for side in (scene, scene.mirrored())]
            for scene in scenes
        ]
        self.caption_N2 = torch.tensor(numbers)
        """Number of the true caption, as drawn and mirrored."""
        self.caption_CT = self.tokens(list(unique))
        self.facts_N2F = torch.tensor(
            [[_facts(scene), _facts(scene.mirrored())] for scene in scenes]
        )
        self.kinds = self._templated(words.THING_TEMPLATES, list(THINGS))
        self.places = self._templated(words.PLACE_TEMPLATES, list(PLACES))
        phrases = [phrase(thing, colour, 1) for thing in THINGS for colour in COLOURS]
        bare = tuple(template.replace("a {}", "{}") for template in words.THING_TEMPLATES)
        self.phrases = self._templated(bare, phrases)

    def tokens(self, texts: list[str]) -> Tensor:
        rows = self._tokenizer(
            texts, padding="max_length", max_length=words.CLIP_CONTEXT, truncation=True
        )
        return torch.tensor(rows["input_ids"])

    def _templated(self, templates: tuple[str, ...], names: list[str]) -> list[Tensor]:
        return [self.tokens([template.format(name) for name in names]) for template in templates]


def _facts(scene: Scene) -> list[int]:
    """First thing, its colour, count, second thing (or none), its colour (or none), place."""
    kinds, colours = list(THINGS), list(COLOURS)
    facts = [kinds.index(scene.things[0]), colours.index(scene.colours[0]), scene.counts[0] - 1]
    if len(scene.things) == 1:
        facts += [len(kinds), len(colours)]
    else:
        facts += [kinds.index(scene.things[1]), colours.index(scene.colours[1])]
    return [*facts, list(PLACES).index(scene.place)]


FACT_SIZES = (
    len(THINGS), len(COLOURS), 3, len(THINGS) + 1, len(COLOURS) + 1, len(PLACES),
)  # fmt: skip


def train(pool: Pool, recipe: Recipe) -> CLIP:
    """Train from random weights; equal pool, recipe, threads and machine give equal weights."""
    torch.manual_seed(recipe.seed)
    model = CLIP(DIM_CLIP, *(config()["model_cfg"][name] for name in ("vision_cfg", "text_cfg")))
    model.visual.to(memory_format=torch.channels_last)
    heads = nn.Linear(DIM_CLIP, sum(FACT_SIZES))
    texts = _Texts(pool.scenes)
    steps = recipe.epochs * (len(pool.scenes) // recipe.batch_size)
    parameters = [*model.parameters(), *heads.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(
        groups,
        lr=recipe.peak_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    started = time.monotonic()
    model.train()
    for step, (image_BCHW, row_B, side_B) in enumerate(_batches(pool, recipe)):
        losses = _losses(model, heads, texts, recipe, (image_BCHW, row_B, side_B))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))
        if step % 50 == 0 or step == steps - 1:
            parts = " ".join(f"{loss.item():.3f}" for loss in losses)
            elapsed_s = time.monotonic() - started
            log.info("clip step %d of %d: losses %s, %.0f s", step, steps, parts, elapsed_s)
    return model.eval()


def _rate(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then half a cosine down to nothing."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(pool: Pool, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, their rows, and 1 where an image is mirrored; each epoch in a new order."""
    rng = np.random.default_rng([recipe.seed, 99])
    pixels = torch.from_numpy(pool.pixels)
    for _ in range(recipe.epochs):
        order = rng.permutation(len(pixels))
        for first in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
            row_B = torch.from_numpy(order[first : first + recipe.batch_size])
            side_B = torch.from_numpy(rng.integers(0, 2, recipe.batch_size))
            image_BHWC = pixels[row_B]
            mirror_B111 = side_B[:, None, None, None] == 1
            image_BHWC = torch.where(mirror_B111, image_BHWC.flip(2), image_BHWC)
            shift = rng.integers(-recipe.shift_px, recipe.shift_px + 1, (8, 2)).tolist()
            moved = [
                _moved(part, down, right)
                for part, (down, right) in zip(image_BHWC.chunk(8), shift, strict=True)
            ]
            yield normalised(torch.cat(moved)), row_B, side_B


def _moved(image_BHWC: Tensor, down: int, right: int) -> Tensor:
    """Shift a few pixels; the edge pixels fill what comes free."""
    high = (torch.arange(SIDE_PX) + down).clamp(0, SIDE_PX - 1)
    wide = (torch.arange(SIDE_PX) + right).clamp(0, SIDE_PX - 1)
    return image_BHWC[:, high][:, :, wide]


def normalised(image_BHWC: Tensor) -> Tensor:
    """Turn uint8 pixels into what the vision tower reads: `image_BCHW`, float32."""
    image = image_BHWC.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((image - mean) / std).contiguous(memory_format=torch.channels_last)


def _losses(
    model: CLIP,
    heads: nn.Linear,
    texts: _Texts,
    recipe: Recipe,
    batch: tuple[Tensor, Tensor, Tensor],
) -> list[Tensor]:
    image_BCHW, row_B, side_B = batch
    caption_B = texts.caption_N2[row_B, side_B]
    facts_BF = texts.facts_N2F[row_B, side_B]
    pick = int(row_B[0])  # chance enough: the order is shuffled anew each epoch
    some = slice(pick % 4, None, 4)  # a quarter of the phrases is enough for one step
    groups = [
        texts.caption_CT[caption_B],
        texts.kinds[pick % len(texts.kinds)],
        texts.places[pick % len(texts.places)],
        texts.phrases[pick % len(texts.phrases)][some],
    ]
    with torch.autocast("cpu", torch.bfloat16):
        image_BD = model.encode_image(image_BCHW)
    image_BD = functional.normalize(image_BD.float(), dim=-1)
    text_MD = model.encode_text(torch.cat(groups), normalize=True)
    logits = (model.logit_scale.exp() * image_BD @ text_MD.T).split([len(g) for g in groups], 1)
    same_BB = (caption_B[:, None] == caption_B[None, :]).float()
    contrastive = 0.5 * (_towards(logits[0], same_BB) + _towards(logits[0].T, same_BB.T))
    short = [
        _towards(part, true) for part, true in zip(logits[1:], _truths(facts_BF, some), strict=True)
    ]
    read_BF = heads(image_BD * math.sqrt(DIM_CLIP)).split(FACT_SIZES, dim=1)
    wrong = [functional.cross_entropy(read, facts_BF[:, i]) for i, read in enumerate(read_BF)]
    return [
        contrastive,
        recipe.short_text_weight * torch.stack(short).mean(),
        recipe.heads_weight * torch.stack(wrong).mean(),
    ]


def _truths(facts_BF: Tensor, some: slice) -> list[Tensor]:
    """For each group of short texts, 1 where the text is true of the image."""
    kinds, colours = len(THINGS), len(COLOURS)
    kind_BK = functional.one_hot(facts_BF[:, 0], kinds + 1)
    kind_BK = (kind_BK + functional.one_hot(facts_BF[:, 3], kinds + 1))[:, :kinds]
    place_BP = functional.one_hot(facts_BF[:, 5], len(PLACES))
    first_B = facts_BF[:, 0] * colours + facts_BF[:, 1]
    both_B = facts_BF[:, 3] < kinds
    second_B = torch.where(both_B, facts_BF[:, 3] * colours + facts_BF[:, 4], first_B)
    phrases = kinds * colours
    phrase_BK = functional.one_hot(first_B, phrases) | functional.one_hot(second_B, phrases)
    return [kind_BK.float(), place_BP.float(), phrase_BK[:, some].float()]


def _towards(logits_BM: Tensor, true_BM: Tensor) -> Tensor:
    """Cross entropy towards all true texts in equal shares; nothing where no text is true."""
    share_BM = true_BM / true_BM.sum(1, keepdim=True).clamp(min=1)
    return -(share_BM * logits_BM.log_softmax(1)).sum(1).mean()


def load(folder: Path) -> CLIP:
    """The written model as open_clip itself loads it."""
    model = open_clip.create_model(f"local-dir:{folder}")
    return model.eval()
