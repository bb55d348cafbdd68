"""What open_clip does with our folders: safe, offline, and small enough for the device."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import transforms

from clipcap import forward, models
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


def pixels(count: int, side: int = SIDE_PX) -> NDArray[np.uint8]:
    """Return pictures as decoders deliver them: uint8 [count, H, W, 3], every value among them."""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_pixels_are_normalised_as_torchvision_does_it(folder: Path) -> None:
    """To the last bit: another rounding would be another preprocessing."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    mean, std = (config["preprocess_cfg"][name] for name in ("mean", "std"))
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    found_BHWC = pixels(5)
    expected_BCHW = torch.stack([steps(picture) for picture in found_BHWC])
    raw_BHWC = torch.from_numpy(found_BHWC)
    found_BCHW = forward.normalised(raw_BHWC, torch.tensor(mean), torch.tensor(std))
    assert torch.equal(found_BCHW, expected_BCHW)
    assert found_BCHW.is_contiguous(memory_format=torch.channels_last)
    encoder = load(folder)
    assert torch.equal(encoder.encode_pixels(raw_BHWC)(), encoder.encode_images(found_BCHW))


def test_a_text_longer_than_the_context_is_cut(folder: Path) -> None:
    encoder = load(folder)
    assert encoder.encode_texts(["a cat and a dog " * 50]).shape == (1, DIM)


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


class LateDevice:
    """Says only at the wait that its memory has ended."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.begun: list[int] = []

    def begin(self, inputs_B: Tensor) -> Callable[[], Tensor]:
        """Begin, whatever comes."""
        self.begun.append(len(inputs_B))

        def wait() -> Tensor:
            if len(inputs_B) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inputs_B.float()[:, :DIM]

        return wait


def on_small_device(folder: Path, room: int) -> tuple[SmallDevice, openclip.Encoder]:
    """Return an encoder whose device has room for so many images."""
    model = SmallDevice(room)
    ref = models.encoder(str(folder))
    none = torch.zeros(0)
    encoder = openclip.Encoder(ref, model, lambda _: none, lambda _: none, "fp32")
    return model, encoder


@pytest.mark.parametrize("way", ["pixels", "images"])
def test_a_batch_too_large_is_halved_told_once_and_remembered(
    folder: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    model, encoder = on_small_device(folder, room=3)
    raw_BHWC = torch.from_numpy(pixels(11))
    mean_C, std_C = (torch.tensor(encoder.ref.preprocess[name]) for name in ("mean", "std"))
    images_BCHW = forward.normalised(raw_BHWC, mean_C, std_C)

    def encode(count: int) -> Tensor:
        if way == "images":
            return encoder.encode_images(images_BCHW[:count])
        return encoder.encode_pixels(raw_BHWC[:count])()

    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(encode(11), images_BCHW.flatten(1)[:, :DIM])
        assert model.tried == [11, 5, 2, 2, 2, 2, 2, 1]
        model.tried.clear()
        encode(4)
    assert model.tried == [2, 2]
    assert len(caplog.records) == 1


def test_the_work_begins_before_anybody_waits(folder: Path) -> None:
    model, encoder = on_small_device(folder, room=3)
    wait = encoder.encode_pixels(torch.from_numpy(pixels(2)))
    assert model.tried == [2]
    assert wait().shape == (2, DIM)
    assert model.tried == [2]


def test_a_device_that_says_it_at_the_wait_is_given_halves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was begun in the meantime keeps its place; then all parts are begun at once."""
    device = LateDevice(room=3)
    memory = forward.Memory(torch.device("cpu"), "tiny", DIM)
    inputs_BD = torch.arange(11 * DIM).view(11, DIM)
    with caplog.at_level(logging.WARNING):
        first, second = (memory.begin(device.begin, inputs_BD) for _ in range(2))
        assert torch.equal(first(), inputs_BD.float())
        assert torch.equal(second(), inputs_BD.float())
    assert device.begun == [11, 11, 5, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1]
    device.begun.clear()
    waits = memory.begin(device.begin, inputs_BD[:5])
    assert device.begun == [2, 2, 1]
    assert torch.equal(waits(), inputs_BD[:5].float())
    assert device.begun == [2, 2, 1]
    assert len(caplog.records) == 1


def test_not_even_one_image_is_an_error_that_names_a_smaller_model(folder: Path) -> None:
    _, encoder = on_small_device(folder, room=0)
    with pytest.raises(DeviceError, match="smaller model") as caught:
        encoder.encode_images(torch.rand(4, 3, SIDE_PX, SIDE_PX))
    assert caught.value.exit_code == 5
    with pytest.raises(DeviceError, match="smaller model"):
        encoder.encode_pixels(torch.from_numpy(pixels(4)))()
