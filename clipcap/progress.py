"""The steps of a training in; its learning rate, its curve and the best weights so far out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

import torch
from torch import Tensor

from clipcap import alive
from clipcap.captioner import Captioner

_STEPS: Final = logging.getLogger("clipcap.steps")
State = dict[str, Tensor]
"""Everything that a training needs to go on, by name."""
_NONE: Final = math.nan
_POINTS: Final = 200  # of the losses that are told


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands after a batch."""

    step: int
    steps: int
    loss: float
    """Mean cross entropy per token of this batch."""
    learning_rate: float
    validation_loss: float | None = None
    """Mean cross entropy per token of the held-out images, when it was just measured."""
    validation_score: float | None = None
    """What `Hooks.score` said of the held-out images, when it was just asked."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called while a training runs."""

    on_progress: Callable[[Progress], object] | None = None
    """After every batch."""
    load: Callable[[], State | None] | None = None
    """Before the first batch: the state of a training that was killed, if there is one."""
    save: Callable[[State], object] | None = None
    """After every validation and every `save_steps` batches; not after the last one."""
    save_steps: int = 500
    score: Callable[[Captioner, Sequence[int]], float] | None = None
    """At each validation, with the rows held out: the higher the better; takes the loss's place."""


NO_HOOKS: Final = Hooks()


def learning_rate_share(step: int, steps: int, warmup: int) -> float:
    """Return the share of the highest learning rate for the batch after `step` others.

    As `get_linear_schedule_with_warmup` of transformers, which the original uses; without warm-up
    the first batch has the full rate.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def due(step: int, steps: int, times: int) -> bool:
    """Tell whether one of `times` evenly spread measurements falls on this step."""
    return step * times // steps > (step - 1) * times // steps


def to_tensor(curve: Iterable[Progress]) -> Tensor:
    """Return a curve as numbers, four a step."""
    rows = [
        [
            one.loss,
            one.learning_rate,
            _NONE if one.validation_loss is None else one.validation_loss,
            _NONE if one.validation_score is None else one.validation_score,
        ]
        for one in curve
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def from_tensor(numbers: Tensor, steps: int) -> list[Progress]:
    """Return the curve that `to_tensor` was given."""
    return [
        Progress(n + 1, steps, loss, rate, *(None if math.isnan(x) else x for x in measured))
        for n, (loss, rate, *measured) in enumerate(numbers.tolist())
    ]


def line(now: Progress, *, done: int, seconds: float) -> str:
    """Return where a training stands, after `done` steps in so many seconds, for a person."""
    left = seconds / done * (now.steps - now.step)
    held = "" if now.validation_loss is None else f", held out {now.validation_loss:.3f}"
    score = "" if now.validation_score is None else f", score {now.validation_score:.3f}"
    return (
        f"step {now.step:,} of {now.steps:,}, loss {now.loss:.3f}{held}{score}, {left:.0f} s left"
    )


def tell(now: Progress) -> None:
    """Tell who draws a bar where a training stands: `clipcap.steps`, below what logs show."""
    alive.beat()
    _STEPS.debug("%s", now)


def told(curve: Sequence[Progress]) -> dict[str, Any]:
    """Return a curve as a card has it; `losses` are means over `loss_every` steps."""
    every = math.ceil(len(curve) / _POINTS) or 1
    losses = [now.loss for now in curve]
    return {
        "validation": [
            {"step": now.step, "loss": now.validation_loss, "score": now.validation_score}
            for now in curve
            if now.validation_loss is not None
        ],
        "steps": len(losses),
        "loss_every": every,
        "losses": [fmean(losses[at : at + every]) for at in range(0, len(losses), every)],
    }


class Best:
    """The weights with the best measurement so far, and how many came after it."""

    def __init__(self) -> None:
        self.step = 0
        self.later = 0
        self._lowest = math.inf
        self._weights: list[Tensor] = []

    def offer(self, progress: Progress, weights: Iterable[Tensor], *, keep: bool) -> None:
        """Take the weights of a measurement if it is the best; a NaN never is."""
        measured = progress.validation_loss
        if progress.validation_score is not None:
            measured = -progress.validation_score
        if measured is None:
            return
        if not measured < self._lowest:
            self.later += 1
            return
        self.step, self.later, self._lowest = progress.step, 0, measured
        self._weights = [weight.detach().cpu().clone() for weight in weights] if keep else []

    @torch.no_grad()
    def put_back(self, weights: Iterable[Tensor]) -> None:
        """Copy the best weights over those of the last step; nothing where none were kept."""
        if self._weights:
            for weight, best in zip(weights, self._weights, strict=True):
                weight.copy_(best)

    def state(self) -> State:
        """Return what `restore` takes."""
        counted = torch.tensor([self.step, self.later, self._lowest], dtype=torch.float64)
        kept = {f"best.{n}": weight for n, weight in enumerate(self._weights)}
        return {"best": counted, **kept}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        step, later, self._lowest = state["best"].tolist()
        self.step, self.later = int(step), int(later)
        count = sum(name.startswith("best.") for name in state)
        self._weights = [state[f"best.{n}"] for n in range(count)]
