"""A model and a wish in, the model in the number format that it keeps its embeddings in, out.

Weights and products of the image tower are lowered; what is added up from layer to layer stays in
float32. That is as fast as lowering everything, and several times nearer to float32. A
format counts only after the very model has embedded a fixed set of pictures in it, on this kind of
device, within `LIMIT` of float32. Texts are few, and always embedded in float32.
"""

from __future__ import annotations

import copy
import logging
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipcap import hardware, kept, pixels, prepacked
from clipcap.errors import SettingsError
from clipcap.forward import normalised
from clipcap.hardware import Precision
from clipcap.models import EncoderRef
from clipcap.preprocessing import Preprocess
from clipcap.settings import digest

LIMIT: Final = 1e-4
"""Most 1 - cosine between an embedding and the one that float32 gives."""
NEVER: Final = 2.0
"""The figure of a model that does not run in a format, or not with finite numbers."""
VERSION: Final = 2
"""Raised by hand when `lowered` or the pictures change: what was kept is then measured again."""

_LOG = logging.getLogger(__name__)
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PICTURES: Final = Path(__file__).parent / "bundled" / "pictures"
_SCENES: Final = (1, 2, 3, 5, 7, 9, 10, 11, 13, 15, 17, 23)
_BATCH: Final = 8
_Whole = NDArray[np.int64]
_Levels = NDArray[np.uint8]
_Lowered = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


def apply(
    model: nn.Module,
    wanted: Literal["auto", "fp32", "bf16", "fp16"],
    ref: EncoderRef,
    device: torch.device,
) -> Precision:
    """Lower a model's image tower, in place, and return the format that it has now.

    Args:
        model: of open_clip: in float32, with a tower `visual` behind `encode_image`.
        wanted: `auto` takes the fastest format of the device, or fp32 where that is not near.
        ref: what the model is.
        device: where it lies.

    Raises:
        SettingsError: the format was asked for by name and is not near enough to float32.
    """
    chosen = hardware.fastest(device) if wanted == "auto" else wanted
    if chosen == "fp32":
        return chosen
    off = _kept_difference(model, chosen, ref, device)
    if off <= LIMIT:
        model.visual = lowered(cast("nn.Module", model.visual), _DTYPES[chosen])
        _LOG.info("%s runs in %s: 1 - cosine to fp32 at most %.1e", ref.model_id, chosen, off)
        return chosen
    found = "it does not run" if off >= NEVER else f"1 - cosine to fp32 is up to {off:.1e}"
    if wanted == "auto":
        _LOG.info("%s runs in fp32: in %s %s", ref.model_id, chosen, found)
        return "fp32"
    raise SettingsError(
        f"With precision {chosen} embeddings must stay within {LIMIT:.0e} (1 - cosine) of fp32, "
        f"but with {ref.name!r} on {device} {found}. Take precision fp32, or auto, which takes "
        "what is fast and near enough."
    )


def lowered(tower: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the tower with its weights in `dtype`, but for its first convolution, and its sums.

    It takes float32 images still. The first convolution (or what a tower without any names as
    `sees_pixels`) keeps what follows it in float32: a layer takes a copy of its input in `dtype`,
    and what it gives is added to float32.
    """
    first = getattr(tower, "sees_pixels", None)
    first = first or next((m for m in tower.modules() if isinstance(m, nn.Conv2d)), None)
    _lower(tower, first, dtype)
    return tower


def _lower(module: nn.Module, first: nn.Module | None, dtype: torch.dtype) -> None:
    if module is first:
        return
    if isinstance(module, _Lowered):
        module.to(dtype)
        module.register_forward_pre_hook(partial(_cast, dtype), with_kwargs=True)
        return
    for child in module.children():
        _lower(child, first, dtype)


def _cast(
    dtype: torch.dtype, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cast_one(value: object) -> object:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float and isinstance(value, Tensor) else value

    return tuple(map(cast_one, args)), {name: cast_one(value) for name, value in kwargs.items()}


def _kept_difference(
    model: nn.Module, precision: Precision, ref: EncoderRef, device: torch.device
) -> float:
    """Return `difference`, measured once for each model, format, kind of device and torch."""
    named = f"{ref.model_id} {precision} on {hardware.name(device)}, torch {torch.__version__}"
    state = [VERSION, ref.sha256, ref.config_sha256, ref.preprocess_sha256]
    key = f"{named}, {digest(state)[:16]}"
    found = kept.find("precision", key)
    if found is None:
        _LOG.info("%s: comparing with fp32, once for this kind of machine", named)
        found = difference(model, _DTYPES[precision], reference_images(ref.preprocess))
        kept.keep("precision", key, found)
    return found


def difference(model: nn.Module, dtype: torch.dtype, images_BCHW: Tensor) -> float:
    """Return the largest 1 - cosine between a model's embeddings in float32 and in `dtype`."""
    exact = cast("nn.Module", model.visual)
    device = next(exact.parameters()).device
    expected_BD = _embedded(model, images_BCHW, device)
    try:
        model.visual = lowered(copy.deepcopy(exact), dtype)
        prepacked.pack(model.visual)  # as it will run
        found_BD = _embedded(model, images_BCHW, device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:  # a layer that does not take the format
        _LOG.debug("does not run in %s", dtype, exc_info=error)
        return NEVER
    finally:
        model.visual = exact
    cosine_B = nn.functional.cosine_similarity(found_BD, expected_BD)
    return min(float((1 - cosine_B).max()), NEVER) if cosine_B.isfinite().all() else NEVER


def _embedded(model: Any, images_BCHW: Tensor, device: torch.device) -> Tensor:  # noqa: ANN401 - open_clip has no types
    with torch.inference_mode():
        parts = [
            model.encode_image(part_BCHW.to(device)).double().cpu()
            for part_BCHW in torch.split(images_BCHW, _BATCH)
        ]
    return torch.cat(parts)


def reference_images(preprocess: dict[str, Any]) -> Tensor:
    """Return the pictures that formats are compared with, as a model wants them.

    Some of the bundled scenes, some patterns (gray, ramps, stripes, checks, noise), some clouds.
    They are a sample: a single image may lie a little farther off than the farthest of them.

    Returns:
        float32 [24, 3, H, W], normalised.
    """
    wanted = Preprocess.of(preprocess)
    paths = [next(_PICTURES.glob(f"scene-{n:02d}.[jpw][pne][gb]*")) for n in _SCENES]
    scenes = [pixels.pixels(path.read_bytes(), wanted) for path in paths]
    pixels_BHWC = np.stack([*scenes, *_patterns(wanted.height, wanted.width)])
    mean_C, std_C = torch.tensor(preprocess["mean"]), torch.tensor(preprocess["std"])
    return normalised(torch.from_numpy(pixels_BHWC), mean_C, std_C)


def _patterns(height: int, width: int) -> list[_Levels]:
    """Return pictures that are computed with whole numbers alone: the same with any library."""
    y, x, c = np.ogrid[:height, :width, :3]
    zero = 0 * (x + y + c)
    noise = _noise(x, y, c)
    found = [
        zero + 128,
        zero + x * 255 // width,
        zero + (y * 255 // height + 80 * c) % 256,
        zero + x // 8 % 2 * 255,
        zero + (x // 16 + y // 16 + c) % 2 * 200 + 20,
        noise,
        noise // 4 + y * 191 // height,
        zero + ((x - width // 2) ** 2 + (y - height // 2) ** 2 + 40 * c) // 16 % 256,
        *(_clouds(x, y, c * (seed % 2), seed) for seed in range(4)),
    ]
    return [np.broadcast_to(pattern, zero.shape).astype(np.uint8) for pattern in found]


def _clouds(x: _Whole, y: _Whole, c: _Whole, seed: int) -> _Whole:
    """Return noise that is the stronger the coarser it is, as in photographs; c = 0: gray."""
    sizes = (64, 32, 16, 8, 4, 2, 1)
    parts = [size * _smooth(x, y, c + 3 * seed, size) for size in sizes]
    spread = (np.sum(parts, axis=0) // sum(sizes) - 128) * 3 + 128
    return np.asarray(np.clip(spread, 0, 255), np.int64)


def _smooth(x: _Whole, y: _Whole, c: _Whole, size: int) -> _Whole:
    """Return noise at every `size`th pixel, and straight lines between."""
    right, u, down, v = x // size, x % size, y // size, y % size
    above = (size - u) * _noise(right, down, c) + u * _noise(right + 1, down, c)
    below = (size - u) * _noise(right, down + 1, c) + u * _noise(right + 1, down + 1, c)
    return ((size - v) * above + v * below) // size**2


def _noise(x: _Whole, y: _Whole, c: _Whole) -> _Whole:
    """Return numbers below 256 that look like chance."""
    mixed = (x * 73_856_093 ^ y * 19_349_663 ^ c * 83_492_791) & 0xFFFFFFFF
    return ((mixed ^ mixed >> 13) * 1_274_126_177 >> 8) & 255
