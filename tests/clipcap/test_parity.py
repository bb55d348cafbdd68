"""Embeddings and zero-shot scores against open_clip's and transformers' own, on equal weights."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import transform
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from clipcap import pixels
from clipcap.encoders import openclip
from clipcap.labels import bank, scoring
from clipcap.labels.sets import LabelSet
from clipcap.preprocessing import Preprocess
from tests.models import make_clip, make_tiny_clip, pictures, spread, tiny_config, write_weights

TOLERANCE = 1e-5
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco_photos" / "images"
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
CLASSES = ["cat", "dog", "red car", "house on the beach", "two birds", "cup"]


def images() -> list[Image.Image]:
    """Return drawn pictures, and photographs where this machine has some."""
    photos = sorted(PHOTOS.glob("*.jpg"))[:2]
    return [*pictures(), *(Image.open(photo).convert("RGB") for photo in photos)]


def embedded(encoder: openclip.Encoder) -> Tensor:
    """Return our unit vectors of all images."""
    batch_BCHW = torch.stack([encoder.preprocess(image) for image in images()])
    return normalize(encoder.encode_images(batch_BCHW), dim=-1)


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, openclip.Encoder]]:
    """Yield open_clip's model of ViT-B-32's true shape, and our encoder of its folder."""
    folder = tmp_path_factory.mktemp("parity") / "vit-b-32"
    model = make_clip(folder, "ViT-B-32")
    yield model, openclip.load(openclip.Settings(model=str(folder), device="cpu"))
    openclip.forget()


@torch.inference_mode()
def test_vit_b_32_embeds_as_open_clip_does(vit_b_32: tuple[Any, openclip.Encoder]) -> None:
    """With open_clip's preprocessing of the very model whose weights we read from a folder."""
    model, encoder = vit_b_32
    preprocess = transform.image_transform_v2(
        transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    batch_BCHW = torch.stack([preprocess(image) for image in images()])
    theirs_BD = model.encode_image(batch_BCHW, normalize=True)
    ours_BD = embedded(encoder)
    torch.testing.assert_close(ours_BD, theirs_BD, atol=TOLERANCE, rtol=0)
    # The same images squashed instead of cropped are elsewhere: equality is not for want of detail.
    squash = transform.image_transform(224, is_train=False, resize_mode="squash")
    other_BD = model.encode_image(torch.stack([squash(i) for i in images()]), normalize=True)
    assert (other_BD - theirs_BD).abs().max() > 100 * TOLERANCE


@torch.inference_mode()
def test_pixels_of_a_file_embed_as_open_clips_own_preprocessing(
    vit_b_32: tuple[Any, openclip.Encoder],
) -> None:
    """From the bytes on: another decoder and another resize, 2 of 255 levels away at most."""
    model, encoder = vit_b_32
    wanted = Preprocess.of(encoder.ref.preprocess)
    files = []
    for picture in images():
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    pixels_BHWC = np.stack([pixels.pixels(data, wanted) for data in files])
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    batch_BCHW = torch.stack([encoder.preprocess(picture) for picture in opened])
    theirs_BD = model.encode_image(batch_BCHW)
    ours_BD = encoder.encode_pixels(torch.from_numpy(pixels_BHWC))()
    off_B = 1 - cosine_similarity(ours_BD.double(), theirs_BD.double())
    assert off_B.max() < 1e-6
    dimmed_BHWC = torch.from_numpy(pixels_BHWC // 2)
    dimmed_BD = encoder.encode_pixels(dimmed_BHWC)()
    assert (1 - cosine_similarity(dimmed_BD, theirs_BD)).min() > 1e-4


@pytest.mark.slow
def test_a_published_name_embeds_as_its_folder_does(
    vit_b_32: tuple[Any, openclip.Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration comes from open_clip, its preprocessing from open_clip's registry."""
    _, encoder = vit_b_32
    entry = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (entry / "snapshots" / "main").mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("main")
    weights = Path(encoder.ref.weights)
    (entry / "snapshots" / "main" / weights.name).symlink_to(weights)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = "ViT-B-32/laion2b_s34b_b79k"
    published = openclip.load(openclip.Settings(model=name, device="cpu"))
    assert published.model_id == "ViT-B-32__laion2b_s34b_b79k"
    assert published.sha256 == encoder.sha256
    assert published.preprocess_sha256 == encoder.preprocess_sha256
    assert torch.equal(embedded(published), embedded(encoder))
    texts_CD = published.encode_texts(CLASSES)
    assert torch.equal(texts_CD, encoder.encode_texts(CLASSES))


@pytest.mark.slow
@torch.inference_mode()
def test_siglip_embeds_as_open_clip_does(tmp_path: Path) -> None:
    """A timm tower, another pooling, a squashing resize and a logit bias."""
    model = make_clip(tmp_path / "siglip", "ViT-B-16-SigLIP", **SIGLIP)
    encoder = openclip.load(openclip.Settings(model=str(tmp_path / "siglip"), device="cpu"))
    config = transform.PreprocessCfg(size=(224, 224), **SIGLIP)
    preprocess = transform.image_transform_v2(config, is_train=False)
    batch_BCHW = torch.stack([preprocess(image) for image in images()])
    theirs_BD = model.encode_image(batch_BCHW, normalize=True)
    torch.testing.assert_close(embedded(encoder), theirs_BD, atol=TOLERANCE, rtol=0)
    tokens_BT = open_clip.get_tokenizer(encoder.ref.model_spec)(CLASSES)
    theirs_CD = model.encode_text(tokens_BT, normalize=True)
    ours_CD = normalize(encoder.encode_texts(CLASSES), dim=-1)
    torch.testing.assert_close(ours_CD, theirs_CD, atol=TOLERANCE, rtol=0)
    assert encoder.logit_bias == pytest.approx(-10)
    openclip.forget()


@pytest.mark.slow
@torch.inference_mode()
def test_zero_shot_scores_of_vit_b_32_equal_transformers(
    vit_b_32: tuple[Any, openclip.Encoder],
) -> None:
    """`logits_per_image.softmax` of a CLIPModel that was given the same weights by name."""
    model, encoder = vit_b_32
    reference = as_transformers(model, open_clip.get_model_config("ViT-B-32"), eos=49407)
    compare_scores(encoder, reference)


@torch.inference_mode()
def test_zero_shot_scores_with_quick_gelu_equal_transformers(tmp_path: Path) -> None:
    """OpenAI's models have the other GELU; a tiny one has it too."""
    config = tiny_config()["model_cfg"] | {"quick_gelu": True}
    folder = make_tiny(tmp_path / "quick", config)
    encoder = openclip.load(openclip.Settings(model=str(folder), device="cpu"))
    model = open_clip.CLIP(**config)
    open_clip.load_checkpoint(model, encoder.ref.weights)
    eos = config["text_cfg"]["vocab_size"] - 1
    compare_scores(encoder, as_transformers(model.eval(), config, eos=eos))


def compare_scores(encoder: openclip.Encoder, reference: CLIPModel) -> None:
    """Compare our softmax over classes with transformers', and see that it says something."""
    label_set = LabelSet.model_validate({"names": CLASSES, "templates": ["{}"]})
    made = bank.in_words(label_set, bank.encoded(label_set, encoder), scale=encoder.logit_scale)
    _, scored_BC = scoring.whole(embedded(encoder).numpy(), made)
    ours_BC = torch.from_numpy(scored_BC)
    pixels_BCHW = torch.stack([encoder.preprocess(image) for image in images()])
    tokens_CT = open_clip.get_tokenizer(encoder.ref.model_spec)(CLASSES)
    theirs_BC = reference(input_ids=tokens_CT, pixel_values=pixels_BCHW).logits_per_image
    torch.testing.assert_close(ours_BC, theirs_BC.softmax(dim=-1), atol=TOLERANCE, rtol=0)
    assert ours_BC.std(dim=-1).max() > 100 * TOLERANCE
    assert ours_BC.std(dim=0).max() > 100 * TOLERANCE


def make_tiny(folder: Path, model_cfg: dict[str, Any]) -> Path:
    """Write a tiny CLIP of another configuration."""
    import json

    make_tiny_clip(folder)
    config = tiny_config() | {"model_cfg": model_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = open_clip.CLIP(**model_cfg)
        spread(model)
    write_weights(model, folder)
    return folder


def as_transformers(model: Any, model_cfg: dict[str, Any], eos: int) -> CLIPModel:  # noqa: ANN401
    """Return transformers' model with open_clip's weights, each put where its name belongs."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    act = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    vision_config = CLIPVisionConfig(
        hidden_size=vision["width"],
        intermediate_size=4 * vision["width"],
        num_hidden_layers=vision["layers"],
        num_attention_heads=vision["width"] // vision.get("head_width", 64),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        hidden_act=act,
    )
    text_config = CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=4 * text["width"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        max_position_embeddings=text["context_length"],
        hidden_act=act,
        eos_token_id=eos,
    )
    config = CLIPConfig(
        text_config=text_config.to_dict(),
        vision_config=vision_config.to_dict(),
        projection_dim=model_cfg["embed_dim"],
    )
    reference = CLIPModel(config)
    missing, unexpected = reference.load_state_dict(renamed(model.state_dict()), strict=False)
    assert not unexpected
    assert [name for name in missing if not name.endswith("position_ids")] == []
    reference.train(mode=False)
    return reference


TOP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return open_clip's weights under transformers' names; an unknown name is an error."""
    found = {TOP[name]: weights[name] for name in TOP}
    found["visual_projection.weight"] = weights["visual.proj"].T
    found["text_projection.weight"] = weights["text_projection"].T
    for name, tensor in weights.items():
        tower, inside, rest = name.partition("transformer.resblocks.")
        if not inside:
            continue
        number, _, part = rest.partition(".")
        side = "vision_model" if tower == "visual." else "text_model"
        layer = f"{side}.encoder.layers.{number}"
        module, _, kind = part.rpartition(".")
        if part.startswith("attn.in_proj_"):
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                weight = part.removeprefix("attn.in_proj_")
                found[f"{layer}.self_attn.{letter}_proj.{weight}"] = third
        else:
            found[f"{layer}.{INSIDE[module]}.{kind}"] = tensor
    return found


@torch.inference_mode()
def test_averaged_templates_equal_open_clips_own_classifier(tmp_path: Path) -> None:
    """Unit vectors of all templates, averaged and made unit again: the same numbers."""
    encoder = openclip.load(openclip.Settings(model=str(make_tiny_clip(tmp_path)), device="cpu"))
    templates = ("a photo of a {}.", "a drawing of the {}.", "{}")
    label_set = LabelSet.model_validate({"names": ["cat", "dog", "house"], "templates": templates})
    model = open_clip.create_model(encoder.ref.model_spec).eval()
    theirs_DC = open_clip.build_zero_shot_classifier(
        model,
        open_clip.get_tokenizer(encoder.ref.model_spec),
        classnames=label_set.names,
        templates=[lambda name, t=template: t.format(name) for template in label_set.templates],
        num_classes_per_batch=None,
    )
    ours_CD = torch.from_numpy(bank.encoded(label_set, encoder))
    torch.testing.assert_close(ours_CD, theirs_DC.T, atol=TOLERANCE, rtol=0)
    assert ours_CD.std(dim=0).max() > 100 * TOLERANCE
