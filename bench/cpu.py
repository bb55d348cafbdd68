"""A process in, CPU seconds of it and of everything that it has started out (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def seconds(pid: int | None = None) -> float:
    """Return user and system time of a process, its living children and those it waited for."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        own = int(folder.name)
        parents[own] = int(fields[1])
        ticks[own] = sum(map(int, fields[11:15]))
    wanted = {pid or os.getpid()}
    while found := {child for child, parent in parents.items() if parent in wanted} - wanted:
        wanted |= found
    return sum(ticks.get(one, 0) for one in wanted) / _TICKS
