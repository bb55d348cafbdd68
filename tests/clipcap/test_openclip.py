"""What open_clip does with our folders: safe, offline, and small enough for the device."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipcap import models
from clipcap.encoders import openclip
from clipcap.errors import DeviceError, SettingsError
from tests.models import DIM, SIDE_PX, make_tiny_clip, pictures

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A tiny CLIP; forgotten afterwards."""
    yield make_tiny_clip(tmp_path / "tiny")
    openclip.forget()


def load(folder: Path) -> openclip.Encoder:
    """Load a folder on the CPU."""
    return openclip.load(openclip.Settings(model=str(folder), device="cpu"))


def test_loading_and_encoding_ask_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the hub could be asked."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = load(folder)
    encoder.encode_texts(["a cat"])
    encoder.encode_images(torch.zeros(1, 3, SIDE_PX, SIDE_PX))
    assert constants.HF_HUB_OFFLINE is False


def test_a_configuration_cannot_make_the_tokenizer_run_code(folder: Path, tmp_path: Path) -> None:
    """`tokenizer_kwargs` of a folder reach transformers, which runs a folder's own code if told."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    tokenizer["tokenizer_class"] = "Evil"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SettingsError, match="custom code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_preprocessing_is_the_models_own(folder: Path) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] |= {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    picture = pictures(1)[0]
    found_CHW = load(folder).preprocess(picture)
    squashed = picture.resize((SIDE_PX, SIDE_PX), resample=3)
    plain_HWC = torch.tensor(list(squashed.get_flattened_data())).reshape(SIDE_PX, SIDE_PX, 3)
    expected_CHW = ((plain_HWC / 255 - 0.5) / 0.25).permute(2, 0, 1)
    torch.testing.assert_close(found_CHW, expected_CHW, atol=1e-5, rtol=0)


def test_a_text_longer_than_the_context_is_cut(folder: Path) -> None:
    encoder = load(folder)
    assert encoder.encode_texts(["a cat and a dog " * 50]).shape == (1, DIM)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_precision_is_nearly_the_same(folder: Path, precision: str) -> None:
    exact = load(folder)
    settings = {"model": str(folder), "device": "cpu", "precision": precision}
    half = openclip.load(openclip.Settings.model_validate(settings))
    images_BCHW = torch.stack([exact.preprocess(picture) for picture in pictures()])
    for found, expected in (
        (half.encode_images(images_BCHW), exact.encode_images(images_BCHW)),
        (half.encode_texts(["a red cat", "two"]), exact.encode_texts(["a red cat", "two"])),
    ):
        assert found.dtype == torch.float32
        cosine_B = (normalize(found, dim=-1) * normalize(expected, dim=-1)).sum(dim=-1)
        assert cosine_B.min() > 0.999


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["text_projection"] = weights["text_projection"][:, :8].contiguous()
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(SettingsError, match="must fit together") as caught:
        load(folder)
    assert str(folder / WEIGHTS) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_with_a_part_missing_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["visual.proj"]
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(SettingsError, match=r"visual\.proj"):
        load(folder)


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_cut_weights_are_refused(folder: Path, size: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    with pytest.raises(SettingsError, match="must fit together"):
        load(folder)


def test_a_malformed_tower_is_refused(folder: Path) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["no_such_thing"] = 1
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="no_such_thing"):
        load(folder)


class SmallDevice(nn.Module):
    """Stands for a device whose memory ends at some number of inputs."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.room = room
        self.tried: list[int] = []

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Embed, or be out of memory."""
        self.tried.append(len(images_BCHW))
        if len(images_BCHW) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images_BCHW.flatten(1)[:, :DIM]


def on_small_device(folder: Path, room: int) -> tuple[SmallDevice, openclip.Encoder]:
    """Return an encoder whose device has room for so many images."""
    model = SmallDevice(room)
    ref = models.encoder(str(folder))
    none = torch.zeros(0)
    encoder = openclip.Encoder(ref, model, lambda _: none, lambda _: none, torch.float32)
    return model, encoder


def test_a_batch_too_large_is_halved_told_once_and_remembered(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, encoder = on_small_device(folder, room=3)
    images_BCHW = torch.rand(11, 3, SIDE_PX, SIDE_PX)
    with caplog.at_level(logging.WARNING):
        found_BD = encoder.encode_images(images_BCHW)
        torch.testing.assert_close(found_BD, images_BCHW.flatten(1)[:, :DIM])
        assert model.tried == [11, 5, 2, 2, 2, 2, 2, 1]
        model.tried.clear()
        encoder.encode_images(images_BCHW[:4])
    assert model.tried == [2, 2]
    assert len(caplog.records) == 1


def test_not_even_one_image_is_an_error_that_names_a_smaller_model(folder: Path) -> None:
    _, encoder = on_small_device(folder, room=0)
    with pytest.raises(DeviceError, match="smaller model") as caught:
        encoder.encode_images(torch.rand(4, 3, SIDE_PX, SIDE_PX))
    assert caught.value.exit_code == 5
