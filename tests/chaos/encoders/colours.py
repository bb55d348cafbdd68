"""Pixels in, their mean colour times a matrix out: an encoder whose every number can be foretold.

`tests.chaos.standins` puts this folder beside those of the library.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from clipcap import encoding
from clipcap.models import EncoderRef
from clipcap.settings import digest

Settings = encoding.Settings
DIM = 8
SIDE_PX = 4


def reference(name: str) -> EncoderRef:
    """Return what is known of `colours-N` without loading it."""
    sha256 = digest(["colours", name])
    preprocess = {
        "size": [SIDE_PX, SIDE_PX],
        "mode": "RGB",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return EncoderRef(name, name, name, None, "", sha256, sha256, DIM, preprocess, "colours")


def identity(ref: EncoderRef, _settings: Settings) -> list[str]:
    """Return what makes an embedding what it is."""
    return [ref.sha256]


class Colours:
    """One of these encoders, and how often each was asked for how many images."""

    logit_scale = 20.0
    logit_bias = None
    device = torch.device("cpu")
    precision = "fp32"
    dim = DIM

    def __init__(self, ref: EncoderRef) -> None:
        self.model_id, self.sha256 = ref.model_id, ref.sha256
        self.preprocess_json, self.preprocess_sha256 = ref.preprocess_json, ref.preprocess_sha256
        self.images = self.texts = 0

    def encode_pixels(self, pixels_BHWC: Tensor) -> Callable[[], Tensor]:
        self.images += len(pixels_BHWC)
        colour_BC = pixels_BHWC.numpy().reshape(len(pixels_BHWC), -1, 3).mean(axis=1)
        found = torch.from_numpy(np.stack([vector(self.model_id, one) for one in colour_BC]))
        return lambda: found

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.texts += len(texts)
        if not texts:
            return torch.zeros(0, DIM)
        return torch.from_numpy(np.stack([text_vector(self.model_id, text) for text in texts]))


def vector(
    model_id: str, colour_C: Sequence[float]
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the raw embedding of a picture of one colour."""
    centred_C = np.append(np.asarray(colour_C, np.float64) / 255 - 0.5, 0.1)
    return (centred_C @ _matrix(model_id)).astype(np.float32)


def text_vector(model_id: str, text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the raw embedding of a text."""
    numbers = hashlib.sha256(f"{model_id} {text}".encode()).digest()[: 2 * DIM : 2]
    return np.array([math.sin(number + 0.5) for number in numbers], np.float32)


@cache
def _matrix(model_id: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    seed = int(digest(model_id)[:8], 16)
    return np.random.default_rng(seed).normal(size=(4, DIM))


LOADED: dict[str, Colours] = {}


def load(settings: Settings) -> Colours:
    """Return the one encoder of a name."""
    if settings.model not in LOADED:
        LOADED[settings.model] = Colours(reference(settings.model))
    return LOADED[settings.model]


loads = 0


def forget() -> None:
    """Drop what was loaded."""
    LOADED.clear()
