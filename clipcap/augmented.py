"""A decoded picture in, what another photographer might have taken of the same scene out.

A random part of at least half the picture, mirrored or not, in other light: mild enough that the
captions still hold. The same seed gives the same pixels (`imageviews.VERSION` tells them apart).
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from clipcap import patches
from clipcap.preprocessing import Preprocess

_AREA: Final = (0.5, 1.0)  # of the whole picture
_LIGHT: Final = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02)
_FLIP: Final = v2.RandomHorizontalFlip()


def view(levels_HWC: NDArray[np.uint8], wanted: Preprocess, seed: str) -> NDArray[np.uint8]:
    """Return a view of a picture that is upright, as large as the model wants it: [H, W, 3]."""
    in_patches = wanted.resize_mode == "patches"
    whole = wanted.resized(levels_HWC.shape[0], levels_HWC.shape[1])
    crop = v2.RandomResizedCrop(
        whole if in_patches else (wanted.height, wanted.width),
        scale=_AREA,
        interpolation=v2.InterpolationMode[wanted.interpolation.upper()],
        antialias=True,
    )
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little") >> 1
    picture_CHW = torch.from_numpy(np.ascontiguousarray(levels_HWC)).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        made_CHW = _LIGHT(_FLIP(crop(picture_CHW)))
    made_HWC = np.ascontiguousarray(made_CHW.permute(1, 2, 0).numpy())
    return patches.strip(made_HWC, wanted) if in_patches else made_HWC
