"""A grid and the size of a picture in, the windows through which its parts are looked at out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

PATTERN: Final = r"^([1-9]|1[0-6])(x([1-9]|1[0-6]))?$"
"""Of the text of a grid: `3` is three rows of three, `2x5` two rows of five; 16 at the most."""
EVERYWHERE: Final = "everywhere"
_DOWN: Final = ("top", "", "bottom")
_ACROSS: Final = ("left", "", "right")
_HALF: Final = 0.5 + 1e-6  # rounds one border, come at from both sides, to one pixel
_MIDST: Final = (0.42, 0.58)  # neither left nor right; no middle of a small grid is on the border
Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of windows; where they overlap they are about twice as wide and high."""

    rows: int
    columns: int
    overlap: bool = True

    @classmethod
    def of(cls, text: str, *, overlap: bool) -> Self:
        """Return the grid that a text of `PATTERN` stands for."""
        rows, _, columns = text.partition("x")
        return cls(int(rows), int(columns or rows), overlap)

    @property
    def count(self) -> int:
        """K, the number of windows; they come row by row."""
        return self.rows * self.columns

    def boxes(self, width: int, height: int, ratio: float = 1.0) -> list[Box]:
        """Return the K windows of a picture of a size, inside it and each of a pixel or more.

        Without overlap they are the cells of the grid, with it they are two steps of N + 1 long, so
        that a thing up to one step long is seen whole. A window that is narrower or lower than the
        model's own shape (`ratio`, its width by its height) is extended to it around its middle, as
        far as the picture goes: else the model's preprocessing would cut its ends off.
        """
        downs = [_cell(n, self.rows, overlap=self.overlap) for n in range(self.rows)]
        acrosses = [_cell(n, self.columns, overlap=self.overlap) for n in range(self.columns)]
        found = []
        for start, size in downs:
            for begin, length in acrosses:
                wide, high = length * width, size * height
                left, right = _inside(begin * width + wide / 2, max(wide, high * ratio), width)
                top, bottom = _inside(start * height + high / 2, max(high, wide / ratio), height)
                found.append((left, top, right, bottom))
        return found

    @property
    def borders(self) -> tuple[list[float], list[float]]:
        """Return where a heat map's rows and columns part, as shares: half way between middles."""
        return _borders(self.rows, overlap=self.overlap), _borders(
            self.columns, overlap=self.overlap
        )


def place(x0: float, y0: float, x1: float, y1: float) -> str:
    """Return where the middle of a box is, given in shares: `top left` ... `centre`.

    It is said of the box and not of its row and column: in a picture that is much wider than high,
    windows of several rows may be one and the same.
    """
    words = _DOWN[_third((y0 + y1) / 2)], _ACROSS[_third((x0 + x1) / 2)]
    return " ".join(filter(None, words)) or "centre"


def _third(middle: float) -> int:
    return int(middle >= _MIDST[0]) + int(middle > _MIDST[1])


def _borders(count: int, *, overlap: bool) -> list[float]:
    cells = [_cell(n, count, overlap=overlap) for n in range(count)]
    middles = [start + size / 2 for start, size in cells]
    return [0.0, *((one + other) / 2 for one, other in pairwise(middles)), 1.0]


def _cell(number: int, count: int, *, overlap: bool) -> tuple[float, float]:
    """Return where a row or column begins and how long it is, as shares of the picture."""
    step = 1 / (count + overlap)
    return number * step, step * (1 + overlap)


def _inside(middle: float, length: float, most: int) -> tuple[int, int]:
    """Return first and next-to-last pixel of a length around a middle, moved into the picture."""
    start, end = (math.floor(at + _HALF) for at in (middle - length / 2, middle + length / 2))
    size = min(max(end - start, 1), most)
    start = min(max(start, 0), most - size)
    return start, start + size
