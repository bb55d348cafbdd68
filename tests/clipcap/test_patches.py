"""Pictures of any shape as strips of patches, as transformers cuts them for SigLIP 2."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Siglip2ImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from clipcap import augmented, patches, pixels
from clipcap.preprocessing import Preprocess

MEAN_C, STD_C = torch.full((3,), 0.5), torch.full((3,), 0.25)


def of(patch: int, most: int) -> Preprocess:
    """Return what a model wants that looks at so many patches of so many pixels."""
    whole = {"size": [(most + 1) * patch, patch], "resize_mode": "patches"}
    return Preprocess.of(whole | {"interpolation": "bilinear", "rules": "transformers"})


@pytest.mark.parametrize(("patch", "most"), [(16, 256), (14, 729), (8, 20), (32, 1)])
def test_sizes_are_those_of_transformers(patch: int, most: int) -> None:
    wanted = of(patch, most)
    assert (wanted.width, wanted.patches) == (patch, most)
    rng = np.random.default_rng(0)
    shapes = np.exp(rng.uniform(0, 9, (300, 2))).astype(int).tolist()
    for height, width in [*shapes, (1, 50_000), (50_000, 1), (512, 512), (1, 1)]:
        theirs = get_image_size_for_max_num_patches(height, width, patch, most)
        assert wanted.resized(height, width) == theirs, (height, width)


@pytest.mark.parametrize("size", [(320, 200), (90, 301), (9, 8), (3, 700), (900, 2), (64, 64)])
def test_pixels_are_those_of_the_image_processor(size: tuple[int, int]) -> None:
    wanted = of(8, 20)
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    processor = Siglip2ImageProcessor(
        patch_size=8, max_num_patches=20, image_mean=MEAN_C.tolist(), image_std=STD_C.tolist()
    )
    theirs = processor(image, return_tensors="pt")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    found_HWC = pixels.pixels(stream.getvalue(), wanted)
    assert found_HWC.shape == (21 * 8, 8, 3)
    normalised_BCHW = (torch.from_numpy(found_HWC) / 255 - MEAN_C) / STD_C
    ours = patches.read(normalised_BCHW.permute(2, 0, 1)[None], MEAN_C, STD_C)
    assert torch.equal(ours[2], theirs["spatial_shapes"].long())
    assert torch.equal(ours[1], theirs["pixel_attention_mask"].bool())
    off = (ours[0] - theirs["pixel_values"]).abs() * theirs["pixel_attention_mask"][..., None]
    assert off.max() <= 2.01 / 255 / 0.25


@pytest.mark.parametrize(("rows", "columns"), [(3, 500), (1600, 1), (40, 40)])
def test_what_transformers_made_reads_back(rows: int, columns: int) -> None:
    """Also where there are more rows or columns than one byte holds."""
    wanted = {"size": [1601 * 2, 2], "resize_mode": "patches"}
    wanted |= {"mean": MEAN_C.tolist(), "std": STD_C.tolist()}
    given_NF = torch.randn(1600, 12)
    made_CHW = patches.written(given_NF, torch.tensor([rows, columns]), wanted)
    found_BNF, counts_BN, shape_B2 = patches.read(made_CHW[None], MEAN_C, STD_C)
    assert torch.equal(found_BNF[0], given_NF)
    assert shape_B2.tolist() == [[rows, columns]]
    assert counts_BN.sum() == rows * columns


def test_any_pixels_are_a_strip() -> None:
    """Batches are timed, and number formats compared, with pictures that nobody has cut."""
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 21 * 8, 8, 3)))
    normalised_BCHW = ((levels / 255 - MEAN_C) / STD_C).permute(0, 3, 1, 2)
    _, counts_BN, shape_B2 = patches.read(normalised_BCHW, MEAN_C, STD_C)
    assert shape_B2.min() >= 1
    assert shape_B2.prod(dim=1).max() <= 20
    assert torch.equal(counts_BN.sum(dim=1), shape_B2.prod(dim=1))


def test_a_view_is_a_strip_of_the_pictures_own_shape() -> None:
    wanted = of(8, 20)
    levels = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    found = augmented.view(levels, wanted, "a/1")
    assert found.shape == (21 * 8, 8, 3)
    assert found[-8, 0, 0] + 1 == wanted.resized(90, 200)[0] // 8
    assert found[-8, 0, 2] + 1 == wanted.resized(90, 200)[1] // 8
