"""A process in, a name of this very life of it out; such a name in, whether that life is over."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_OVER: Final = frozenset("ZXx")  # waiting for its parent to look, or gone


def life() -> str:
    """Return a name that no other process of any machine has, in this boot or another.

    Empty where the system does not tell (no `/proc`).
    """
    with suppress(OSError, IndexError):
        return f"{_machine()}/{os.getpid()}/{_state(os.getpid())[1]}"
    return ""


def is_over(life: str) -> bool:
    """Tell whether a life has ended for certain; of one on another machine that is not known."""
    machine, _, rest = life.partition("/")
    pid, _, began = rest.partition("/")
    try:
        if not pid.isdecimal() or machine != _machine():
            return False
        state, now = _state(int(pid))
    except FileNotFoundError:
        return (_PROC / "self").exists()
    except (OSError, IndexError):
        return False
    return state in _OVER or now != began


def _machine() -> str:
    """Return the boot of this machine and the container in which process numbers mean something."""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{(_PROC / 'self/ns/pid').readlink()}"


def _state(pid: int) -> tuple[str, str]:
    """Return in which state a process is, and when it began, in ticks since the boot."""
    after_name = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return after_name[0], after_name[19]
