"""A resized picture in, a strip of its patches of one size for all pictures out, and back.

For models that look at pictures of any shape (SigLIP 2, NaFlex): patches of P x P lie below each
other, row by row, then black ones up to the most that there may be, then one whose first four bytes
say how many rows and columns there are. So pictures of any shape fit into one kind of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipcap.preprocessing import Preprocess

_MARK: Final = np.dtype("<u2")  # rows - 1, columns - 1


def strip(levels_HWC: NDArray[np.uint8], wanted: Preprocess) -> NDArray[np.uint8]:
    """Return the strip of a picture whose sides are whole patches: [(N + 1) * P, P, 3]."""
    side = wanted.width
    rows, columns = levels_HWC.shape[0] // side, levels_HWC.shape[1] // side
    cut = levels_HWC.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    found = np.zeros((wanted.height, side, 3), np.uint8)
    found[: rows * columns * side] = cut.reshape(-1, side, 3)
    mark = np.array([rows - 1, columns - 1], _MARK).view(np.uint8)
    found[-side:].reshape(-1)[: len(mark)] = mark
    return found


def written(patches_NF: Tensor, shape_2: Tensor, preprocess: Mapping[str, Any]) -> Tensor:
    """Return a normalised strip, [3, (N + 1) * P, P], out of what transformers made of an image."""
    wanted = Preprocess.of(preprocess)
    side, (rows, columns) = wanted.width, shape_2.tolist()
    arranged = strip(np.zeros((rows * side, columns * side, 3), np.uint8), wanted)[-side:]
    mean_C, std_C = (torch.tensor(preprocess[name]) for name in ("mean", "std"))
    mark_HWC = (torch.from_numpy(arranged) / 255 - mean_C) / std_C
    strip_HWC = torch.cat([patches_NF.reshape(-1, side, 3), mark_HWC])
    return strip_HWC.permute(2, 0, 1)


def read(strip_BCHW: Tensor, mean_C: Tensor, std_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what Siglip2Model takes, out of normalised strips.

    Any numbers are strips: an arrangement that there cannot be is taken as the nearest.

    Returns:
        Patches [B, N, P * P * 3], which of them count [B, N], and rows and columns [B, 2].
    """
    side = strip_BCHW.shape[-1]
    strip_BHWC = strip_BCHW.permute(0, 2, 3, 1)
    patches_BNF = strip_BHWC[:, :-side].reshape(len(strip_BCHW), -1, side * side * 3)
    count = patches_BNF.shape[1]
    levels_BWC = ((strip_BHWC[:, -side, :2] * std_C + mean_C) * 255).round().long()
    low_B2, high_B2 = levels_BWC.flatten(1)[:, 0:4:2], levels_BWC.flatten(1)[:, 1:4:2]
    rows_B, columns_B = (low_B2 + 256 * high_B2 + 1).unbind(1)
    rows_B = rows_B.clamp(1, count)
    columns_B = torch.minimum(columns_B.clamp(min=1), count // rows_B)
    counts_BN = torch.arange(count, device=rows_B.device) < (rows_B * columns_B)[:, None]
    return patches_BNF, counts_BN, torch.stack([rows_B, columns_B], dim=1)
