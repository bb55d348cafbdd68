"""Where an image goes before a model sees it: open_clip's own sizes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from pydantic import ValidationError

from clipcap.preprocessing import PixelSettings, Preprocess


def of(**made_for: Any) -> Preprocess:  # noqa: ANN401 - as open_clip takes them
    return Preprocess.of(asdict(PreprocessCfg(**made_for)))


@pytest.mark.parametrize("size", [224, 32, (224, 168), (60, 90), (300, 17)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_sizes_are_open_clips_own(size: int | tuple[int, int], mode: str) -> None:
    rng = np.random.default_rng(0)
    resize = image_transform_v2(PreprocessCfg(size=size, resize_mode=mode), is_train=False)
    wanted = of(size=size, resize_mode=mode)
    shapes = np.exp(rng.uniform(2, 8, (200, 2))).astype(int).tolist()
    for width, height in [*shapes, (300, 300), (300, 301), (301, 300)]:
        if mode == "longest" and min(wanted.resized(height, width)) == 1:
            continue  # open_clip may have no size for such a line
        resized = resize.transforms[0](Image.new("1", (width, height)))
        assert wanted.resized(height, width) == resized.size[::-1], (width, height)


def test_no_side_vanishes() -> None:
    assert of(size=32, resize_mode="longest").resized(1, 900) == (1, 32)
    assert of(size=(40, 30), resize_mode="longest").resized(5_000, 1) == (40, 1)


def test_what_a_model_says_is_read_as_open_clip_reads_it() -> None:
    assert of() == Preprocess(224, 224, "bicubic", "shortest", 0)
    assert of(size=(9, 7), resize_mode="longest", fill_color=3) == Preprocess(
        9, 7, "bicubic", "longest", 3
    )
    assert of(size=[9, 7], resize_mode="squash").width == 7
    assert of(interpolation="bilinear").interpolation == "bilinear"
    assert of(interpolation="random").interpolation == "bicubic"
    assert of(interpolation="bilinear", size=(9, 7)).interpolation == "bicubic"
    assert of(interpolation="bilinear", size=(9, 7), resize_mode="squash").interpolation == (
        "bilinear"
    )


def test_what_is_missing_or_empty_is_open_clips_default() -> None:
    empty = {"resize_mode": None, "interpolation": None, "fill_color": None}
    default = Preprocess(32, 32, "bicubic", "shortest", 0)
    assert Preprocess.of({"size": 32}) == Preprocess.of({"size": 32} | empty) == default


def test_settings_are_a_closed_list() -> None:
    assert PixelSettings() == PixelSettings(colours="open_clip", scaled=False)
    assert PixelSettings(scaled=True).fingerprint() != PixelSettings().fingerprint()
    for wrong in ({"colours": "best"}, {"colour": "managed"}):
        with pytest.raises(ValidationError):
            PixelSettings(**wrong)
