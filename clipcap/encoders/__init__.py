"""Images or texts in, embeddings out: one file for each library that has encoders.

A file `clipcap/encoders/NAME.py` has `Settings`, `identity(ref, settings)`, `load(settings)`, which
returns what `Encoder` says, `forget()` and `loads`, a count. Importing one loads no model library:
flows read `Settings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from PIL import Image
    from torch import Tensor

    from clipcap.hardware import Precision


class Encoder(Protocol):
    """A loaded encoder, for every thread of a process."""

    @property
    def model_id(self) -> str:
        """Names the model in tables and Hive paths."""

    @property
    def dim(self) -> int:
        """D, the width of an embedding."""

    @property
    def sha256(self) -> str:
        """Digest of the weights file."""

    @property
    def preprocess_json(self) -> str:
        """The preprocessing, as canonical JSON."""

    @property
    def preprocess_sha256(self) -> str:
        """Digest of `preprocess_json`."""

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied by before a softmax; already taken out of its logarithm."""

    @property
    def logit_bias(self) -> float | None:
        """What is added after that, in models trained with a sigmoid (SigLIP)."""

    @property
    def device(self) -> torch.device:
        """Where the model lies."""

    @property
    def precision(self) -> Precision:
        """The number format that images are embedded in, whatever was asked for."""

    def encode_pixels(self, pixels_BHWC: Tensor) -> Callable[[], Tensor]:
        """Begin with images that are resized and cropped; return what waits for their embeddings.

        They are uint8 on the CPU and must stay as they are until the returned function has been
        called; it gives them as the model does, not normalised: float32 [B, D] on the CPU.
        """

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return one RGB image, the right way up, as the model wants it: float32 [C, H, W]."""

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """Return embeddings as the model gives them, not normalised: float32 [B, D] on the CPU."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings as the model gives them, not normalised: float32 [B, D] on the CPU."""
