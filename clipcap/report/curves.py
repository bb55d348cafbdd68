"""Numbers over steps, or over anything else, in; where the lines of a drawing go, out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 720
HEIGHT: Final = 260
LEFT: Final = 52
RIGHT: Final = 14
TOP: Final = 12
BOTTOM: Final = 30
_TICKS: Final = 5
_NICE: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_FEW: Final = 40
"""Points that get a dot each; more of them are a line alone."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: `path` is the `points` of a polyline, `dots` its places if they are few."""

    name: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing, WIDTH by HEIGHT; ticks are a place and its text, marks a place and its name."""

    title: str
    told: str
    """What it shows, for who cannot see it."""
    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]


def chart(
    title: str,
    series: Mapping[str, Points],
    marks: Mapping[str, int | None],
    *,
    over: str = "steps",
) -> Chart:
    """Lay out some curves over steps; a number that is not finite leaves a gap no one sees.

    Args:
        title: what is drawn.
        series: (step, value) in order, by the name of the curve; at least one point in all.
        marks: steps to be marked, by name; None is left out.
        over: what lies across, for who cannot see it.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()
    }
    values = [y for points in kept.values() for _, y in points]
    last = max(x for points in kept.values() for x, _ in points)
    ticks_up = list(_ticks(min(values), max(values)))
    low, high = min(*values, ticks_up[0]), max(*values, ticks_up[-1])

    def at_x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1), 1)

    def at_y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    lines = []
    for name, points in kept.items():
        placed = tuple((at_x(x), at_y(y)) for x, y in points)
        path = " ".join(f"{x:g},{y:g}" for x, y in placed)
        lines.append(Line(name, path, placed if len(placed) <= _FEW else ()))
    return Chart(
        title=title,
        told=_told(f"{title} over {int(last):,} {over}", kept),
        lines=tuple(lines),
        across=tuple((at_x(x), f"{x:,.0f}") for x in _ticks(0, last) if x <= last),
        up=tuple((at_y(y), f"{y:.4g}") for y in ticks_up if low <= y <= high),
        marks=tuple((at_x(step), name) for name, step in marks.items() if step is not None),
    )


def _told(title: str, kept: Mapping[str, Points]) -> str:
    parts = [
        f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for name, points in kept.items()
        if points
    ]
    return f"{title}: {', '.join(parts)}"


def _ticks(low: float, high: float) -> Iterator[float]:
    """Yield round numbers from below `low` to above `high`, about five of them."""
    rough = (high - low) / _TICKS or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in _NICE if power * nice >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    for n in range(first, max(last, first + 1) + 1):
        yield n * step
