"""A model's preprocessing in, the size that an image of it gets out, as open_clip computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from clipcap.settings import Settings


class PixelSettings(Settings):
    """How a file becomes the pixels that the model looks at. Every field changes the result."""

    colours: Literal["open_clip", "managed"] = "open_clip"
    """`open_clip`: as its own preprocessing, so that embeddings compare with those made elsewhere;
    it ignores colour profiles, clips 16 bits to white and drops transparency. `managed`: profiles
    become sRGB, 16 bits are scaled, what is transparent lies on white."""
    scaled: bool = False
    """Decode a large JPEG at 1/2, 3/8, 1/4 or 1/8, at least three times as large as the model looks
    at: 1.5 to twice as fast at 12 megapixels; embeddings differ by up to 3e-4 (1 - cosine)."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Where an image goes before a model sees it: `height` x `width` pixels, and how."""

    height: int
    width: int
    interpolation: str
    resize_mode: str
    fill: int

    @classmethod
    def of(cls, preprocess: Mapping[str, Any]) -> Self:
        """Return it from open_clip's `preprocess_cfg`, as an encoder's reference has it."""
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
        )

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing, before what is over is cut off or filled up."""
        if self.resize_mode == "squash":
            return self.height, self.width
        if self.resize_mode == "shortest" and self.height == self.width:
            if width <= height:
                return int(self.height * height / width), self.height
            return self.height, int(self.height * width / height)
        either = max if self.resize_mode == "longest" else min
        ratio = either(height / self.height, width / self.width)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)
