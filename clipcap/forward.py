"""Inputs of any number in, their embeddings out: as many at a time as the device has memory for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from clipcap.errors import DeviceError

SMALLER: Final = "a smaller model, such as ViT-B-32/laion2b_s34b_b79k"
_LOG = logging.getLogger(__name__)

Begin = Callable[[Tensor], Callable[[], Tensor]]
"""Begins with a batch; what it returns waits for the result: float32 [B, D] on the CPU."""


def normalised(pixels_BHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Return uint8 pixels as ToTensor and Normalize of torchvision would: the same bits.

    Returns:
        float32 [B, C, H, W] on the same device, channels last in memory, as convolutions like it.
    """
    rows, width = pixels_BHWC.flatten(0, 1).flatten(1), pixels_BHWC.shape[2]
    flat = rows.to(torch.float32).div_(255)  # rows as long as the images are wide: vectors do
    flat.sub_(mean_C.repeat(width)).div_(std_C.repeat(width))
    return flat.view(pixels_BHWC.shape).permute(0, 3, 1, 2)


def at_once(forward: Callable[[Tensor], Tensor]) -> Begin:
    """Return what begins by doing everything: for a CPU, or where nobody has other work."""

    def begin(inputs_B: Tensor) -> Callable[[], Tensor]:
        with torch.inference_mode():
            done_BD = forward(inputs_B).float().cpu()
        return lambda: done_BD

    return begin


class Memory:
    """What fits into a device, learnt where it ends: batches are halved, and stay so."""

    def __init__(self, device: torch.device, model_id: str, dim: int) -> None:
        self._device, self._model_id, self._dim = device, model_id, dim
        self._fits = sys.maxsize  # inputs of one forward

    def begin(self, begin: Begin, inputs_B: Tensor) -> Callable[[], Tensor]:
        """Begin with all inputs; return what waits for their embeddings, in order.

        Raises:
            DeviceError: not even one input fits into the device's memory; also at the wait.
        """
        begun: list[tuple[Tensor, Callable[[], Tensor]]] = []
        rest_B = inputs_B
        while len(rest_B):
            part_B = rest_B[: self._fits]
            try:
                begun.append((part_B, begin(part_B)))
            except torch.OutOfMemoryError as error:
                self._halve(len(part_B), error)
                break  # the rest once there is room again
            rest_B = rest_B[len(part_B) :]

        def finish() -> Tensor:
            done = [torch.zeros(0, self._dim)]
            for part_B, wait in begun:
                try:
                    done.append(wait())
                except torch.OutOfMemoryError as error:
                    self._halve(len(part_B), error)
                    done.append(self.run(begin, part_B))
            return torch.cat([*done, self.run(begin, rest_B)])

        return finish

    def run(self, begin: Begin, inputs_B: Tensor) -> Tensor:
        """Return the embeddings of all inputs, one part after the other.

        Raises:
            DeviceError: not even one input fits into the device's memory.
        """
        done = [torch.zeros(0, self._dim)]
        while len(inputs_B):
            part_B = inputs_B[: self._fits]
            try:
                done.append(begin(part_B)())
            except torch.OutOfMemoryError as error:
                self._halve(len(part_B), error)
            else:
                inputs_B = inputs_B[len(part_B) :]
        return torch.cat(done)

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise DeviceError(
                f"{self._device} must have memory for one input of {self._model_id}, but has not. "
                f"Free it, take {SMALLER}, or `--device cpu`."
            ) from error
        if self._fits == sys.maxsize:
            _LOG.warning("%s is out of memory at batch %d: going on by halves", self._device, size)
        self._fits = min(self._fits, size // 2)
        torch.cuda.empty_cache()
