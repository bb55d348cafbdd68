"""The GPU that is not there refuses what a GPU refuses, and its graphs do what theirs do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import pretended

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "both places": (lambda away, here: away + here, "on one device"),
    "a matrix from elsewhere": (lambda away, here: away @ here, "on one device"),
    "weights that stayed": (lambda away, _: nn.Linear(2, 2)(away), "on one device"),
    "an index on the GPU": (lambda away, here: here[away.long()], "on the CPU"),
    "values from elsewhere": (
        lambda away, here: away.index_put_((torch.tensor([0]),), here[0]),
        "on one device",
    ),
    "numpy": (lambda away, _: away.numpy(), "to numpy"),
    "an array": (lambda away, _: np.asarray(away), "to numpy"),
}
WAITS: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda away: away.sum().item(),
    "a list": lambda away: away.tolist(),
    "a copy": lambda away: away.cpu(),
    "a size that numbers tell": lambda away: away[away > 0],
    "what comes from memory": lambda away: away + torch.ones(2, 2).to("cuda"),
}


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    """All here is on it."""
    with pretended.gpu():
        yield


@pytest.mark.parametrize("name", REFUSED)
def test_what_fails_on_a_gpu_fails(name: str) -> None:
    act, said = REFUSED[name]
    with pytest.raises((RuntimeError, TypeError), match=said):
        act(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_what_works_on_a_gpu_works() -> None:
    away = torch.ones(2, 2, device="cuda")
    assert away.device == torch.device("cuda:0")
    assert (away * torch.tensor(2.0)).tolist() == [[2, 2], [2, 2]], "single numbers may be here"
    assert away[torch.tensor([1])].tolist() == [[1, 1]]
    here = torch.zeros(2, 2)
    here.copy_(away)
    assert type(here) is Tensor
    assert type(away.to("cpu")) is Tensor
    layer = nn.Linear(2, 1).to("cuda")
    layer(away).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[2, 2]]


def test_a_graph_is_called_again_on_the_same_memory() -> None:
    given, held = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = given * 2
        held[:1] += doubled[:1]
    given.fill_(5)
    graph.replay()
    assert doubled.tolist() == [10, 10]
    assert held.tolist() == [12, 0]


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_device_is_in_no_graph(name: str) -> None:
    away = torch.ones(2, 2, device="cuda")
    with (
        torch.cuda.graph(torch.cuda.CUDAGraph()),
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
    ):
        WAITS[name](away)
    assert WAITS[name](away) is not None
