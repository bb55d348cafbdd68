"""What a folder of transformers must hold to be an encoder; what it lacks is refused at once."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from clipcap import embedding, hub, modelnames, models
from clipcap.embedding import EmbedSettings
from clipcap.errors import HubError, SettingsError
from clipcap.modelfolder import CONFIGURATION
from tests.hub import cached, empty_cache
from tests.models import DIM, SIDE_PX, make_tiny_clip
from tests.transformersmodels import WEIGHTS, change, make_clip, make_siglip, make_siglip2

PROCESSOR = "preprocessor_config.json"
HIVE_SAFE = re.compile(r"[A-Za-z0-9_.-]+")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, and a hub that may be asked but is not there."""
    return empty_cache(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each type, for tests to copy."""
    folder = tmp_path_factory.mktemp("made")
    make_clip(folder / "clip")
    make_siglip(folder / "siglip")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A tiny CLIPModel, free to be spoilt."""
    return Path(shutil.copytree(made / "clip", tmp_path / "tiny"))


def refused(name: str | Path) -> str:
    """Return the sentence with which an encoder is refused."""
    with pytest.raises(SettingsError) as caught:
        models.encoder(str(name))
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_folder_is_an_encoder_of_transformers(made: Path, kind: str, prefix: str) -> None:
    ref = models.encoder(f"{prefix}{made / kind}")
    assert (ref.loader, ref.dim) == ("transformers", DIM)
    assert ref.weights == str(made / kind / WEIGHTS)
    assert ref.preprocess["size"] == [SIDE_PX, SIDE_PX]
    assert ref.preprocess["resize_mode"] == {"clip": "shortest", "siglip": "squash"}[kind]
    assert ref.preprocess["rules"] == "transformers"
    assert len(ref.sha256) == len(ref.config_sha256) == 64
    assert HIVE_SAFE.fullmatch(ref.model_id)


def test_a_folder_on_a_store_is_fetched(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/models/tiny/{path.name}", path.read_bytes())
    ref = models.encoder("memory://models/tiny")
    assert (ref.model_id, ref.loader) == (models.encoder(str(folder)).model_id, "transformers")
    memory.rm("/models", recursive=True)


def test_open_clips_form_goes_first_in_a_folder_with_both(folder: Path) -> None:
    make_tiny_clip(folder)
    assert models.encoder(str(folder)).loader == "openclip"


def test_a_person_need_not_say_the_library(folder: Path, tmp_path: Path) -> None:
    """And what was embedded before there was a choice keeps its fingerprint."""
    auto = EmbedSettings(model=str(folder))
    named = EmbedSettings(model=str(folder), encoder="transformers")
    ref = embedding.reference(auto)
    assert embedding.recipe(auto, ref) == embedding.recipe(named, ref)
    older = str(make_tiny_clip(tmp_path / "older"))
    before = EmbedSettings(model=older, encoder="openclip")
    ref = embedding.reference(before)
    assert embedding.recipe(EmbedSettings(model=older), ref) == embedding.recipe(before, ref)
    with pytest.raises(SettingsError, match="No encoder 'tensorflow'"):
        embedding.reference(EmbedSettings(model=older, encoder="tensorflow"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_configuration_and_tokenizer_are_part_of_the_identity(folder: Path, name: str) -> None:
    before = models.encoder(str(folder))
    path = folder / name
    path.write_text(path.read_text().replace('"cat"', '"lion"').replace("quick_gelu", "gelu"))
    assert models.encoder(str(folder)).config_sha256 != before.config_sha256
    assert models.encoder(str(folder)).model_id != before.model_id


def test_a_missing_processor_is_named(folder: Path) -> None:
    (folder / PROCESSOR).unlink()
    assert f"{folder} must hold {PROCESSOR}" in refused(folder)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    assert "tokenizer as tokenizer.json" in refused(folder)


def test_pickled_weights_are_refused_with_the_way_to_save_them_again(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    said = refused(folder)
    assert "pytorch_model.bin, a pickle" in said
    assert "save_pretrained(FOLDER)" in said


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert f"must hold weights ({WEIGHTS}), but has none" in refused(folder)


@pytest.mark.parametrize("stray", ["pytorch_model.bin", "../model.safetensors", "missing.bin"])
def test_an_index_names_safe_parts_alone(folder: Path, stray: str) -> None:
    """What it names would be taken, pickles too."""
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"logit_scale": stray}}))
    assert f"but names {stray}" in refused(folder)
    index.write_text("{}")
    assert "but names None" in refused(folder)


def test_weights_that_are_not_those_whose_digest_is_kept_are_refused(folder: Path) -> None:
    """The library takes what `transformers_weights` names, and peft adds an adapter."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/other"}')
    assert "adapter_config.json" in refused(folder)
    (folder / "adapter_config.json").unlink()
    change(folder, "config.json", transformers_weights="other.safetensors")
    assert "transformers_weights" in refused(folder)


@pytest.mark.parametrize("name", [WEIGHTS, PROCESSOR, "tokenizer.json"])
def test_what_is_no_file_is_not_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "nowhere")
    said = refused(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refused(folder) == said
    assert "must hold" in said


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    change(folder, "config.json", model_type="bert")
    said = refused(folder)
    assert "model_type 'bert'" in said
    assert "clip, siglip, siglip2" in said


@pytest.mark.parametrize("text", ["{", "[]", "null", "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", PROCESSOR])
def test_malformed_files_are_refused(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    assert name in refused(folder)


Values = dict[str, Any]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"do_resize": False}, "`do_resize` true, but says false"),
        ({"do_rescale": False}, "`do_rescale` true"),
        ({"do_normalize": False}, "`do_normalize` true"),
        ({"do_pad": True}, "`do_pad` false, but says true"),
        ({"rescale_factor": 1 / 127.5}, "`rescale_factor` 1/255"),
        ({"resample": 1}, "`resample` 2 (bilinear) or 3 (bicubic), but says 1"),
        ({"do_center_crop": False}, "a centre crop to its square"),
        ({"size": {"shortest_edge": 40}}, "a centre crop to its square"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "a centre crop to its square"),
        ({"size": {"height": 40, "width": 32}}, "a centre crop to its square"),
        ({"size": 48, "crop_size": 48}, "images of 32 x 32, as config.json has, but says 48 x 48"),
        ({"image_processor_type": "ViTImageProcessor"}, "is of ViTImageProcessor"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_mean": [0.5, math.nan, 0.5]}, "three numbers"),
        ({"image_std": [0.5, math.inf, 0.5]}, "three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "`image_std` over 0"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused(folder: Path, values: Values, said: str) -> None:
    change(folder, PROCESSOR, **values)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"patch_size": 16}, "`patch_size` 8, as config.json has, but says 16"),
        ({"max_num_patches": 10**6}, "`max_num_patches` up to 4096"),
        ({"max_num_patches": None, "patch_size": None}, "`patch_size` 8"),
        ({"image_processor_type": "SiglipImageProcessor"}, "must be of Siglip2ImageProcessor"),
    ],
)
def test_patches_that_do_not_fit_are_refused(tmp_path: Path, values: Values, said: str) -> None:
    make_siglip2(tmp_path / "patches")
    before = models.encoder(str(tmp_path / "patches"))
    assert before.preprocess["size"] == [21 * 8, 8]
    change(tmp_path / "patches", PROCESSOR, **values)
    assert said in refused(tmp_path / "patches")


@pytest.mark.parametrize(
    "values",
    [
        {"size": 32, "crop_size": 32},
        {"image_processor_type": "CLIPImageProcessorFast", "do_pad": None},
        {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
        {"image_processor_type": None},
        {"image_mean": None, "image_std": None, "resample": None, "rescale_factor": None},
        {"do_convert_rgb": None, "crop_size": {"height": 32, "width": 32}},
    ],
)
def test_older_files_say_the_same(folder: Path, values: Values) -> None:
    before = models.encoder(str(folder)).preprocess
    change(folder, PROCESSOR, **values)
    assert models.encoder(str(folder)).preprocess == before


def test_a_processor_in_the_newer_file_goes_first(folder: Path) -> None:
    alone = json.loads((folder / PROCESSOR).read_text())
    whole = {"image_processor": alone | {"resample": 2}, "processor_class": "CLIPProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(whole))
    assert models.encoder(str(folder)).preprocess["interpolation"] == "bilinear"
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert models.encoder(str(folder)).preprocess["interpolation"] == "bicubic"
    (folder / PROCESSOR).unlink()
    assert "must have `image_processor`" in refused(folder)


def shrink(config: Values) -> None:
    """As OpenAI's own files have it: the numbers that count stand in `vision_config_dict`."""
    config["vision_config_dict"] = config["vision_config"] | {"image_size": 64}


def widen(config: Values) -> None:
    config["text_config"]["projection_size"] = 2 * DIM


def behead(config: Values) -> None:
    config["vision_config"]["vision_use_head"] = False


def misspell(config: Values) -> None:
    config["vision_config"]["image_size"] = "32"


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [
        ("clip", shrink, "images of 64 x 64"),
        ("clip", misspell, "a whole number as `image_size`, but has '32'"),
        ("siglip", widen, "equal widths"),
        ("siglip", behead, "have no head"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    made: Path, tmp_path: Path, kind: str, spoil: Callable[[Values], None], said: str
) -> None:
    folder = Path(shutil.copytree(made / kind, tmp_path / "spoilt"))
    config = json.loads((folder / "config.json").read_text())
    spoil(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert said in refused(folder)


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_a_repository_in_the_cache_needs_no_hub(made: Path, cache: Path, prefix: str) -> None:
    shutil.copytree(made / "clip", cached(cache, "openai/clip-tiny"), dirs_exist_ok=True)
    ref = models.encoder(f"{prefix}openai/clip-tiny")
    assert (ref.loader, ref.model_id) == ("transformers", "openai__clip-tiny")
    rows = {row.name: row for row in modelnames.listing()}
    assert rows["openai/clip-tiny"].on_this_machine
    assert not rows["openai/clip-vit-base-patch16"].on_this_machine


def test_a_broken_repository_in_the_cache_hides_no_other(made: Path, cache: Path) -> None:
    broken, good = cached(cache, "org/broken"), cached(cache, "org/good")
    for snapshot in (broken, good):
        shutil.copytree(made / "clip", snapshot, dirs_exist_ok=True)
    (broken / "config.json").write_text("{")
    assert list(modelnames.cached_encoders()) == ["org/good"]


def test_a_repository_in_both_forms_is_what_its_name_says(made: Path, cache: Path) -> None:
    """`hf-hub:` is open_clip's own way to write it; a bare name is that of transformers."""
    snapshot = cached(cache, "org/both")
    shutil.copytree(made / "clip", snapshot, dirs_exist_ok=True)
    make_tiny_clip(cached(cache, "org/tokenizer"))
    read = json.loads((make_tiny_clip(made / "open") / CONFIGURATION).read_text())
    read["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/tokenizer"
    (snapshot / CONFIGURATION).write_text(json.dumps(read))
    assert models.encoder("hf-hub:org/both").loader == "openclip"
    assert models.encoder("org/both").loader == "transformers"
    change(snapshot, "config.json", model_type="timm_wrapper")
    assert models.encoder("org/both").loader == "openclip"


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch16", "google/siglip-base-patch16-224"])
def test_a_name_of_the_tutorials_is_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(HubError, match=f"the model {name} is not in the local cache") as caught:
        models.encoder(name)
    assert caught.value.exit_code == 3


def test_a_repository_without_a_model_is_refused_before_it_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(repository: str, choose: hub.Choice) -> Path:
        snapshot = cached(cache, repository)
        (snapshot / "config.json").write_text('{"model_type": "gpt2"}')
        asked.append(choose(["config.json", WEIGHTS, "tokenizer.json"]))
        return snapshot

    monkeypatch.setattr(hub, "_require_hub", lambda _: None)
    monkeypatch.setattr(hub, "_download", download)
    assert "model_type 'gpt2'" in refused("org/gpt2")
    assert asked == [["config.json"]]


def test_a_name_that_is_nobodys_is_told_with_the_nearest(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, choose: hub.Choice) -> Path:
        del choose
        raise SettingsError(f"The hub knows no repository {repository}.")

    monkeypatch.setattr(hub, "_require_hub", lambda _: None)
    monkeypatch.setattr(hub, "_download", download)
    said = refused("openai/clip-vit-base-patch61")
    assert said.startswith(
        "No encoder 'openai/clip-vit-base-patch61'. Did you mean openai/clip-vit"
    )
    assert said.endswith("The hub knows no repository openai/clip-vit-base-patch61.")
    assert not list(cache.glob("models--*"))
