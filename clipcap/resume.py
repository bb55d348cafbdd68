"""The state of a training in, one object that a killed training goes on from out, and back.

The object is written in one atomic step, as safetensors: a reader finds the state of the last
checkpoint or of the one before, never a mixture, and nothing in it can run code. Its metadata say
which data and settings it is of; with others, training starts anew.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from clipcap import storage
from clipcap.errors import NotFoundError
from clipcap.progress import State

log = logging.getLogger(__name__)

FORMAT: Final = "1"
"""Raised by hand when a state means something else."""
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the state of one training lies, and what it must be of."""

    url: str
    fingerprint: str

    def load(self) -> State | None:
        """Return the state; None where there is none of this training that can be read."""
        try:
            data = storage.read(self.url)
        except NotFoundError:
            return None
        try:
            if _metadata(data) != self._told():
                log.warning("%s is of other data or settings: training starts anew", self.url)
                return None
            return load_tensors(data)
        except (SafetensorError, ValueError) as error:
            log.warning("%s cannot be read, training starts anew: %s", self.url, error)
            return None

    def save(self, state: State) -> None:
        """Write a state in the place of the one before."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        storage.write(self.url, save_tensors(tensors, metadata=self._told()))

    def _told(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "format": FORMAT}


def _metadata(data: bytes) -> object:
    """Return what the head of a safetensors object says beside its tensors."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    head = json.loads(data[_LENGTH_BYTES:end])
    return head.get("__metadata__") if isinstance(head, dict) else None
