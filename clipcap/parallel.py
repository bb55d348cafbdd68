"""The environment that torchrun makes in, processes that train one captioner together out.

    torchrun --standalone --nproc-per-node 2 -m clipcap train OUT

Each process reads its share of every batch; gradients are added up, so that all take the same step
from the same weights. The first process alone measures and writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
from torch import Tensor, distributed

from clipcap import torchrun
from clipcap.errors import ClipcapError
from clipcap.settings import digest

PATIENCE: Final = timedelta(hours=1)  # the others wait so long while the first one measures
_LONG: Final = timedelta(days=30)  # and so long while it embeds views; torchrun ends who is alone
_DIGITS: Final = 15  # hexadecimal ones, of a digest: they fit into an int64


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a training; one by itself unless torchrun has started more."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process measures and writes."""
        return self.rank == 0

    def share(self, index_B: Tensor) -> Tensor:
        """Return what of a batch this process reads; nothing where there is too little for all."""
        return torch.tensor_split(index_B, self.size)[self.rank]

    def draw_apart(self, seed: int, step: int) -> None:
        """Give each process noise and dropout of its own, the same again after a kill."""
        if self.size > 1:
            torch.manual_seed(_number([seed, step, self.rank]))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each tensor.

        Raises:
            ClipcapError: another process is gone.
        """
        if self.size == 1:
            return
        with _together():
            works = [distributed.all_reduce(one, async_op=True) for one in tensors]
            for work in works:
                if work is not None:
                    work.wait()

    def first(self, numbers: Sequence[float]) -> list[float]:
        """Return what the first process gave.

        Raises:
            ClipcapError: another process is gone.
        """
        if self.size == 1:
            return list(numbers)
        told = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with _together():
            distributed.broadcast(told, 0)
        found: list[float] = told.tolist()
        return found

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process do what is inside before the others, however long it takes.

        Raises:
            ClipcapError: another process is gone.
        """
        if self.size == 1:
            yield
            return
        group: Any = distributed.new_group(backend="gloo", timeout=_LONG)
        told = torch.zeros(1)
        if not self.is_first:
            with _together():
                distributed.broadcast(told, 0, group=group)
        yield
        if self.is_first:
            with _together():
                distributed.broadcast(told, 0, group=group)

    def require_same(self, value: str, what: str) -> None:
        """Refuse to go on where processes differ.

        Raises:
            ClipcapError: they do, or another process is gone.
        """
        if self.size == 1:
            return
        number = _number(value)
        ends = torch.tensor([number, -number], device=self.device)
        with _together():
            distributed.all_reduce(ends, distributed.ReduceOp.MAX)
        if int(ends.sum()):
            raise ClipcapError(
                f"The processes of a training must have the same {what}, but have not. Give all of "
                "them the same settings and files, and let nothing write to the output meanwhile."
            )


def current(device: torch.device) -> Team:
    """Return the team that this process is of."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Team(0, 1, device)
    return Team(distributed.get_rank(), distributed.get_world_size(), device)


def device(wanted: str) -> str:
    """Return the device of this process: each of torchrun's on a machine has a GPU of its own."""
    shared = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return f"cuda:{torchrun.local_rank()}" if shared and torchrun.is_started() else wanted


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Be one of the processes that torchrun has started, or one by itself.

    An error inside ends this process's part; torchrun then ends the others.

    Raises:
        ClipcapError: in place of an error that could pass: the others cannot wait for another try.
    """
    if not torchrun.is_started():
        yield Team(0, 1, device)
        return
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield current(device)
    except ClipcapError as error:
        if not error.retryable:
            raise
        raise ClipcapError(f"{error} Run again: the training goes on.") from error
    finally:
        distributed.destroy_process_group()


def _number(value: object) -> int:
    return int(digest(value)[:_DIGITS], 16)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ClipcapError(
            f"Another process of the training is gone; what it said last says why ({error}). Run "
            "again: the training goes on."
        ) from error
