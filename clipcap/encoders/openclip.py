"""Images or texts in, raw embeddings out, with any open_clip model.

The only file that imports open_clip, and only once a model is loaded: open_clip needs seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from clipcap import encoding, models
from clipcap.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Settings = encoding.Settings
Encoder = encoding.Encoder
identity = encoding.identity


def _build(ref: models.EncoderRef, wanted: encoding.Wanted, device: torch.device) -> Encoder:
    import open_clip  # noqa: PLC0415 - seconds
    import torch  # noqa: PLC0415 - a flow reads `Settings` without it

    from clipcap import precision, prepacked  # noqa: PLC0415 - they import torch

    local = ref.model_spec.startswith(models.LOCAL)
    with encoding.fitted(ref, device, "open_clip"):
        model, _, preprocess = open_clip.create_model_and_transforms(
            ref.model_spec,
            pretrained=None if local else ref.weights,
            device=device,
            image_mean=ref.preprocess["mean"],
            image_std=ref.preprocess["std"],
            image_interpolation=ref.preprocess["interpolation"],
            image_resize_mode=ref.preprocess["resize_mode"],
        )
        tokenize = _tokenizer(ref)
        _require_same_preprocess(ref, model.visual.preprocess_cfg)
        model.eval().visual.to(memory_format=torch.channels_last)  # as pixels lie
        chosen = precision.apply(model, wanted, ref, device)
        prepacked.pack(model)
    return Encoder(ref, model, preprocess, tokenize, chosen)


def _tokenizer(ref: models.EncoderRef) -> Callable[[list[str]], Tensor]:
    """Return what `open_clip.get_tokenizer` would, but from a folder and never with foreign code.

    By the name of a repository it asks the hub for files that the repository does not even have,
    and a configuration may tell it to run code.
    """
    import open_clip  # noqa: PLC0415 - seconds
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer  # noqa: PLC0415 - as above

    if ref.tokenizer is None:
        return cast("Callable[[list[str]], Tensor]", open_clip.get_tokenizer(ref.model_spec))
    text = open_clip.get_model_config(ref.model_spec)["text_cfg"]
    tokenizer = HFTokenizer(
        ref.tokenizer,
        context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}) | {"trust_remote_code": False},
    )
    return cast("Callable[[list[str]], Tensor]", tokenizer)


def _require_same_preprocess(ref: models.EncoderRef, loaded: dict[str, Any]) -> None:
    """Refuse a model whose preprocessing is not the one that its digest was made of."""
    size = loaded["size"]
    whole = loaded | {
        "size": list(size) if isinstance(size, tuple | list) else [size, size],
        "mean": list(loaded["mean"]),
        "std": list(loaded["std"]),
    }
    if whole != ref.preprocess:
        raise SettingsError(
            f"The preprocessing of {ref.name!r} must be {ref.preprocess}, but open_clip made "
            f"{whole} of it. Make `preprocess_cfg` in open_clip_config.json agree with `model_cfg`."
        )


_LOADER = encoding.Loader("openclip", _build)
load, forget, loads = _LOADER.load, _LOADER.forget, _LOADER.loads
