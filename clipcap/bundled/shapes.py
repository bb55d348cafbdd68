"""A pen and a colour in, one thing drawn into the pen's box, or one place over the image, out.

Coordinates are shares of the box: (0, 0) is its upper left corner, (1, 1) its lower right one.
Nothing here draws at random; `clipcap.bundled.scenes` chooses box, colour and place.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from PIL import ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

LEAF: RGB = (60, 140, 60)
WOOD: RGB = (120, 80, 45)
DARK: RGB = (45, 45, 50)
PANE: RGB = (200, 215, 225)


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws with shares of a box, so that a shape is written once and fits every size."""

    draw: ImageDraw.ImageDraw
    left: float
    top: float
    width: float
    height: float
    outline: RGB
    stroke_px: int

    def _at(self, points: Sequence[Point]) -> list[Point]:
        return [(self.left + x * self.width, self.top + y * self.height) for x, y in points]

    def poly(self, points: Sequence[Point], fill: RGB) -> None:
        """A filled polygon with the pen's outline."""
        corners = self._at(points)
        self.draw.polygon(corners, fill=fill)
        self.draw.line([*corners, *corners[:2]], self.outline, self.stroke_px, joint="curve")

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        """A filled rectangle with the pen's outline."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        """A filled ellipse with the pen's outline."""
        corners = self._at([(x0, y0), (x1, y1)])
        self.draw.ellipse(corners, fill=fill, outline=self.outline, width=self.stroke_px)

    def stripe(self, points: Sequence[Point], fill: RGB, width: float) -> None:
        """A line without outline; `width` is a share of the box width."""
        self.draw.line(self._at(points), fill, max(1, round(width * self.width)), joint="curve")


def _house(pen: Pen, fill: RGB) -> None:
    pen.box(0.1, 0.42, 0.9, 1.0, fill)
    pen.poly([(0.0, 0.45), (0.5, 0.02), (1.0, 0.45)], fill)
    pen.box(0.42, 0.68, 0.6, 1.0, DARK)
    pen.box(0.18, 0.55, 0.34, 0.72, PANE)
    pen.box(0.68, 0.55, 0.84, 0.72, PANE)


def _tree(pen: Pen, fill: RGB) -> None:
    pen.box(0.42, 0.6, 0.58, 1.0, WOOD)
    pen.oval(0.08, 0.25, 0.56, 0.72, fill)
    pen.oval(0.44, 0.25, 0.92, 0.72, fill)
    pen.oval(0.22, 0.0, 0.78, 0.55, fill)


def _car(pen: Pen, fill: RGB) -> None:
    pen.poly([(0.22, 0.52), (0.34, 0.26), (0.7, 0.26), (0.84, 0.52)], fill)
    pen.poly([(0.32, 0.5), (0.39, 0.33), (0.66, 0.33), (0.74, 0.5)], PANE)
    pen.box(0.0, 0.5, 1.0, 0.82, fill)
    pen.oval(0.12, 0.68, 0.38, 0.97, DARK)
    pen.oval(0.62, 0.68, 0.88, 0.97, DARK)


def _boat(pen: Pen, fill: RGB) -> None:
    pen.box(0.47, 0.02, 0.53, 0.68, WOOD)
    pen.poly([(0.55, 0.05), (0.55, 0.6), (0.95, 0.6)], fill)
    pen.poly([(0.45, 0.18), (0.45, 0.6), (0.14, 0.6)], fill)
    pen.poly([(0.0, 0.68), (1.0, 0.68), (0.8, 0.98), (0.2, 0.98)], fill)


def _ball(pen: Pen, fill: RGB) -> None:
    pen.oval(0.1, 0.18, 0.92, 1.0, fill)
    pen.oval(0.28, 0.32, 0.42, 0.46, PANE)


def _flower(pen: Pen, fill: RGB) -> None:
    pen.stripe([(0.5, 0.5), (0.5, 1.0)], LEAF, 0.07)
    pen.oval(0.5, 0.72, 0.8, 0.86, LEAF)
    for turn in range(6):
        x = 0.5 + 0.24 * math.sin(turn * math.pi / 3)
        y = 0.34 - 0.24 * math.cos(turn * math.pi / 3)
        pen.oval(x - 0.15, y - 0.15, x + 0.15, y + 0.15, fill)
    pen.oval(0.38, 0.22, 0.62, 0.46, DARK)


def _bird(pen: Pen, fill: RGB) -> None:
    pen.stripe([(0.42, 0.8), (0.42, 1.0)], DARK, 0.05)
    pen.stripe([(0.56, 0.8), (0.56, 1.0)], DARK, 0.05)
    pen.poly([(0.2, 0.5), (0.0, 0.36), (0.02, 0.62)], fill)
    pen.oval(0.12, 0.36, 0.78, 0.86, fill)
    pen.oval(0.56, 0.14, 0.88, 0.46, fill)
    pen.poly([(0.86, 0.26), (1.0, 0.32), (0.86, 0.38)], (235, 170, 40))
    pen.poly([(0.28, 0.52), (0.6, 0.48), (0.38, 0.12)], fill)
    pen.oval(0.7, 0.22, 0.78, 0.3, DARK)


def _cat(pen: Pen, fill: RGB) -> None:
    pen.stripe([(0.78, 0.92), (0.98, 0.78), (0.94, 0.5)], fill, 0.09)
    pen.oval(0.2, 0.48, 0.82, 1.0, fill)
    pen.poly([(0.22, 0.3), (0.2, 0.0), (0.44, 0.16)], fill)
    pen.poly([(0.58, 0.16), (0.8, 0.0), (0.78, 0.3)], fill)
    pen.oval(0.2, 0.12, 0.8, 0.6, fill)
    pen.oval(0.33, 0.28, 0.43, 0.4, PANE)
    pen.oval(0.57, 0.28, 0.67, 0.4, PANE)


def _fish(pen: Pen, fill: RGB) -> None:
    pen.poly([(0.26, 0.55), (0.0, 0.3), (0.0, 0.8)], fill)
    pen.poly([(0.4, 0.36), (0.56, 0.16), (0.68, 0.36)], fill)
    pen.oval(0.18, 0.3, 1.0, 0.8, fill)
    pen.oval(0.78, 0.44, 0.88, 0.55, PANE)


def _cup(pen: Pen, fill: RGB) -> None:
    pen.oval(0.6, 0.34, 1.0, 0.78, fill)
    pen.oval(0.72, 0.45, 0.9, 0.67, PANE)
    pen.poly([(0.04, 0.2), (0.78, 0.2), (0.7, 1.0), (0.12, 1.0)], fill)
    pen.oval(0.04, 0.11, 0.78, 0.29, PANE)


def _hat(pen: Pen, fill: RGB) -> None:
    pen.oval(0.0, 0.74, 1.0, 0.96, fill)
    pen.box(0.22, 0.2, 0.78, 0.84, fill)
    pen.box(0.22, 0.64, 0.78, 0.76, DARK)


def _star(pen: Pen, fill: RGB) -> None:
    radius = (0.52, 0.22)
    turns = [(radius[i % 2], i * math.pi / 5) for i in range(10)]
    pen.poly([(0.5 + r * math.sin(t), 0.54 - r * math.cos(t)) for r, t in turns], fill)


def _grass(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (165, 210, 240))
    pen.box(-0.1, ground, 1.1, 1.1, (125, 190, 85))
    for step in range(24):
        x, y = (step * 0.37) % 1.0, ground + 0.05 + (step * 0.23) % (1 - ground)
        pen.stripe([(x, y), (x + 0.015, y - 0.05)], (85, 155, 55), 0.01)


def _beach(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (175, 220, 245))
    pen.box(-0.1, ground - 0.2, 1.1, 1.1, (70, 150, 205))
    pen.box(-0.1, ground, 1.1, 1.1, (235, 215, 160))


def _snow(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (190, 200, 212))
    pen.box(-0.1, ground, 1.1, 1.1, (240, 243, 248))
    for step in range(40):
        x, y = (step * 0.382) % 1.0, (step * 0.271) % 1.0
        pen.stripe([(x, y), (x + 0.014, y)], (255, 255, 255), 0.014)


def _night(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (22, 26, 62))
    pen.box(-0.1, ground, 1.1, 1.1, (38, 44, 58))
    pen.oval(0.82, 0.03, 0.94, 0.15, (240, 236, 205))
    for step in range(14):
        x, y = (step * 0.382) % 1.0, (step * 0.271) % ground
        pen.stripe([(x, y), (x + 0.01, y)], (225, 225, 235), 0.01)


def _sea(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (200, 230, 248))
    pen.box(-0.1, ground - 0.25, 1.1, 1.1, (45, 115, 185))
    for row in range(5):
        y = ground - 0.15 + 0.13 * row
        wave = [(i * 0.05, y + 0.015 * (-1) ** i) for i in range(-1, 23)]
        pen.stripe(wave, (130, 185, 225), 0.012)


def _room(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (232, 205, 180))
    pen.box(-0.1, ground, 1.1, 1.1, (165, 125, 95))
    for x in (0.1, 0.35, 0.6, 0.85):
        pen.stripe([(x, ground), (x - 0.08, 1.1)], (125, 90, 65), 0.012)
    pen.box(0.06, 0.06, 0.3, 0.28, (215, 235, 245))
    pen.stripe([(0.18, 0.06), (0.18, 0.28)], (125, 90, 65), 0.015)
    pen.stripe([(0.06, 0.17), (0.3, 0.17)], (125, 90, 65), 0.015)


def _road(pen: Pen, ground: float) -> None:
    pen.box(-0.1, -0.1, 1.1, 1.1, (185, 200, 205))
    pen.box(-0.1, ground - 0.06, 1.1, 1.1, (115, 115, 120))
    for x in (0.0, 0.3, 0.6, 0.9):
        pen.box(x, ground + 0.16, x + 0.16, ground + 0.2, (240, 240, 235))


THINGS: Mapping[str, Callable[[Pen, RGB], None]] = MappingProxyType({
    "house": _house, "tree": _tree, "car": _car, "boat": _boat, "ball": _ball, "flower": _flower,
    "bird": _bird, "cat": _cat, "fish": _fish, "cup": _cup, "hat": _hat, "star": _star,
})  # fmt: skip
"""Kind of thing to the function that draws it."""

PLACES: Mapping[str, Callable[[Pen, float], None]] = MappingProxyType({
    "on the grass": _grass, "on the beach": _beach, "in the snow": _snow, "at night": _night,
    "on the sea": _sea, "in a room": _room, "on the road": _road,
})  # fmt: skip
"""Place, as a caption says it, to the function that draws it; the number is where ground begins."""

COLOURS: Mapping[str, RGB] = MappingProxyType({
    "red": (215, 30, 35), "orange": (250, 135, 15), "yellow": (250, 225, 40),
    "green": (30, 150, 60), "blue": (35, 75, 215), "purple": (125, 40, 170),
    "pink": (250, 150, 195), "brown": (115, 65, 30), "black": (20, 20, 22),
    "white": (250, 250, 250),
})  # fmt: skip
"""Colour word to its middle value; a drawing strays a little from it."""
