"""A captioner in, one that computes in another number format and learns in float32 out.

Weights in bfloat16 alone would lose most steps to rounding: a step is smaller than the distance of
two numbers. So the optimizer moves float32 weights, the captioner's own, and each step is copied
into the weights that compute. Autocast, which casts all weights anew for each reading, takes a
tenth longer.
"""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import Tensor, nn

from clipcap import hardware
from clipcap.captioner import Captioner
from clipcap.progress import State
from clipcap.training import TrainSettings

ADAM_EPS: Final = 1e-6  # the original's (transformers' AdamW of its time), torch's default is 1e-8


class Masters:
    """The weights that learn, and the captioner that is read with."""

    def __init__(self, captioner: Captioner, settings: TrainSettings) -> None:
        """Freeze what does not learn; a captioner that computes in float32 is read with itself."""
        if settings.language_model != "lora":  # then `clipcap.lora` has said what learns
            captioner.language_model.requires_grad_(settings.language_model == "finetune")
        captioner.mapper.requires_grad_()
        self.captioner = captioner
        self.dtype = _dtype(captioner, settings)
        self.reading = captioner if self.dtype == torch.float32 else _lowered(captioner, self.dtype)
        self.weights = _learning(captioner)
        self._read = _learning(self.reading)
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=settings.learning_rate,
            eps=ADAM_EPS,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def learn(self) -> None:
        """Turn dropout on, but only in what learns."""
        self.reading.eval()
        for module in (self.reading.mapper, self.reading.language_model):
            module.train(any(parameter.requires_grad for parameter in module.parameters()))

    def gather(self) -> None:
        """Add the gradients of what was read with to those of the weights that learn."""
        if self.reading is self.captioner:
            return
        for weight, read in zip(self.weights, self._read, strict=True):
            if read.grad is None:
                continue
            if weight.grad is None:
                weight.grad = read.grad.to(weight.dtype)
            else:
                weight.grad.add_(read.grad)
            read.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the gradient of every weight that learns, zeros where none was found."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return [weight.grad for weight in self.weights if weight.grad is not None]

    def step(self, clip_norm: float | None) -> None:
        """Move the weights along their gradients, and forget those."""
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self.weights, clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the weights that learn to where they are read with."""
        if self.reading is not self.captioner:
            torch._foreach_copy_(self._read, self.weights)

    def state(self) -> State:
        """Return the weights that learn and what the optimizer knows of them."""
        known = self.optimizer.state_dict()["state"]
        return {f"weights.{n}": weight for n, weight in enumerate(self.weights)} | {
            f"optimizer.{n}.{name}": value for n in known for name, value in known[n].items()
        }

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go on from a state."""
        for n, weight in enumerate(self.weights):
            weight.copy_(state[f"weights.{n}"])
        known: dict[int, State] = {}
        for name, value in state.items():
            part, _, place = name.partition(".")
            if part == "optimizer":
                number, _, field = place.partition(".")
                known.setdefault(int(number), {})[field] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": known, "param_groups": groups})
        self.publish()


def _dtype(captioner: Captioner, settings: TrainSettings) -> torch.dtype:
    wanted = settings.precision
    if wanted == "auto":
        wanted = "bf16" if hardware.fastest(captioner.device) == "bf16" else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def _lowered(captioner: Captioner, dtype: torch.dtype) -> Captioner:
    mapper, language_model = map(copy.deepcopy, (captioner.mapper, captioner.language_model))
    for module in (mapper, language_model):
        for parameter in module.parameters():  # buffers stay: rotary frequencies need their digits
            parameter.data = parameter.data.to(dtype)
    return Captioner(captioner.card, mapper, language_model, captioner.tokenizer)


def _learning(captioner: Captioner) -> list[Tensor]:
    modules: tuple[nn.Module, ...] = (captioner.mapper, captioner.language_model)
    return [p for module in modules for p in module.parameters() if p.requires_grad]
