"""transformers' configuration of an image processor in, open_clip's way to say the same out.

What resizes to a fixed size, or to a number of patches, can be said so, with one key more
(`rules`). All else is refused: an image that is prepared otherwise than in training is embedded
silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from clipcap.errors import SettingsError

_CLIP: Final = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP: Final = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_PATCHES: Final = {
    "patch_size": 16,
    "max_num_patches": 256,
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_IN_PATCHES: Final = "Siglip2ImageProcessor"
_DEFAULTS: Final = {
    "CLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
    _IN_PATCHES: _PATCHES,
}
"""What the classes of transformers take where a file does not say it."""
_OF_MODELS: Final = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip2": _IN_PATCHES,
}
_MOST: Final = 4096  # patches of an image, four times what such a model was trained with
_INTERPOLATION: Final = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_WANTED: Final = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": False}


def translated(
    found: Mapping[str, Any], path: Path, *, model_type: str, side_px: int
) -> dict[str, Any]:
    """Return the preprocessing as an encoder's reference has it.

    Args:
        found: the content of `preprocessor_config.json`.
        path: where it was found, for errors.
        model_type: of the model's `config.json`.
        side_px: of the square images that the model takes, or of its patches (SigLIP 2).

    Raises:
        SettingsError: it cannot be said in open_clip's way, or does not fit the model.
    """
    kind, in_patches = _kind(found, model_type), model_type == "siglip2"
    if kind not in _DEFAULTS or in_patches != (kind == _IN_PATCHES):
        raise SettingsError(
            f"{path} must be of {_OF_MODELS[model_type]}, but is of {kind}, which this pipeline "
            f"does not know of a {model_type} model. Take the file from where the weights come "
            "from."
        )
    given = {name: value for name, value in found.items() if value is not None}
    whole: dict[str, Any] = {"rescale_factor": 1 / 255, **_DEFAULTS[kind], **given}
    for name, wanted in _WANTED.items():
        if bool(whole.get(name, wanted)) != wanted:
            _refuse(path, f"`{name}` {str(wanted).lower()}", f"{str(not wanted).lower()}")
    factor, resample = whole["rescale_factor"], whole["resample"]
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _refuse(path, "`rescale_factor` 1/255", factor)
    if resample not in list(_INTERPOLATION):
        _refuse(path, "`resample` 2 (bilinear) or 3 (bicubic)", resample)
    mode, size = (_strip if in_patches else _size)(whole, path, side_px)
    return {
        "mode": "RGB",
        "interpolation": _INTERPOLATION[resample],
        "resize_mode": mode,
        "fill_color": 0,
        "size": size,
        "mean": _channels(whole, "image_mean", path),
        "std": _channels(whole, "image_std", path),
        "rules": "transformers",
    }


def _kind(found: Mapping[str, Any], model_type: str) -> str:
    """Return the class without what old and fast ones had in their names."""
    named = found.get("image_processor_type") or found.get("feature_extractor_type")
    kind = str(named or _OF_MODELS.get(model_type, model_type))
    return kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")


def _size(whole: Mapping[str, Any], path: Path, side_px: int) -> tuple[str, list[int]]:
    """Return open_clip's `resize_mode` and the height and width that every image gets."""
    mode, height, width = _sides(whole, path)
    if (height, width) != (side_px, side_px):
        fitting = f"images of {side_px} x {side_px}, as config.json has"
        _refuse(path, fitting, f"{height} x {width}")
    return mode, [height, width]


def _sides(whole: Mapping[str, Any], path: Path) -> tuple[str, int, int]:
    size, crop = whole["size"], whole.get("crop_size") if whole["do_center_crop"] else None
    size = {"shortest_edge": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        side = size["shortest_edge"]
        if crop == {"height": side, "width": side}:
            return "shortest", side, side
    if isinstance(size, dict) and set(size) == {"height", "width"} and crop in (None, size):
        return "squash", size["height"], size["width"]
    return _refuse(
        path,
        "`size` of a shortest edge and a centre crop to its square, or of height and width",
        f"`size` {size} and the crop {crop}",
    )


def _strip(whole: Mapping[str, Any], path: Path, side_px: int) -> tuple[str, list[int]]:
    """Return the size of a strip of patches, see `clipcap.patches`."""
    side, most = whole["patch_size"], whole["max_num_patches"]
    if side != side_px:
        _refuse(path, f"`patch_size` {side_px}, as config.json has", side)
    if not isinstance(most, int) or not 0 < most <= _MOST:
        _refuse(path, f"`max_num_patches` up to {_MOST}", most)
    return "patches", [(most + 1) * side_px, side_px]


def _channels(whole: Mapping[str, Any], name: str, path: Path) -> list[float]:
    value = whole[name]
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(map(_is_number, values)):
        _refuse(path, f"`{name}` of three numbers", value)
    if name == "image_std" and min(values) <= 0:
        _refuse(path, f"`{name}` over 0", value)
    return [float(one) for one in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _refuse(path: Path, wanted: str, found: object) -> NoReturn:
    raise SettingsError(
        f"{path} must say {wanted}, but says {found} instead, which this pipeline cannot do. Take "
        "the file from where the weights come from, or another model."
    )
