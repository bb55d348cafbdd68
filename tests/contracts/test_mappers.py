"""What every file in `clipcap/mappers` promises, new ones included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clipcap import registry

DIM_CLIP, PREFIX_LENGTH, DIM_LM = 24, 5, 32

pytestmark = pytest.mark.parametrize("name", registry.names("clipcap.mappers"))


def make(name: str, seed: int = 0, *, prefix_length: int = PREFIX_LENGTH) -> nn.Module:
    module = registry.load("clipcap.mappers", name)
    torch.manual_seed(seed)
    mapper: nn.Module = module.Mapper(module.Settings(), DIM_CLIP, prefix_length, DIM_LM)
    return mapper.eval()


def embeddings(count: int) -> Tensor:
    return torch.randn(count, DIM_CLIP, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("prefix_length", [1, 5, 12])
def test_an_embedding_becomes_p_vectors_as_wide_as_the_language_model(
    name: str, count: int, prefix_length: int
) -> None:
    prefix_BPE = make(name, prefix_length=prefix_length)(embeddings(count))
    assert prefix_BPE.shape == (count, prefix_length, DIM_LM)
    assert prefix_BPE.dtype == torch.float32


def test_the_rows_of_a_batch_do_not_mix(name: str) -> None:
    mapper = make(name)
    whole = mapper(embeddings(6))
    changed = embeddings(6)
    changed[3] = 7.0
    torch.testing.assert_close(mapper(changed)[[0, 1, 2, 4, 5]], whole[[0, 1, 2, 4, 5]])
    torch.testing.assert_close(mapper(embeddings(6)[2:3]), whole[2:3])
    assert not torch.allclose(mapper(changed)[3], whole[3])


def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, again, other = (make(name, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_state_dict_carries_the_whole_mapper(name: str) -> None:
    mapper, other = make(name, 1), make(name, 2)
    other.load_state_dict(mapper.state_dict())
    assert torch.equal(mapper(embeddings(4)), other(embeddings(4)))


def test_a_gradient_reaches_every_parameter(name: str) -> None:
    mapper = make(name).train()
    mapper(embeddings(4)).square().sum().backward()
    for key, parameter in mapper.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_bfloat16_is_close_to_float32(name: str) -> None:
    mapper = make(name)
    exact = mapper(embeddings(4))
    rough = mapper.to(torch.bfloat16)(embeddings(4).to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
