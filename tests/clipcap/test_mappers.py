"""Mappers beside the plain arithmetic of the original's description."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from clipcap.errors import SettingsError
from clipcap.mappers import linear, mlp, transformer

Weights = dict[str, Tensor]


def embeddings(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(3))


def shaken(mapper: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """Give norms and biases numbers too: zeros and ones would hide what is left out."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in mapper.parameters():
            if parameter.ndim == 1:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return mapper.eval()


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[
        f"{name}.bias"
    ]


def attended(x_BTE: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    rows, tokens, dim = x_BTE.shape
    width = dim // heads
    query = (x_BTE @ weights[f"{name}.to_queries.weight"].T).reshape(rows, tokens, heads, width)
    both = x_BTE @ weights[f"{name}.to_keys_values.weight"].T
    key, value = both.reshape(rows, tokens, 2, heads, width).unbind(2)
    weight = (torch.einsum("bnhd,bmhd->bnmh", query, key) * width**-0.5).softmax(2)
    found = torch.einsum("bnmh,bmhd->bnhd", weight, value).reshape(rows, tokens, dim)
    return found @ weights[f"{name}.project.weight"].T + weights[f"{name}.project.bias"]


def plain(weights: Weights, embedding_BD: Tensor, clip_length: int, heads: int) -> Tensor:
    """The mapper as the paper and the original's source describe it."""
    constant_PE = weights["prefix_const"]
    rows, dim = len(embedding_BD), constant_PE.shape[1]
    clip = embedding_BD @ weights["linear.weight"].T + weights["linear.bias"]
    clip = clip.reshape(rows, clip_length, dim)
    x = torch.cat((clip, constant_PE[None].repeat(rows, 1, 1)), 1)
    layers = len({name.split(".")[2] for name in weights if name.startswith("transformer.layers.")})
    for layer in range(layers):
        at = f"transformer.layers.{layer}"
        x = x + attended(normed(x, weights, f"{at}.norm1"), weights, f"{at}.attn", heads)
        y = normed(x, weights, f"{at}.norm2")
        y = (y @ weights[f"{at}.mlp.fc1.weight"].T + weights[f"{at}.mlp.fc1.bias"]).clamp(min=0)
        x = x + y @ weights[f"{at}.mlp.fc2.weight"].T + weights[f"{at}.mlp.fc2.bias"]
    return x[:, clip_length:]


@pytest.mark.parametrize(
    ("dim_clip", "dim_lm", "prefix_length", "clip_length", "heads", "layers", "ratio"),
    [
        (16, 32, 4, 4, 8, 8, 2.0),
        (7, 24, 3, 11, 3, 2, 2.0),
        (40, 64, 10, 1, 8, 3, 4.0),
        (5, 18, 1, 6, 1, 1, 0.5),
        (640, 96, 12, 12, 12, 4, 2.0),
    ],
)
def test_the_transformer_gives_what_its_description_gives(
    dim_clip: int,
    dim_lm: int,
    prefix_length: int,
    clip_length: int,
    heads: int,
    layers: int,
    ratio: float,
) -> None:
    torch.manual_seed(1)
    settings = transformer.Settings(
        clip_length=clip_length, heads=heads, layers=layers, mlp_ratio=ratio
    )
    mapper = shaken(transformer.Mapper(settings, dim_clip, prefix_length, dim_lm), 0.3).double()
    embedding_BD = embeddings(3, dim_clip).double()
    with torch.inference_mode():
        wanted = plain(mapper.state_dict(), embedding_BD, clip_length, heads)
        torch.testing.assert_close(mapper(embedding_BD), wanted, rtol=1e-6, atol=1e-6)
        rough, exact = mapper.float()(embedding_BD.float()), wanted.float()
    assert (rough - exact).abs().max() <= 1e-6 * exact.abs().max() * layers


def test_the_transformer_has_the_names_of_the_original() -> None:
    mapper = transformer.Mapper(transformer.Settings(layers=2, clip_length=3), 16, 4, 32)
    shapes = {name: tuple(weight.shape) for name, weight in mapper.state_dict().items()}
    layer = {
        "norm1.weight": (32,),
        "norm1.bias": (32,),
        "attn.to_queries.weight": (32, 32),
        "attn.to_keys_values.weight": (64, 32),
        "attn.project.weight": (32, 32),
        "attn.project.bias": (32,),
        "norm2.weight": (32,),
        "norm2.bias": (32,),
        "mlp.fc1.weight": (64, 32),
        "mlp.fc1.bias": (64,),
        "mlp.fc2.weight": (32, 64),
        "mlp.fc2.bias": (32,),
    }
    assert shapes == {
        "linear.weight": (96, 16),
        "linear.bias": (96,),
        "prefix_const": (4, 32),
        **{
            f"transformer.layers.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()
        },
    }


def test_the_defaults_are_the_published_size() -> None:
    """P = K = 40 with RN50x4: 57.5 million parameters; the MLP: 31,468,800."""
    with torch.device("meta"):
        published = transformer.Mapper(transformer.Settings(clip_length=40), 640, 40, 768)
        first = mlp.Mapper(mlp.Settings(), 512, 10, 768)
    assert sum(p.numel() for p in published.parameters()) == 57_520_128
    assert sum(p.numel() for p in first.parameters()) == 31_468_800


def test_heads_that_cannot_share_the_width_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"`heads` must divide .* width 20, but is 8 instead"):
        transformer.Mapper(transformer.Settings(), 16, 4, 20)


def test_the_mlp_gives_what_its_description_gives() -> None:
    torch.manual_seed(1)
    mapper = mlp.Mapper(mlp.Settings(), 7, 3, 9).eval()
    weights, x = mapper.state_dict(), embeddings(4, 7)
    assert list(weights) == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]
    assert weights["model.0.weight"].shape == (13, 7)
    hidden = (x @ weights["model.0.weight"].T + weights["model.0.bias"]).tanh()
    wanted = (hidden @ weights["model.2.weight"].T + weights["model.2.bias"]).reshape(4, 3, 9)
    torch.testing.assert_close(mapper(x), wanted, rtol=1e-6, atol=1e-6)


def test_the_linear_mapper_is_one_layer() -> None:
    torch.manual_seed(1)
    mapper = linear.Mapper(linear.Settings(), 7, 3, 9)
    weights, x = mapper.state_dict(), embeddings(4, 7)
    assert list(weights) == ["weight", "bias"]
    wanted = (x @ weights["weight"].T + weights["bias"]).reshape(4, 3, 9)
    torch.testing.assert_close(mapper(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("module", [mlp, transformer])
def test_dropout_acts_only_while_the_mapper_learns_and_renames_nothing(
    module: ModuleType,
) -> None:
    torch.manual_seed(2)
    without = module.Mapper(module.Settings(), 16, 4, 32)
    torch.manual_seed(2)
    mapper = module.Mapper(module.Settings(dropout=0.5), 16, 4, 32)
    x = embeddings(4, 16)
    assert list(mapper.state_dict()) == list(without.state_dict())
    assert torch.equal(mapper.eval()(x), without(x))
    mapper.train()
    assert not torch.allclose(mapper(x), mapper(x))
    assert torch.equal(without.train()(x), without(x))


def test_dropout_acts_on_attention_and_on_both_sides_of_a_hidden_layer() -> None:
    torch.manual_seed(4)
    mapper = transformer.Mapper(transformer.Settings(dropout=0.5, layers=1), 16, 4, 32).train()
    layer = mapper.get_submodule("transformer.layers.0")
    seen: dict[str, list[Tensor]] = {"attn.project": [], "mlp.fc2": []}
    for name, inputs in seen.items():
        layer.get_submodule(name).register_forward_pre_hook(
            lambda _, given, inputs=inputs: inputs.append(given[0])
        )
    x_BTE = torch.randn(8, 14, 32)
    for _ in range(2):
        layer.get_submodule("attn")(x_BTE)
    first, second = seen["attn.project"]
    assert not torch.allclose(first, second)
    out_BTE = layer.get_submodule("mlp")(x_BTE)
    assert 0.7 < (seen["mlp.fc2"][0] == 0).float().mean() < 0.8  # half of them by the ReLU
    assert 0.45 < (out_BTE == 0).float().mean() < 0.55
