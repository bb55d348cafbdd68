"""Encoders of transformers against that library itself: pixels, embeddings, whole probabilities."""

from __future__ import annotations

import io
import json
import math
import socket
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPProcessor,
    Siglip2Processor,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from clipcap import colours, models, pixels, precision
from clipcap.encoders import openclip, transformers
from clipcap.errors import SettingsError
from clipcap.labels import bank, scoring
from clipcap.labels.sets import LabelSet
from clipcap.preprocessing import PixelSettings, Preprocess
from tests.clipcap.test_parity import as_transformers
from tests.models import CONTEXT, DIM, SIDE_PX, WORDS, make_tiny_clip, pictures
from tests.models import make_clip as make_open_clip
from tests.transformersmodels import END, WEIGHTS, change, make_clip, make_siglip, make_siglip2

TOLERANCE = 1e-5
LEVELS = 2  # of 255, as for open_clip
CLASSES = ["cat", "dog", "a red car", "house on the beach", "two birds and one cup", ""]
MAKERS: dict[str, Callable[[Path], Any]] = {
    "clip": make_clip,
    "siglip": make_siglip,
    "siglip2": make_siglip2,
}
SLOW = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model loaded afterwards, and what is kept about models in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    yield
    transformers.forget()
    openclip.forget()


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each type of model."""
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a model is to lie."""
    return tmp_path / "tiny"


def load(folder: Path, **settings: Any) -> transformers.Encoder:  # noqa: ANN401 - any setting
    """Load a folder on the CPU."""
    return transformers.load(transformers.Settings(model=str(folder), device="cpu", **settings))


def image_processor(folder: Path) -> Any:  # noqa: ANN401 - of three classes
    """Return a folder's own image processor, as transformers loads it."""
    load: Any = AutoImageProcessor.from_pretrained
    return load(str(folder))


@lru_cache(maxsize=2)
def tokenizer_of(folder: str) -> Any:  # noqa: ANN401 - of any class
    """Return a folder's own tokenizer, as transformers loads it."""
    return AutoTokenizer.from_pretrained(folder)


def inputs(folder: Path, kind: str, texts: list[str], images: list[Image.Image]) -> dict[str, Any]:
    """Return what a tutorial hands to the model: by the folder's own processor and tokenizer."""
    tokenizer = tokenizer_of(str(folder))
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length"}
    found = tokenizer(texts, **padding, max_length=CONTEXT, truncation=True, return_tensors="pt")
    processor = image_processor(folder)
    return {**found, **processor(images, return_tensors="pt")}


def raw_pixels(images: list[Image.Image], wanted: Preprocess) -> Tensor:
    """Return files as our own pipeline decodes, resizes and crops them."""
    return torch.from_numpy(np.stack([pixels.pixels(as_file(one), wanted) for one in images]))


def as_file(image: Image.Image) -> bytes:
    """Return a picture as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@torch.inference_mode()
def test_images_and_texts_embed_as_in_transformers(kind: str, folder: Path) -> None:
    model = MAKERS[kind](folder)
    given = inputs(folder, kind, CLASSES, pictures())
    encoder = load(folder)
    text = {name: given.pop(name) for name in ("input_ids", "attention_mask")}
    theirs_BD = model.get_image_features(**given).pooler_output
    images_BCHW = torch.stack([encoder.preprocess(image) for image in pictures()])
    ours_BD = encoder.encode_images(images_BCHW)
    torch.testing.assert_close(ours_BD, theirs_BD, atol=TOLERANCE, rtol=TOLERANCE)
    assert normalize(ours_BD, dim=-1).std(dim=0).max() > 1e-2
    found_BD = encoder.encode_pixels(
        raw_pixels(pictures(), Preprocess.of(encoder.ref.preprocess))
    )()
    assert (1 - cosine_similarity(found_BD.double(), theirs_BD.double())).max() < 1e-4
    theirs_CD = model.get_text_features(**text).pooler_output
    ours_CD = encoder.encode_texts(CLASSES)
    torch.testing.assert_close(ours_CD, theirs_CD, atol=TOLERANCE, rtol=TOLERANCE)
    assert normalize(ours_CD, dim=-1).std(dim=0).max() > 1e-2


@torch.inference_mode()
def test_zero_shot_probabilities_are_those_of_transformers(kind: str, folder: Path) -> None:
    """The softmax of a CLIPModel, the sigmoid of a SiglipModel, from images to probabilities."""
    model = MAKERS[kind](folder)
    encoder = load(folder)
    images_BCHW = torch.stack([encoder.preprocess(image) for image in pictures()])
    image_BD = normalize(encoder.encode_images(images_BCHW), dim=-1)
    label_set = LabelSet.model_validate({"names": CLASSES, "templates": ["{}"]})
    given = bank.in_words(
        label_set,
        bank.encoded(label_set, encoder),
        scale=encoder.logit_scale,
        bias=encoder.logit_bias,
    )
    ours_BC = torch.from_numpy(scoring.whole(image_BD.numpy(), given)[1])
    logits_BC = model(**inputs(folder, kind, CLASSES, pictures())).logits_per_image
    if kind == "clip":
        theirs_BC = logits_BC.softmax(dim=-1)
        assert encoder.logit_bias is None
    else:
        assert encoder.logit_bias == pytest.approx(-1.5)
        theirs_BC = logits_BC.sigmoid()
    torch.testing.assert_close(ours_BC, theirs_BC, atol=TOLERANCE, rtol=0)
    assert ours_BC.std(dim=-1).max() > 100 * TOLERANCE
    assert ours_BC.std(dim=0).max() > 100 * TOLERANCE


SIZES = [(320, 200), (90, 301), (33, 32), (32, 39), (39, 32), (640, 481), (35, 200), (20, 31)]


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_are_those_of_both_image_processors(kind: str, folder: Path, resample: int) -> None:
    """What is over is cut off elsewhere than by open_clip: by the floor of the half."""
    MAKERS[kind](folder)
    change(folder, "preprocessor_config.json", resample=resample)
    wanted = Preprocess.of(models.encoder(str(folder)).preprocess)
    assert wanted.interpolation == {2: "bilinear", 3: "bicubic"}[resample]
    config = json.loads((folder / "preprocessor_config.json").read_text())
    fast, slow = image_processor(folder), SLOW[kind](**config)
    mean_C, std_C = (np.array(config[name]) for name in ("image_mean", "image_std"))
    rng = np.random.default_rng(0)
    for size in SIZES:
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image = small.resize(size, Image.Resampling.BICUBIC)
        ours_HWC = pixels.pixels(as_file(image), wanted).astype(int)
        for processor in (fast, slow):
            found_CHW = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
            theirs_HWC = (np.moveaxis(found_CHW, 0, -1) * std_C + mean_C) * 255
            assert np.abs(ours_HWC - theirs_HWC).max() < LEVELS + 0.01, (size, processor)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_other_colours_become_what_transformers_makes_of_them(folder: Path, mode: str) -> None:
    """Where open_clip drops transparency, transformers puts a picture on white."""
    make_clip(folder)
    encoder = load(folder)
    picture = pictures(1)[0].convert("RGB").convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    stream = io.BytesIO()
    picture.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    wanted = Preprocess.of(encoder.ref.preprocess)
    processor = image_processor(folder)
    theirs_CHW = processor(picture, return_tensors="pt")["pixel_values"][0]
    mean_C, std_C = (torch.tensor(encoder.ref.preprocess[name]) for name in ("mean", "std"))
    theirs_HWC = (theirs_CHW.permute(1, 2, 0) * std_C + mean_C) * 255
    ours_HWC = torch.from_numpy(pixels.pixels(stream.getvalue(), wanted)).float()
    assert (ours_HWC - theirs_HWC).abs().max() < LEVELS + 0.01


def test_on_white_is_opaque_where_nothing_is_transparent() -> None:
    picture = pictures(1)[0]
    assert colours.on_white(picture).tobytes() == picture.tobytes()
    clear = Image.new("RGBA", (3, 3), (9, 9, 9, 0))
    assert colours.on_white(clear).getpixel((1, 1)) == (255, 255, 255)


@torch.inference_mode()
@pytest.mark.parametrize("end", [2, END])
def test_the_end_of_a_text_is_found_as_old_and_new_configurations_say_it(
    folder: Path, end: int
) -> None:
    """OpenAI's have `eos_token_id` 2, where transformers takes the highest number instead."""
    model = make_clip(folder, eos_token_id=end)
    given = inputs(folder, "clip", CLASSES, pictures(1))
    theirs_CD = model(**given).text_embeds
    ours_CD = normalize(load(folder).encode_texts(CLASSES), dim=-1)
    torch.testing.assert_close(ours_CD, theirs_CD, atol=TOLERANCE, rtol=0)
    assert ours_CD.std(dim=0).max() > 1e-2


def test_a_text_longer_than_the_context_is_cut(kind: str, folder: Path) -> None:
    MAKERS[kind](folder)
    encoder = load(folder)
    long_D, short_D = encoder.encode_texts(["a cat and a dog " * 50, "a cat and a dog"])
    assert long_D.shape == (DIM,)
    assert (long_D - short_D).abs().max() > 1e-3


def test_a_text_is_filled_up_to_one_length_where_the_last_token_counts(folder: Path) -> None:
    """SigLIP alone: the neighbours of a text must not change its embedding."""
    make_siglip(folder)
    encoder = load(folder)
    alone_CD = encoder.encode_texts(["a cat"])
    beside_CD = encoder.encode_texts(["a cat", "a photo of two dogs on the grass at the sea"])
    torch.testing.assert_close(alone_CD[0], beside_CD[0], atol=TOLERANCE, rtol=0)


def test_what_a_processor_saves_is_enough(kind: str, folder: Path, tmp_path: Path) -> None:
    """As docs/models.md shows it: one file for images and texts, in the place of two."""
    model = MAKERS[kind](folder)
    before = load(folder)
    named = {"clip": CLIPProcessor, "siglip": SiglipProcessor, "siglip2": Siglip2Processor}
    whole = named[kind](image_processor(folder), AutoTokenizer.from_pretrained(str(folder)))
    model.save_pretrained(tmp_path / "saved")
    whole.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "preprocessor_config.json").exists()
    after = load(tmp_path / "saved")
    assert after.preprocess_json == before.preprocess_json
    assert torch.equal(after.encode_texts(CLASSES), before.encode_texts(CLASSES))


def test_a_vocabulary_with_merges_is_a_tokenizer(folder: Path) -> None:
    """As in repositories from before tokenizer.json."""
    make_clip(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    words = ["a</w>", "c", "a", "t</w>", "at</w>", "cat</w>", "d"]
    names = [*words, *(f"x{n}" for n in range(END - 1 - len(words)))]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    one_D, same_D, other_D = load(folder).encode_texts(["a cat", "A  Cat", "cat a"])
    torch.testing.assert_close(one_D, same_D)
    assert (one_D - other_D).abs().max() > 1e-3


def test_siglips_tokenizer_needs_no_sentencepiece(folder: Path) -> None:
    """Its folders name a slow class; tokenizer.json says the same."""
    make_siglip(folder)
    expected_CD = load(folder).encode_texts(CLASSES)
    change(folder, "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    transformers.forget()
    assert torch.equal(load(folder).encode_texts(CLASSES), expected_CD)


def test_loading_and_encoding_ask_nobody(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the hub could be asked."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("something wants the network")

    MAKERS[kind](folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = load(folder)
    encoder.encode_texts(["a cat"])
    encoder.encode_images(encoder.preprocess(pictures(1)[0])[None])
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}),
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
    ],
)
def test_no_code_of_a_folder_runs(
    folder: Path, tmp_path: Path, name: str, auto: dict[str, Any]
) -> None:
    make_clip(folder)
    change(folder, name, auto_map=auto)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    try:
        assert load(folder).dim == DIM
    except SettingsError as error:
        assert "custom code" in str(error)  # noqa: PT017 - either is safe
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change_one", ["cut", "narrow", "missing"])
def test_weights_that_are_not_whole_are_refused(folder: Path, change_one: str) -> None:
    """Where transformers itself would draw some at random."""
    make_clip(folder)
    weights = load_file(folder / WEIGHTS)
    if change_one == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    elif change_one == "narrow":
        narrow = weights["text_projection.weight"][:, :8].contiguous()
        save_file(weights | {"text_projection.weight": narrow}, folder / WEIGHTS)
    else:
        del weights["visual_projection.weight"]
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(SettingsError) as caught:
        load(folder)
    said = {"cut": "must fit together", "narrow": "text_projection", "missing": "visual_projection"}
    assert said[change_one] in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [math.nan, 1e4])
def test_a_scale_that_makes_no_probabilities_is_refused(folder: Path, scale: float) -> None:
    make_clip(folder)
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"logit_scale": torch.tensor(scale)}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(SettingsError, match="`logit_scale`"):
        load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    """Its numbers would be looked up beyond the end of the model's words, or be other words."""
    make_clip(folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat": 30', '"cat": 30, "lynx": 46'))
    with pytest.raises(SettingsError, match="47 tokens, but the model knows 46"):
        load(folder)


def spoilt_text(**values: Any) -> Callable[[Path], None]:  # noqa: ANN401 - any JSON
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(folder, "config.json", text_config=config["text_config"] | values)

    return spoil


def spoilt_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoilt_text(hidden_size="32"), "expected int, got str"),
        (spoilt_text(num_attention_heads=3), "attention heads"),
        (spoilt_text(hidden_act="nonsense"), "nonsense"),
        (spoilt_text(eos_token_id=[END]), "cannot load them"),
        (spoilt_file("tokenizer.json", "{"), "cannot load them"),
        (spoilt_file("tokenizer_config.json", '{"tokenizer_class": 3}'), "cannot load them"),
        (spoilt_file("tokenizer_config.json", '{"tokenizer_class": "Evil"}'), "padding token"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_they_are_loaded(
    folder: Path, spoil: Callable[[Path], object], said: str
) -> None:
    """And not in the middle of a night, nor with a traceback."""
    make_clip(folder)
    spoil(folder)
    with pytest.raises(SettingsError) as caught:
        load(folder)
    assert said in str(caught.value)
    assert "must fit together" in str(caught.value)


def test_weights_in_several_files_are_one_model(folder: Path) -> None:
    model = make_clip(folder)
    before = models.encoder(str(folder))
    expected_CD = load(folder).encode_texts(CLASSES)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    ref = models.encoder(str(folder))
    assert ref.weights.endswith("model.safetensors.index.json")
    assert ref.sha256 != before.sha256
    assert torch.equal(load(folder).encode_texts(CLASSES), expected_CD)
    part = sorted(folder.glob("model-*.safetensors"))[1]
    save_file({name: tensor + 1 for name, tensor in load_file(part).items()}, part)
    assert models.encoder(str(folder)).sha256 != ref.sha256


def test_each_library_refuses_the_form_of_the_other(folder: Path, tmp_path: Path) -> None:
    make_clip(folder)
    make_tiny_clip(tmp_path / "other")
    with pytest.raises(SettingsError, match="form of openclip, but is in that of transformers"):
        openclip.load(openclip.Settings(model=str(folder)))
    with pytest.raises(SettingsError, match="form of transformers, but is in that of openclip"):
        load(tmp_path / "other")


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_a_lower_format_keeps_sums_and_texts_in_float32(
    kind: str, folder: Path, wanted: str
) -> None:
    MAKERS[kind](folder)
    exact = load(folder)
    lowered = load(folder, precision=wanted)
    assert lowered.precision == wanted
    images_BCHW = precision.reference_images(exact.ref.preprocess)
    expected_BD, found_BD = exact.encode_images(images_BCHW), lowered.encode_images(images_BCHW)
    assert found_BD.dtype == torch.float32
    off_B = 1 - cosine_similarity(found_BD.double(), expected_BD.double())
    assert 0 < off_B.max() <= precision.LIMIT
    assert torch.equal(lowered.encode_texts(CLASSES), exact.encode_texts(CLASSES))


def test_managed_colours_are_the_same_for_either_library(folder: Path) -> None:
    make_clip(folder)
    picture = pictures(1)[0].convert("RGBA")
    ours = Preprocess.of(models.encoder(str(folder)).preprocess)
    found = pixels.pixels(as_file(picture), ours, PixelSettings(colours="managed"))
    assert found.shape == (SIDE_PX, SIDE_PX, 3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_fifty_names_with_eighty_templates_score_as_in_transformers(
    kind: str, folder: Path
) -> None:
    """Unit vectors of all templates, averaged and made unit again; then softmax or sigmoid."""
    model = MAKERS[kind](folder)
    encoder = load(folder)
    rng = np.random.default_rng(0)
    names = [f"{' '.join(rng.choice(WORDS, 2))} {n}" for n in range(50)]
    templates = [f"{' '.join(rng.choice(WORDS, 2 + n % 3))} {{}} {n}" for n in range(80)]
    texts_CM = [[template.format(name) for template in templates] for name in names]
    label_set = LabelSet.model_validate({"names": names, "templates": templates})
    name_CD = torch.from_numpy(bank.encoded(label_set, encoder))
    theirs = []
    for texts in texts_CM:
        given = inputs(folder, kind, texts, pictures(1))
        text = {name: given[name] for name in ("input_ids", "attention_mask")}
        unit_MD = normalize(model.get_text_features(**text).pooler_output, dim=-1)
        theirs.append(normalize(unit_MD.mean(dim=0), dim=0))
    theirs_CD = torch.stack(theirs)
    torch.testing.assert_close(name_CD, theirs_CD, atol=TOLERANCE, rtol=0)
    images_BCHW = torch.stack([encoder.preprocess(image) for image in pictures()])
    image_BD = normalize(encoder.encode_images(images_BCHW), dim=-1)
    bias = encoder.logit_bias or 0
    ours_BC = image_BD @ name_CD.T * encoder.logit_scale + bias
    theirs_BC = image_BD @ theirs_CD.T * model.logit_scale.exp() + getattr(model, "logit_bias", 0)
    for score in (torch.sigmoid, lambda logit_BC: logit_BC.softmax(dim=-1)):
        torch.testing.assert_close(score(ours_BC), score(theirs_BC), atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's ViT-B/32 with random weights, as open_clip's folder and as one of transformers."""
    made = tmp_path_factory.mktemp("true-shape")
    model = make_open_clip(made / "open", "ViT-B-32-quickgelu")
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    as_transformers(model, config, eos=49407).save_pretrained(made / "other")
    CLIPImageProcessor().save_pretrained(made / "other")
    words = open_clip.get_tokenizer("ViT-B-32")
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {named.get(word, word): number for word, number in words.encoder.items()}
    (made / "other" / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in words.bpe_ranks)
    (made / "other" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return made


@pytest.mark.slow
@torch.inference_mode()
def test_either_library_embeds_the_same_weights_alike(vit_b_32: Path) -> None:
    """From files and texts on: two decoders of a name's words, two croppings of a square."""
    theirs = openclip.load(openclip.Settings(model=str(vit_b_32 / "open"), device="cpu"))
    ours = load(vit_b_32 / "other")
    assert ours.logit_scale == pytest.approx(theirs.logit_scale)
    preprocess = dict(ours.ref.preprocess)
    assert preprocess.pop("rules") == "transformers"
    assert preprocess == theirs.ref.preprocess
    squares = [picture.resize((300, 300)) for picture in pictures()]
    raw_BHWC = raw_pixels(squares, Preprocess.of(ours.ref.preprocess))
    found_BD, expected_BD = (one.encode_pixels(raw_BHWC)() for one in (ours, theirs))
    unit = [normalize(one_BD, dim=-1) for one_BD in (found_BD, expected_BD)]
    torch.testing.assert_close(unit[0], unit[1], atol=TOLERANCE, rtol=0)
    texts = [*CLASSES, 'It\'s 1,000 °C — naïve "café" №5!', "word " * 100]
    found_CD, expected_CD = (one.encode_texts(texts) for one in (ours, theirs))
    unit = [normalize(one_CD, dim=-1) for one_CD in (found_CD, expected_CD)]
    torch.testing.assert_close(unit[0], unit[1], atol=TOLERANCE, rtol=0)
    assert unit[0].std(dim=0).max() > 1e-2
