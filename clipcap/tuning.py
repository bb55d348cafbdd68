"""An encoder and a number of images in, how many of them to embed at a time out: measured, once.

What is fastest depends on machine, model and number format; results do not depend on it beyond the
last bits of float32 arithmetic.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from typing import TYPE_CHECKING, Final

from clipcap import kept
from clipcap.preprocessing import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

    from clipcap.encoders import Encoder

_LOG = logging.getLogger(__name__)
_SIZES: Final = {"cpu": (8, 16, 32, 64, 128), "cuda": (32, 64, 128, 256, 512, 1024)}
_UNMEASURED: Final = {"cpu": 64, "cuda": 256}
_REPEATS: Final = 3
_WARM_UP: Final = 2  # the first allocates, the second records a CUDA graph
_SHARE: Final = 0.02  # of a run that measuring may take
_AS_GOOD: Final = 0.97  # of the best: a smaller batch needs less memory
_PATIENCE: Final = 2  # larger batches that are no faster, before larger ones are not tried


def batch_size(encoder: Encoder, wanted: int | None, images: int) -> int:
    """Return how many images to embed at a time.

    Args:
        encoder: it is loaded and at rest.
        wanted: what a person has set; nothing is measured then.
        images: how many there will be. Measuring costs as much as some of them: it is done only
            where they are less than 2 % of all, and then kept for this kind of machine.

    Raises:
        DeviceError: not even one image fits into the device's memory.
    """
    if wanted is not None:
        return wanted
    kind = encoder.device.type
    sizes = _SIZES[kind]
    key = _key(encoder)
    found = kept.find("batch_size", key)
    if found in sizes:
        return int(found)
    if (_REPEATS + _WARM_UP) * sum(sizes) > _SHARE * images:
        return _UNMEASURED[kind]
    rates = measured(encoder, sizes)
    best = smallest_of_the_best(rates)
    _LOG.info("%s: %d at a time, at %.0f images/s, kept as %r", kind, best, rates[best], key)
    kept.keep("batch_size", key, best)
    return best


def measured(encoder: Encoder, sizes: tuple[int, ...]) -> dict[int, float]:
    """Return images per second by batch size, as far as larger batches are faster."""
    rates: dict[int, float] = {}
    best, since = 0.0, 0
    for size in sizes:
        rates[size] = rate(encoder, size)
        if rates[size] > best / _AS_GOOD:
            best, since = rates[size], 0
        else:
            since += 1
        if since == _PATIENCE:
            break
    return rates


def smallest_of_the_best(rates: dict[int, float]) -> int:
    """Return the smallest batch that is within 3 % of the fastest."""
    enough = _AS_GOOD * max(rates.values())
    return min(size for size, found in rates.items() if found >= enough)


def rate(encoder: Encoder, size: int) -> float:
    """Return images per second in batches of `size`: the median."""
    pixels_BHWC = made_up(encoder, size)
    seconds = []
    for _ in range(_WARM_UP + _REPEATS):
        began = time.perf_counter()
        encoder.encode_pixels(pixels_BHWC)()
        seconds.append(time.perf_counter() - began)
    return size / max(statistics.median(seconds[_WARM_UP:]), 1e-9)


def made_up(encoder: Encoder, count: int) -> Tensor:
    """Return pixels of the encoder's size, uint8 [count, H, W, 3]: no picture, but not even."""
    import torch  # noqa: PLC0415 - who has set the number needs none

    wanted = Preprocess.of(json.loads(encoder.preprocess_json))
    size = count * wanted.height * wanted.width * 3
    values = torch.arange(251, dtype=torch.uint8)
    return values.repeat(size // 251 + 1)[:size].view(count, wanted.height, wanted.width, 3)


def _key(encoder: Encoder) -> str:
    import torch  # noqa: PLC0415 - as above

    from clipcap import hardware  # noqa: PLC0415 - imports torch

    place = hardware.name(encoder.device)
    if encoder.device.type == "cpu":
        place += f", {torch.get_num_threads()} threads"
    return (
        f"{encoder.model_id} {encoder.precision} on {place}, torch {torch.__version__}, "
        f"{encoder.sha256[:16]}"
    )
