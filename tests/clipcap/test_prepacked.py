"""Packed layers give what plain ones do, or are not packed at all."""

from __future__ import annotations

import copy
import platform
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from clipcap import prepacked
from clipcap.errors import SettingsError
from clipcap.prepacked import Packed, Packed8
from tests.captioners import embeddings, tiny_captioner

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"},
    reason="packed layers are for x86 processors",
)


class Perceptron(nn.Module):
    """As timm has it; `is_gated` as its GLU, where a half of the first layer gates the other."""

    def __init__(self, act: nn.Module, *, is_gated: bool = False) -> None:
        super().__init__()
        self.is_gated = is_gated
        self.fc1, self.act, self.fc2 = nn.Linear(8, 32), act, nn.Linear(16 if is_gated else 32, 8)

    def forward(self, given: Tensor) -> Tensor:
        found: Tensor = self.fc1(given)
        if self.is_gated:
            gate, found = found.chunk(2, -1)
            found = self.act(gate) * found
        else:
            found = self.act(found)
        return self.fc2(found)  # type: ignore[no-any-return]


class Pool(nn.Module):
    """As open_clip's attention pooling: it asks its layers for their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.v_proj, self.c_proj = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, given: Tensor) -> Tensor:
        return given @ self.q_proj.weight @ self.k_proj.weight @ self.v_proj.weight


def tower(act: nn.Module) -> nn.Module:
    """Return a perceptron as open_clip has it."""
    layers = [("c_fc", nn.Linear(8, 32)), ("gelu", act), ("c_proj", nn.Linear(32, 8, bias=False))]
    return nn.Sequential(OrderedDict(layers))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model", "packed"),
    [
        (tower(nn.GELU()), 2),
        (tower(nn.GELU(approximate="tanh")), 2),
        (tower(nn.ReLU()), 2),
        (Perceptron(nn.GELU()), 2),
        (Perceptron(nn.GELU(), is_gated=True), 2),
        (Perceptron(nn.SiLU()), 2),
        (Pool(), 0),
        (nn.Linear(8, 8), 0),
        (nn.MultiheadAttention(8, 2), 0),
    ],
    ids=["exact", "tanh", "relu", "timm", "gated", "silu", "asks", "alone", "attention"],
)
def test_a_packed_model_gives_what_it_gave(
    model: nn.Module, packed: int, dtype: torch.dtype
) -> None:
    model = copy.deepcopy(model).to(dtype).eval()
    given = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    inputs = (given,) * (3 if isinstance(model, nn.MultiheadAttention) else 1)
    before = model(*inputs)
    assert prepacked.pack(model) == packed
    found, wanted = (one[0] if isinstance(one, tuple) else one for one in (model(*inputs), before))
    assert found.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 2e-2
    assert float((found - wanted).abs().max()) <= limit * max(1.0, float(wanted.abs().max()))


def test_a_gelu_is_taken_along_once() -> None:
    model = tower(nn.GELU())
    prepacked.pack(model)
    assert isinstance(model.gelu, nn.Identity)
    assert prepacked.pack(model) == 0


def test_a_language_model_speaks_as_before() -> None:
    captioner = tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)
    inputs = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = captioner.language_model(inputs_embeds=inputs).logits
        captioner.for_captions("fp32")
        found = captioner.language_model(inputs_embeds=inputs).logits
    layers = [layer for layer in captioner.language_model.modules() if isinstance(layer, Packed)]
    assert len(layers) == 9, "four in each of two blocks, and the head"
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("gelu", ["", "none", "tanh"])
@pytest.mark.parametrize("is_biased", [True, False])
def test_eight_bits_round_each_row_by_itself(gelu: str, *, is_biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    size_I = torch.rand(48, generator=generator)  # rows in memory are columns here, as GPT-2's
    weight_OI = (torch.randn(48, 32, generator=generator) * size_I[:, None]).t().bfloat16()
    bias_O = torch.randn(32, generator=generator).bfloat16() if is_biased else None
    given = torch.randn(4, 5, 48, generator=generator).bfloat16()
    given[1] *= 100
    layer = Packed8(weight_OI, bias_O, gelu)
    wanted = nn.functional.linear(
        given.float(), weight_OI.float(), None if bias_O is None else bias_O.float()
    )
    if gelu:
        wanted = nn.functional.gelu(wanted, approximate=gelu)
    found = layer(given)
    assert found.dtype == torch.bfloat16
    off = (found.float() - wanted).abs().amax(-1) / wanted.abs().amax(-1)
    assert 0 < float(off.max()) < 0.03
    alone = torch.cat([layer(row[None, None]) for row in given.flatten(0, 1)])
    torch.testing.assert_close(alone.flatten(0, 1), found.flatten(0, 1), rtol=0.01, atol=1e-6)


def test_in_eight_bits_a_language_model_writes_nearly_the_same() -> None:
    plain, fast = (tiny_captioner(0, sharpness=5.0, stop_bonus=2.0) for _ in range(2))
    fast.for_captions("int8")
    layers = [layer for layer in fast.language_model.modules() if isinstance(layer, Packed8)]
    assert len(layers) == 9
    found, wanted = (one.caption(10 * embeddings(100)) for one in (fast, plain))
    same = [a[0].token_ids == b[0].token_ids for a, b in zip(found, wanted, strict=True)]
    assert sum(same) / len(same) > 0.8


def test_eight_bits_are_refused_where_they_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "works", lambda _dtype: False)
    with pytest.raises(SettingsError, match=r'`precision: "int8"` is for x86 processors'):
        tiny_captioner().for_captions("int8")


def test_whoever_computes_with_its_weights_gets_no_numbers() -> None:
    layer = Packed(torch.randn(4, 8), None)
    assert (layer.weight.shape, layer.weight.dtype) == ((4, 8), torch.float32)
    assert (torch.ones(2, 8) @ layer.weight.t()).isnan().all()


def test_where_packing_does_not_work_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise AttributeError("no such operator")

    monkeypatch.setattr(prepacked, "_operators", missing)
    prepacked.works.cache_clear()
    model = tower(nn.GELU())
    try:
        assert prepacked.pack(model) == 0
    finally:
        monkeypatch.undo()
        prepacked.works.cache_clear()
    assert isinstance(model.gelu, nn.GELU)
