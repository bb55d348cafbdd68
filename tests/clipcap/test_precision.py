"""Lower number formats: what is lowered, how far it is from float32, and who is let through."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from clipcap import hardware, kept, models, precision
from clipcap.encoders import openclip
from clipcap.errors import SettingsError
from tests.models import SIDE_PX, make_clip, make_tiny_clip, tiny_config

BF16 = torch.bfloat16
PREPROCESS = {"size": [SIDE_PX, SIDE_PX], "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own; no model loaded afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "clipcap" / "precision.json"
    openclip.forget()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny CLIP."""
    return make_tiny_clip(tmp_path / "tiny")


@pytest.fixture
def bf16_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(hardware, "fastest", lambda _: "bf16")


def load(folder: Path, wanted: str) -> openclip.Encoder:
    """Load a folder on the CPU, as a new process would."""
    openclip.forget()
    settings = {"model": str(folder), "device": "cpu", "precision": wanted}
    return openclip.load(openclip.Settings.model_validate(settings))


def tiny_model() -> Any:  # noqa: ANN401 - open_clip has no types
    """Return a random CLIP with four layers, so that errors can add up."""
    config = tiny_config()["model_cfg"]
    config["vision_cfg"] |= {"layers": 4, "width": 64}
    torch.manual_seed(0)
    return open_clip.CLIP(**config).eval()


def counted(monkeypatch: pytest.MonkeyPatch, found: float) -> list[torch.dtype]:
    """Let every comparison find the same figure; return the list of comparisons."""
    asked: list[torch.dtype] = []

    def difference(_model: nn.Module, dtype: torch.dtype, _images: Tensor) -> float:
        asked.append(dtype)
        return found

    monkeypatch.setattr(precision, "difference", difference)
    return asked


def test_weights_are_lowered_and_sums_are_not() -> None:
    tower = precision.lowered(tiny_model().visual, BF16)
    halves = {name for name, value in tower.named_parameters() if value.dtype == BF16}
    layers = {name.partition("resblocks.")[2].partition(".")[2] for name in halves}
    assert layers == {
        *(f"attn.{name}" for name in ("in_proj_weight", "in_proj_bias")),
        *(f"{name}.{end}" for name in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")
          for end in ("weight", "bias")),
    }  # fmt: skip
    seen: list[torch.dtype] = []
    tower.transformer.resblocks[2].register_forward_hook(  # type: ignore[union-attr,index]
        lambda _module, _args, out: seen.append(out.dtype)
    )
    with torch.inference_mode():
        assert tower(torch.rand(2, 3, SIDE_PX, SIDE_PX)).dtype == torch.float32
    assert seen == [torch.float32]


def test_it_is_nearer_than_lowering_everything() -> None:
    model, images_BCHW = tiny_model(), precision.reference_images(PREPROCESS)
    with torch.inference_mode():
        exact_BD = model.encode_image(images_BCHW)
        ours = precision.difference(model, BF16, images_BCHW)
        plain_BD = model.visual.to(BF16)(images_BCHW.to(BF16)).float()
    plain = float((1 - cosine_similarity(plain_BD.double(), exact_BD.double())).max())
    assert 0 < ours < plain / 2
    assert ours < precision.LIMIT


def test_comparing_leaves_the_model_as_it_was() -> None:
    model, images_BCHW = tiny_model(), precision.reference_images(PREPROCESS)
    with torch.inference_mode():
        before_BD = model.encode_image(images_BCHW)
        assert precision.difference(model, torch.float32, images_BCHW) < 1e-9
        precision.difference(model, BF16, images_BCHW)
        assert torch.equal(model.encode_image(images_BCHW), before_BD)


class Broken(nn.Module):
    """Gives what `change` makes of embeddings once its layer is lowered."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE_PX**2, 4))
        self.change = change

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Embed, rightly in float32."""
        found: Tensor = self.visual(images_BCHW)
        return found if found.dtype == torch.float32 else self.change(found)


def refuse(_: Tensor) -> Tensor:
    """Be a layer that does not take the format."""
    raise RuntimeError("not implemented for 'BFloat16'")


@pytest.mark.parametrize(
    ("change", "expected"),
    [(refuse, 2.0), (lambda found: found * float("nan"), 2.0), (lambda found: -found, 2.0)],
)
def test_what_does_not_run_is_as_far_as_can_be(
    change: Callable[[Tensor], Tensor], expected: float
) -> None:
    images_BCHW = precision.reference_images(PREPROCESS)
    found = precision.difference(Broken(change), BF16, images_BCHW)
    assert found == pytest.approx(expected, abs=1e-3)


def test_memory_that_ends_while_comparing_is_no_verdict() -> None:
    def end(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        precision.difference(Broken(end), BF16, precision.reference_images(PREPROCESS))


def test_the_pictures_are_the_same_everywhere_and_differ() -> None:
    images_BCHW = precision.reference_images(PREPROCESS)
    assert images_BCHW.shape == (24, 3, SIDE_PX, SIDE_PX)
    assert len({image.numpy().tobytes() for image in images_BCHW}) == 24
    levels = ((images_BCHW[12:] * 0.5 + 0.5) * 255).round().byte()
    digest = hashlib.sha256(levels.contiguous().numpy().tobytes()).hexdigest()
    assert digest[:16] == "a5ee4b2ddb29d608"
    assert precision.reference_images(PREPROCESS | {"size": [56, 40]}).shape[2:] == (56, 40)


@pytest.mark.usefixtures("bf16_is_fastest")
def test_auto_takes_the_fastest_format_that_is_near(folder: Path) -> None:
    exact, auto = load(folder, "fp32"), load(folder, "auto")
    assert (exact.precision, auto.precision) == ("fp32", "bf16")
    images_BCHW = precision.reference_images(auto.ref.preprocess)
    found_BD, expected_BD = auto.encode_images(images_BCHW), exact.encode_images(images_BCHW)
    assert found_BD.dtype == torch.float32
    off_B = 1 - cosine_similarity(found_BD.double(), expected_BD.double())
    assert 0 < off_B.max() <= precision.LIMIT
    assert torch.equal(auto.encode_texts(["a red cat"]), exact.encode_texts(["a red cat"]))


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_a_near_format_may_be_asked_for(folder: Path, wanted: str) -> None:
    assert load(folder, wanted).precision == wanted


@pytest.mark.usefixtures("bf16_is_fastest")
def test_auto_goes_back_to_fp32_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted(monkeypatch, 2.5e-4)
    with caplog.at_level(logging.INFO, logger="clipcap.precision"):
        auto = load(folder, "auto")
    assert auto.precision == "fp32"
    assert "runs in fp32: in bf16 1 - cosine to fp32 is up to 2.5e-04" in caplog.text
    images_BCHW = precision.reference_images(auto.ref.preprocess)
    expected_BD = load(folder, "fp32").encode_images(images_BCHW)
    assert torch.equal(auto.encode_images(images_BCHW), expected_BD)


@pytest.mark.parametrize(("found", "said"), [(2.5e-4, "2.5e-04"), (2.0, "does not run")])
def test_a_format_asked_for_by_name_must_be_near(
    folder: Path, monkeypatch: pytest.MonkeyPatch, found: float, said: str
) -> None:
    counted(monkeypatch, found)
    with pytest.raises(SettingsError, match=said) as caught:
        load(folder, "bf16")
    assert "Take precision fp32, or auto" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_on_a_device_that_is_fastest_in_fp32_nothing_is_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked = counted(monkeypatch, 0.0)
    monkeypatch.setattr(hardware, "fastest", lambda _: "fp32")
    assert load(folder, "auto").precision == "fp32"
    assert load(folder, "fp32").precision == "fp32"
    assert (asked, cache.exists()) == ([], False)


def test_a_model_is_compared_once_for_each_format_and_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked = counted(monkeypatch, 3e-5)
    for wanted in ("bf16", "bf16", "fp16", "bf16"):
        load(folder, wanted)
    assert asked == [BF16, torch.float16]
    assert set(json.loads(cache.read_text()).values()) == {3e-5}
    make_tiny_clip(folder, seed=1)  # other weights
    load(folder, "bf16")
    monkeypatch.setattr(hardware, "name", lambda _: "another CPU")
    load(folder, "bf16")
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    load(folder, "bf16")
    monkeypatch.setattr(precision, "VERSION", 99)
    load(folder, "bf16")
    assert asked[2:] == [BF16] * 4
    load(folder, "bf16")
    assert len(asked) == 6


def test_a_kept_verdict_is_kept_in_both_directions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch, 2.5e-4)
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"2\.5e-04"):
            load(folder, "bf16")
    assert len(asked) == 1


@pytest.mark.slow
def test_a_vit_b_32_is_well_within_the_limit(tmp_path: Path) -> None:
    model = make_clip(tmp_path / "vit", "ViT-B-32")
    ref = models.encoder(str(tmp_path / "vit"))
    images_BCHW = precision.reference_images(ref.preprocess)[::4]
    assert 0 < precision.difference(model, BF16, images_BCHW) < precision.LIMIT / 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f", "fp32"),
        ("flags\t\t: fpu avx512f avx512_bf16 fsrm", "bf16"),
        ("flags\t\t: fpu amx_tile amx_bf16", "bf16"),
        ("nothing", "fp32"),
    ],
)
def test_a_cpu_without_bf16_instructions_is_fastest_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    """Emulated it is slower, so it is not taken however near it is."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: Made Up\n{flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(hardware, "_CPUINFO", info)
    hardware._processor.cache_clear()
    try:
        assert hardware.fastest(torch.device("cpu")) == expected
        assert hardware.name(torch.device("cpu")).startswith("Made Up ")
    finally:
        hardware._processor.cache_clear()


def test_a_machine_that_does_not_say_its_cpu_is_fastest_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "missing")
    hardware._processor.cache_clear()
    try:
        assert hardware.fastest(torch.device("cpu")) == "fp32"
    finally:
        hardware._processor.cache_clear()


def test_an_answer_is_kept_and_replaced(cache: Path) -> None:
    assert kept.find("precision", "a") is None
    kept.keep("precision", "a", 1.5)
    kept.keep("precision", "b", 2)
    kept.keep("precision", "a", 3)
    assert (kept.find("precision", "a"), kept.find("precision", "b")) == (3, 2)
    assert list(json.loads(cache.read_text())) == ["b", "a"]  # the oldest go first
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "x"}', '{"a": NaN}', '{"a": true}', "\0"])
def test_a_broken_file_is_as_none(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    assert kept.find("precision", "a") is None
    kept.keep("precision", "a", 1.0)
    assert kept.find("precision", "a") == 1.0


def test_a_place_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    kept.keep("precision", "a", 1.0)
    assert kept.find("precision", "a") is None


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    kept.keep("precision", "a", 1.0)
    assert kept.find("precision", "a") is None


def test_the_file_does_not_grow_without_end(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(json.dumps({f"old {n}": n for n in range(700)}))
    kept.keep("precision", "new", 1.0)
    found = json.loads(cache.read_text())
    assert len(found) == 500
    assert ("old 0" in found, "old 699" in found, "new" in found) == (False, True, True)
