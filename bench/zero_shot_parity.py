"""1,000 ImageNet labels with 80 templates in, how far our scores are from three libraries' own out.

    python -m bench.zero_shot_parity

Each library computes its scores as its users do, from the same random weights, images and
sentences: open_clip's `build_zero_shot_classifier` and a softmax; the mean of `CLIPModel`'s unit
text embeddings and a softmax; the same of `SiglipModel`, its bias and a sigmoid. The models are
small: 80,000 sentences go through each text tower twice. Images are noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from bench import transformers_models
from clipcap import embedding
from clipcap.embedding import EmbedSettings, Speed
from clipcap.labels import bank, scoring, sets
from tests.models import spread

IMAGES, BATCH = 16, 512
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def images() -> list[Image.Image]:
    """Return noise of several sizes, coarse enough to be told apart."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((300 + 20 * n, 260)) for n, one in enumerate(coarse)]


def ours(folder: Path, *, limit: int) -> tuple[Tensor, Tensor]:
    """Return the unit embeddings of the images and their scores."""
    encoder = embedding.load(EmbedSettings(model=str(folder)), Speed(device="cpu"))
    pixels_BCHW = torch.stack([encoder.preprocess(image) for image in images()])
    image_BD = normalize(encoder.encode_images(pixels_BCHW), dim=-1)
    label_set = _labels(limit)
    scale, bias = encoder.logit_scale, encoder.logit_bias
    given = bank.in_words(label_set, bank.encoded(label_set, encoder), scale=scale, bias=bias)
    return image_BD, torch.from_numpy(scoring.whole(image_BD.numpy(), given)[1])


def _labels(limit: int) -> sets.LabelSet:
    whole = sets.load("imagenet_1k")
    return whole.model_copy(update={"labels": whole.labels[:limit]})


def by_open_clip(folder: Path, limit: int) -> Callable[[], Tensor]:
    """Return what gives open_clip's own scores."""
    names = open_clip.IMAGENET_CLASSNAMES[:limit]
    torch.manual_seed(0)
    spread(made := open_clip.CLIP(**CONFIG))
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    preprocess |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(dict(made.state_dict()), folder / "open_clip_model.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")

    def scores() -> Tensor:
        classifier_DC = open_clip.build_zero_shot_classifier(
            model.eval(),
            open_clip.get_tokenizer(f"local-dir:{folder}"),
            classnames=names,
            templates=open_clip.OPENAI_IMAGENET_TEMPLATES,
            num_classes_per_batch=None if limit <= 10 else 10,
        )
        pixels_BCHW = torch.stack([preprocess(image) for image in images()])
        image_BD = model.encode_image(pixels_BCHW, normalize=True)
        return (model.logit_scale.exp() * image_BD @ classifier_DC).softmax(dim=-1)

    return scores


def by_transformers(folder: Path, model: Any, limit: int) -> Callable[[], Tensor]:  # noqa: ANN401
    """Return what gives the scores of a CLIPModel or a SiglipModel."""
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    has_bias = getattr(model, "logit_bias", None) is not None

    def scores() -> Tensor:
        rows = []
        for name in open_clip.IMAGENET_CLASSNAMES[:limit]:
            texts = [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
            tokens = tokenizer(
                texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            found = model.get_text_features(**tokens)
            found = getattr(found, "pooler_output", found)
            rows.append(normalize(normalize(found, dim=-1).mean(0), dim=-1))
        pixels = processor(images(), return_tensors="pt")["pixel_values"]
        found = model.get_image_features(pixel_values=pixels)
        image_BD = normalize(getattr(found, "pooler_output", found), dim=-1)
        logit_BC = image_BD @ torch.stack(rows).T * model.logit_scale.exp()
        return (logit_BC + model.logit_bias).sigmoid() if has_bias else logit_BC.softmax(dim=-1)

    return scores


@torch.inference_mode()
def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000)
    limit = parser.parse_args().labels
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in ("open_clip", "CLIPModel", "SiglipModel")}
        for folder in folders.values():
            folder.mkdir()
        clip = transformers_models.clip(folders["CLIPModel"], small=True)
        siglip = transformers_models.siglip(folders["SiglipModel"])
        theirs = {
            "open_clip": by_open_clip(folders["open_clip"], limit),
            "CLIPModel": by_transformers(folders["CLIPModel"], clip, limit),
            "SiglipModel": by_transformers(folders["SiglipModel"], siglip, limit),
        }
        print("| library | labels x templates | largest difference of a score | scores up to |")
        print("| --- | --- | --- | --- |")
        for name, scores in theirs.items():
            wanted_BC = scores()
            _, found_BC = ours(folders[name], limit=limit)
            apart, most = (found_BC - wanted_BC).abs().max(), wanted_BC.max()
            print(f"| {name} | {limit:,} x 80 | {apart:.1e} | {most:.3f} |", flush=True)


if __name__ == "__main__":
    main()
