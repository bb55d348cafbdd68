"""A model's preprocessing in, the size that an image of it gets out, as its library computes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from clipcap.settings import Settings
from clipcap.windows import Grid

_PATCHES_STEP: Final = 1e-5  # transformers' own, as the next: another would be another size
_PATCHES_SCALE: Final = 100.0


class PixelSettings(Settings):
    """How a file becomes the pixels that the model looks at. Every field changes the result."""

    colours: Literal["open_clip", "managed"] = "open_clip"
    """`open_clip`: as its own preprocessing, so that embeddings compare with those made elsewhere;
    it ignores colour profiles, clips 16 bits to white and drops transparency (models of
    transformers see it on white, as in that library). `managed`: profiles become sRGB, 16 bits are
    scaled, what is transparent lies on white."""
    scaled: bool = False
    """Decode a large JPEG at 1/2, 3/8, 1/4 or 1/8, at least three times as large as the model looks
    at: 1.5 to twice as fast at 12 megapixels; embeddings differ by up to 3e-4 (1 - cosine)."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Where an image goes before a model sees it: `height` x `width` pixels, and how.

    With the mode `patches` that is a strip of square patches, see `clipcap.patches`.
    """

    height: int
    width: int
    interpolation: str
    resize_mode: str
    fill: int
    rules: str = "open_clip"
    """`transformers`: what is over is cut off at the floor of the half, transparency is white."""
    grid: Grid | None = None
    """Windows of the image that go before the model in its place, one after another."""

    @classmethod
    def shared(cls, fields: Mapping[str, Any]) -> Self:
        """Return it from its fields as JSON has them (`dataclasses.asdict`)."""
        grid = fields["grid"]
        return cls(**{**fields, "grid": grid and Grid(**grid)})

    @property
    def pictures(self) -> int:
        """How many pictures of one image the model looks at."""
        return self.grid.count if self.grid else 1

    @classmethod
    def of(cls, preprocess: Mapping[str, Any]) -> Self:
        """Return it from open_clip's `preprocess_cfg`, as an encoder's reference has it.

        That of a model of transformers has one key more: `rules`.
        """
        size = preprocess["size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        mode = preprocess.get("resize_mode") or "shortest"
        keeps_ratio_freely = mode == "shortest" and height != width  # open_clip: always bicubic
        interpolation = preprocess.get("interpolation") or "bicubic"
        return cls(
            int(height),
            int(width),
            "bilinear" if interpolation == "bilinear" and not keeps_ratio_freely else "bicubic",
            mode,
            int(preprocess.get("fill_color") or 0),
            preprocess.get("rules") or "open_clip",
        )

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return top and left of the middle of an image that is at least as large as wanted."""
        over = (height - self.height, width - self.width)
        if self.rules == "transformers":
            return over[0] // 2, over[1] // 2
        return round(over[0] / 2), round(over[1] / 2)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing, before what is over is cut off or filled up."""
        if self.resize_mode == "squash":
            return self.height, self.width
        if self.resize_mode == "patches":
            return self._in_patches(height, width)
        if self.resize_mode == "shortest" and self.height == self.width:
            if width <= height:
                return int(self.height * height / width), self.height
            return self.height, int(self.height * width / height)
        either = max if self.resize_mode == "longest" else min
        ratio = either(height / self.height, width / self.width)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    @property
    def patches(self) -> int:
        """How many patches of `width` x `width` an image may have at most, with `patches`."""
        return self.height // self.width - 1  # the last one says how they are arranged

    def _in_patches(self, height: int, width: int) -> tuple[int, int]:
        """Return the largest size of whole patches of about the image's shape, as SigLIP 2 does."""
        patch = self.width

        def whole(scale: float, side: int) -> int:
            return max(math.ceil(side * scale / patch) * patch, patch)

        low, high = _PATCHES_STEP / 10, _PATCHES_SCALE
        while high - low >= _PATCHES_STEP:
            scale = (low + high) / 2
            if whole(scale, height) // patch * (whole(scale, width) // patch) <= self.patches:
                low = scale
            else:
                high = scale
        return whole(low, height), whole(low, width)
