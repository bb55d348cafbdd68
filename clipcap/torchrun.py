"""The environment in, which of torchrun's processes this is out; needs no torch."""

from __future__ import annotations

import os


def is_started() -> bool:
    """Tell whether torchrun has started this process, and others beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Return the number of this process among all; 0 without torchrun."""
    return int(os.environ["RANK"]) if is_started() else 0


def local_rank() -> int:
    """Return its number on this machine."""
    return int(os.environ["LOCAL_RANK"]) if is_started() else 0
