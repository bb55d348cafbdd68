"""A CLIP or SigLIP model of transformers in, the same with the face of open_clip's models out.

So precision, packing and batches need to know one kind of model. The class itself is given: what
knows transformers is `clipcap/encoders/transformers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipcap import patches


class Visual(nn.Module):
    """The tower for images; what its last product gives is an embedding."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - of three classes
        super().__init__()
        self.tower: Any = model.vision_model
        self.projection: nn.Module = getattr(model, "visual_projection", nn.Identity())
        head = getattr(self.tower, "head", None)
        if head is not None:  # what is added up behind it stays in float32 in any number format
            head.attention.register_forward_hook(_in_float32)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return embeddings [B, D]."""
        found: Tensor = self.projection(self.tower(pixel_values=images_BCHW).pooler_output)
        return found


class PatchVisual(Visual):
    """The same for strips of patches (`clipcap.patches`)."""

    def __init__(self, model: Any, preprocess: Mapping[str, Any]) -> None:  # noqa: ANN401 - as above
        super().__init__(model)
        self.mean_C = nn.Buffer(torch.tensor(preprocess["mean"]))
        self.std_C = nn.Buffer(torch.tensor(preprocess["std"]))

    @property
    def sees_pixels(self) -> nn.Module:
        """The layer that stays in float32 in any number format, as a first convolution does."""
        found: nn.Module = self.tower.embeddings.patch_embedding
        return found

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return embeddings [B, D]."""
        patches_BNF, counts_BN, shape_B2 = patches.read(images_BCHW, self.mean_C, self.std_C)
        found: Tensor = self.tower(
            pixel_values=patches_BNF, pixel_attention_mask=counts_BN, spatial_shapes=shape_B2
        ).pooler_output
        return found


class Model(nn.Module):
    """Both towers and the scale between them, as open_clip has them."""

    def __init__(self, model: Any, preprocess: Mapping[str, Any]) -> None:  # noqa: ANN401 - as above
        super().__init__()
        in_patches = preprocess["resize_mode"] == "patches"
        self.visual = PatchVisual(model, preprocess) if in_patches else Visual(model)
        self._text: Any = model.text_model
        self._projection: nn.Module = getattr(model, "text_projection", nn.Identity())
        self.logit_scale: nn.Parameter = model.logit_scale
        self.logit_bias: nn.Parameter | None = getattr(model, "logit_bias", None)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Return embeddings of normalised images, [B, D]."""
        found: Tensor = self.visual(images_BCHW)
        return found

    def encode_text(self, tokens_BKT: Tensor) -> Tensor:
        """Return embeddings of texts, [B, D].

        Args:
            tokens_BKT: token numbers, then, where K is 2, what of them counts: int64 [B, K, T].
        """
        mask_BT = tokens_BKT[:, 1] if tokens_BKT.shape[1] > 1 else None
        states = self._text(input_ids=tokens_BKT[:, 0], attention_mask=mask_BT)
        found: Tensor = self._projection(states.pooler_output)
        return found


def _in_float32(_module: nn.Module, _args: object, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (out[0].to(torch.float32), *out[1:])
