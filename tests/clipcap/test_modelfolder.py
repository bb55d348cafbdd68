"""What a folder must hold to be an encoder; what it lacks is refused before anything is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fsspec
import pytest

from clipcap import models
from clipcap.errors import NotFoundError, SettingsError
from clipcap.modelfolder import CONFIGURATION, choose_weights
from tests.hub import empty_cache
from tests.models import DIM, PREPROCESS, SIDE_PX, WEIGHTS, change, make_tiny_clip

HIVE_SAFE = re.compile(r"[A-Za-z0-9_.-]+")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny CLIP in open_clip's own form."""
    return make_tiny_clip(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, and a hub that may be asked but is not there."""
    return empty_cache(tmp_path, monkeypatch)


def refused(name: str | Path) -> str:
    """Return the sentence with which an encoder is refused."""
    with pytest.raises(SettingsError) as caught:
        models.encoder(str(name))
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_is_an_encoder(folder: Path, prefix: str) -> None:
    ref = models.encoder(f"{prefix}{folder}")
    assert ref.dim == DIM
    assert ref.weights == str(folder / WEIGHTS)
    assert ref.preprocess["size"] == [SIDE_PX, SIDE_PX]
    assert ref.preprocess["mean"] == PREPROCESS["mean"]
    assert ref.preprocess_json == json.dumps(ref.preprocess, sort_keys=True, separators=(",", ":"))
    assert len(ref.sha256) == len(ref.preprocess_sha256) == len(ref.config_sha256) == 64
    assert HIVE_SAFE.fullmatch(ref.model_id)
    assert ref.model_id.startswith("tiny-")


def test_a_relative_folder_is_an_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert models.encoder("tiny").model_spec == f"local-dir:{folder}"


def test_other_weights_are_another_model(folder: Path, tmp_path: Path) -> None:
    other = make_tiny_clip(tmp_path / "other" / "tiny", seed=1)
    assert models.encoder(str(folder)).model_id != models.encoder(str(other)).model_id


def test_the_same_folder_elsewhere_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    before = models.encoder(str(folder))
    (tmp_path / "elsewhere").mkdir()
    after = models.encoder(str(folder.rename(tmp_path / "elsewhere" / "tiny")))
    assert after.model_id == before.model_id
    assert (after.sha256, after.config_sha256) == (before.sha256, before.config_sha256)
    assert after.preprocess_sha256 == before.preprocess_sha256


def test_weights_that_change_in_place_are_seen(folder: Path, tmp_path: Path) -> None:
    before = models.encoder(str(folder))
    make_tiny_clip(tmp_path / "new", seed=1)
    (tmp_path / "new" / WEIGHTS).replace(folder / WEIGHTS)
    assert models.encoder(str(folder)).sha256 != before.sha256


def test_the_configuration_and_the_tokenizer_are_part_of_the_identity(folder: Path) -> None:
    """QuickGELU changes every embedding and no weight."""
    before = models.encoder(str(folder)).config_sha256
    change(folder, "model_cfg", quick_gelu=True)
    between = models.encoder(str(folder)).config_sha256
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"lion"'))
    assert len({before, between, models.encoder(str(folder)).config_sha256}) == 3


def test_left_out_defaults_do_not_change_the_preprocessing(folder: Path) -> None:
    before = models.encoder(str(folder)).preprocess_sha256
    change(folder, "preprocess_cfg", interpolation=None, resize_mode=None)
    assert models.encoder(str(folder)).preprocess_sha256 == before
    change(folder, "preprocess_cfg", resize_mode="squash")
    assert models.encoder(str(folder)).preprocess_sha256 != before


def test_one_number_for_all_channels_is_three(folder: Path) -> None:
    change(folder, "preprocess_cfg", mean=0.5)
    assert models.encoder(str(folder)).preprocess["mean"] == [0.5, 0.5, 0.5]


def test_weights_without_preprocessing_are_refused(folder: Path) -> None:
    """open_clip's issue 1068: it takes another preprocessing and every embedding is wrong."""
    path = folder / CONFIGURATION
    read = json.loads(path.read_text())
    path.write_text(json.dumps({"model_cfg": read["model_cfg"]}))
    said = refused(folder)
    assert str(path) in said
    assert "preprocess_cfg" in said
    assert '"mean": [0.5, 0.5, 0.5]' in said


@pytest.mark.parametrize("key", ["mean", "std"])
def test_preprocessing_without_its_numbers_is_refused(folder: Path, key: str) -> None:
    change(folder, "preprocess_cfg", **{key: None})
    assert f"`{key}`" in refused(folder)


@pytest.mark.parametrize("key", ["embed_dim", "vision_cfg", "text_cfg"])
def test_half_a_configuration_is_refused(folder: Path, key: str) -> None:
    change(folder, "model_cfg", **{key: None})
    assert "must have `model_cfg`" in refused(folder)


def test_a_missing_configuration_is_named(folder: Path) -> None:
    (folder / CONFIGURATION).unlink()
    assert f"must hold {CONFIGURATION}, but has none. Copy it" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]", "null", "\x00"])
def test_a_malformed_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIGURATION).write_text(text)
    assert str(folder / CONFIGURATION) in refused(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    said = refused(folder)
    assert f"must hold weights ({WEIGHTS}), but has none" in said


def test_a_missing_tokenizer_is_named_and_how_to_add_it(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    said = refused(folder)
    assert "tokenizer.json" in said
    assert "hf download in-this-folder tokenizer.json" in said


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth", "weights.pt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    said = refused(folder)
    assert name in said
    assert "save_file" in said


def test_a_pickle_that_open_clip_would_prefer_is_refused() -> None:
    """`model.safetensors` beside it is transformers' own, under other names."""
    with pytest.raises(SettingsError, match=r"open_clip_pytorch_model\.bin"):
        choose_weights(["open_clip_pytorch_model.bin", "model.safetensors"], "here")


def test_safetensors_beside_a_pickle_are_taken() -> None:
    names = ["model.safetensors", "open_clip_pytorch_model.bin", WEIGHTS, "pytorch_model.bin"]
    assert choose_weights(names, "here") == WEIGHTS


def test_a_folder_that_is_not_there_gives_the_near_ones(folder: Path) -> None:
    said = refused(folder.parent / "tyni")
    assert "is not there. Did you mean tiny?" in said


def test_a_folder_on_a_store_is_fetched_once(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/models/tiny/{path.name}", path.read_bytes())
    ref = models.encoder("memory://models/tiny")
    assert ref.sha256 == models.encoder(str(folder)).sha256
    assert ref.model_id == models.encoder(str(folder)).model_id
    before = Path(ref.weights).stat().st_mtime_ns
    assert Path(models.encoder("memory://models/tiny/").weights).stat().st_mtime_ns == before
    memory.rm("/models", recursive=True)


def test_a_folder_on_a_store_that_is_empty_is_told() -> None:
    with pytest.raises(NotFoundError, match="no object below memory://models/none"):
        models.encoder("memory://models/none")
