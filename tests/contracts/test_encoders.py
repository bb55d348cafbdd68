"""What every encoder promises: a new file in `clipcap/encoders/` is tested here by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from clipcap import encoders, models, registry
from clipcap.errors import DeviceError, SettingsError
from clipcap.settings import Settings
from tests import transformersmodels
from tests.models import DIM, SIDE_PX, make_tiny_clip, pictures

PACKAGE = "clipcap.encoders"
TEXTS = ["a photo of a cat", "a red house on the beach", "two dogs", "a photo of a cat", ""]
TOLERANCE = 1e-5


@pytest.fixture(params=registry.names(PACKAGE))
def module(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Each encoder's module, with no model loaded before or after."""
    found = registry.load(PACKAGE, request.param)
    found.forget()
    yield found
    found.forget()


MAKERS: dict[str, Callable[[Path, int], object]] = {
    "clipcap.encoders.openclip": make_tiny_clip,
    "clipcap.encoders.transformers": transformersmodels.make_clip,
}
"""What writes a tiny model that an encoder can load: D = 16, a logarithmic scale of 3."""


def make(module: ModuleType, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model that the encoder can load."""
    MAKERS[module.__name__](folder, seed)
    return folder


@pytest.fixture
def folder(module: ModuleType, tmp_path: Path) -> Path:
    """A tiny model that the encoder can load."""
    return make(module, tmp_path / "model" / "tiny")


@pytest.fixture
def settings(module: ModuleType, folder: Path) -> Settings:
    """An encoder's settings for the tiny model."""
    found: Settings = module.Settings(model=str(folder), device="cpu")
    return found


@pytest.fixture
def encoder(module: ModuleType, settings: Settings) -> encoders.Encoder:
    """A loaded encoder."""
    found: encoders.Encoder = module.load(settings)
    return found


def batch(encoder: encoders.Encoder, count: int) -> Tensor:
    """Return some pictures as the encoder wants them."""
    return torch.stack([encoder.preprocess(picture) for picture in pictures(count)])


def test_settings_are_settings(module: ModuleType) -> None:
    assert issubclass(module.Settings, Settings)
    assert module.Settings().model == models.BUNDLED
    with pytest.raises(ValidationError):
        module.Settings(modell="bundled")
    with pytest.raises(ValidationError):
        module.Settings(device="gpu")
    assert all(field.description for field in module.Settings.model_fields.values())


def test_embeddings_are_raw_float32_on_the_cpu(encoder: encoders.Encoder) -> None:
    images_BD, texts_CD = encoder.encode_images(batch(encoder, 3)), encoder.encode_texts(TEXTS)
    assert encoder.dim == DIM
    assert images_BD.shape == (3, encoder.dim)
    assert texts_CD.shape == (len(TEXTS), encoder.dim)
    for found in (images_BD, texts_CD):
        assert found.dtype == torch.float32
        assert found.device.type == "cpu"
        assert not found.requires_grad
        assert not found.is_inference()
        assert not torch.allclose(found.norm(dim=-1), torch.ones(len(found)), atol=1e-2)


def test_embeddings_tell_inputs_apart_and_equals_together(encoder: encoders.Encoder) -> None:
    texts_CD = encoder.encode_texts(TEXTS)
    torch.testing.assert_close(texts_CD[0], texts_CD[3], atol=TOLERANCE, rtol=0)
    assert (texts_CD[0] - texts_CD[1]).abs().max() > 0.1
    images_BD = encoder.encode_images(batch(encoder, 2))
    assert (images_BD[0] - images_BD[1]).abs().max() > 0.1


@pytest.mark.parametrize("size", [1, 3, 8])
def test_embeddings_do_not_depend_on_the_batch(encoder: encoders.Encoder, size: int) -> None:
    images_BCHW, texts = batch(encoder, 8), TEXTS * 2
    whole_BD, texts_CD = encoder.encode_images(images_BCHW), encoder.encode_texts(texts)
    parts = [encoder.encode_images(part) for part in torch.split(images_BCHW, size)]
    torch.testing.assert_close(torch.cat(parts), whole_BD, atol=TOLERANCE, rtol=TOLERANCE)
    parts = [encoder.encode_texts(texts[at : at + size]) for at in range(0, len(texts), size)]
    torch.testing.assert_close(torch.cat(parts), texts_CD, atol=TOLERANCE, rtol=TOLERANCE)


def raw_pixels(count: int) -> Tensor:
    """Return pictures as decoders deliver them, all different."""
    values = torch.arange(count * SIDE_PX * SIDE_PX * 3) * 31
    return (values % 256 ^ values // 4099 % 256).byte().view(count, SIDE_PX, SIDE_PX, 3)


def normalised(encoder: encoders.Encoder, pixels_BHWC: Tensor) -> Tensor:
    """Return pixels as the encoder's own preprocessing makes them: they have its size already."""
    pictures = [Image.fromarray(picture.numpy()) for picture in pixels_BHWC]
    return torch.stack([encoder.preprocess(picture) for picture in pictures])


def test_pixels_give_what_preprocessed_images_give(encoder: encoders.Encoder) -> None:
    pixels_BHWC = raw_pixels(5)
    expected_BD = encoder.encode_images(normalised(encoder, pixels_BHWC))
    found_BD = encoder.encode_pixels(pixels_BHWC)()
    torch.testing.assert_close(found_BD, expected_BD, atol=TOLERANCE, rtol=TOLERANCE)
    assert (found_BD[0] - found_BD[1]).abs().max() > 0.01
    assert found_BD.dtype == torch.float32
    assert found_BD.device.type == "cpu"
    assert not found_BD.requires_grad
    assert not found_BD.is_inference()
    assert encoder.encode_pixels(pixels_BHWC[:0])().shape == (0, encoder.dim)


def test_a_batch_may_wait_while_the_next_one_begins(encoder: encoders.Encoder) -> None:
    """Whatever is waited for first; after the wait the pixels belong to the caller again."""
    pixels_BHWC = raw_pixels(6)
    expected_BD = encoder.encode_pixels(pixels_BHWC.clone())()
    first, second = (encoder.encode_pixels(pixels_BHWC[at : at + 3]) for at in (0, 3))
    second_BD = second()
    pixels_BHWC[3:] = 0
    found_BD = torch.cat([first(), second_BD])
    torch.testing.assert_close(found_BD, expected_BD, atol=TOLERANCE, rtol=TOLERANCE)


def test_pixels_stay_as_they_are(encoder: encoders.Encoder) -> None:
    pixels_BHWC = raw_pixels(3)
    before = pixels_BHWC.clone()
    encoder.encode_pixels(pixels_BHWC)()
    assert torch.equal(pixels_BHWC, before)


def test_nothing_in_gives_nothing_out(encoder: encoders.Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, encoder.dim)
    none_BCHW = torch.zeros(0, 3, SIDE_PX, SIDE_PX)
    assert encoder.encode_images(none_BCHW).shape == (0, encoder.dim)


def test_the_encoder_says_what_it_is(encoder: encoders.Encoder, folder: Path) -> None:
    ref = models.encoder(str(folder))
    assert (encoder.model_id, encoder.sha256) == (ref.model_id, ref.sha256)
    assert encoder.preprocess_json == ref.preprocess_json
    assert encoder.preprocess_sha256 == ref.preprocess_sha256
    assert encoder.logit_scale == pytest.approx(torch.tensor(3.0).exp().item())
    assert encoder.logit_bias is None
    assert encoder.device == torch.device("cpu")
    assert encoder.precision == "fp32"
    assert f"clipcap.encoders.{ref.loader}" in MAKERS


def test_the_identity_has_what_changes_the_result_and_nothing_else(
    module: ModuleType, folder: Path, tmp_path: Path
) -> None:
    def identity(name: Path, **values: Any) -> dict[str, Any]:  # noqa: ANN401
        settings = module.Settings(model=str(name), **values)
        found: dict[str, Any] = module.identity(models.encoder(str(name)), settings)
        return found

    base = identity(folder)
    assert identity(folder, device="cpu") == identity(folder, device="cuda") == base
    names = ("auto", "fp32", "bf16", "fp16")
    assert len({str(identity(folder, precision=name)) for name in names}) == len(names)
    assert identity(make(module, tmp_path / "other" / "tiny", seed=1)) != base


def test_a_process_loads_once_whatever_thread_asks(module: ModuleType, settings: Settings) -> None:
    """`lru_cache` under four threads loaded the model four times."""
    module.loads.clear()
    barrier = Barrier(8)

    def ask() -> object:
        barrier.wait()
        return module.load(settings)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        found = {id(one.result()) for one in asked}
    assert len(found) == 1
    assert sum(module.loads.values()) == 1


def test_threads_may_share_an_encoder(encoder: encoders.Encoder) -> None:
    images_BCHW = batch(encoder, 4)
    expected_BD = encoder.encode_images(images_BCHW)
    with ThreadPoolExecutor(4) as pool:
        for found_BD in pool.map(encoder.encode_images, [images_BCHW] * 16):
            torch.testing.assert_close(found_BD, expected_BD, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_gpu_asked_for_by_name_must_be_there(module: ModuleType, folder: Path) -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    names = [missing] if torch.cuda.is_available() else ["cuda", missing]
    for name in names:
        with pytest.raises(DeviceError, match=f"'{name}' is not") as caught:
            module.load(module.Settings(model=str(folder), device=name))
        assert caught.value.exit_code == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_auto_is_the_cpu(module: ModuleType, folder: Path) -> None:
    assert module.load(module.Settings(model=str(folder))).device.type == "cpu"


def test_an_unknown_model_is_refused_by_name(module: ModuleType) -> None:
    with pytest.raises(SettingsError, match="Did you mean bundled"):
        module.load(module.Settings(model="bundeld"))


def test_reading_the_settings_loads_no_model_library(module: ModuleType) -> None:
    """A flow reads them to draw a form, and must be imported in a moment."""
    heavy = "[n for n in ('torch', 'open_clip', 'transformers', 'timm') if n in sys.modules]"
    code = f"import sys, {module.__name__} as m; m.Settings(); print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
