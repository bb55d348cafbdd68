"""Settings in; the encoder, the fingerprint and the footer of embeddings out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from clipcap import commits, layout, models, registry
from clipcap.commits import Commit, Fingerprint
from clipcap.errors import NotFoundError
from clipcap.layout import Shard
from clipcap.models import EncoderRef
from clipcap.preprocessing import PixelSettings
from clipcap.settings import Settings, digest
from clipcap.workers import WorkerSettings

if TYPE_CHECKING:
    from clipcap.encoders import Encoder

VERSION: Final = 2
"""Raised by hand when the meaning of an embedding changes."""


class EmbedSettings(Settings):
    """Which encoder makes the embeddings. Every field changes the result."""

    encoder: str = "openclip"
    """File of `clipcap/encoders` that loads the model."""
    model: str = models.BUNDLED
    """`bundled`, a folder, `hf-hub:organisation/name`, or a published name like `ViT-B-32/tag`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of the weights; `auto`: the fastest within 1e-4 (1 - cosine) of fp32."""
    pixels: PixelSettings = PixelSettings()
    """How a file becomes the pixels that the encoder looks at."""


class Speed(Settings):
    """How fast; changes no result, so it is in no fingerprint."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`."""
    batch_size: int | None = Field(default=None, gt=0)
    """Images in one forward pass; empty: what is fastest, as measured on this machine."""
    prefetch: int | None = Field(default=None, gt=0)
    """Batches that are decoded ahead of the model; empty: as many as keep all processes busy."""
    decode: WorkerSettings = WorkerSettings()
    """The processes that decode beside the model, and what one image may take of them."""


def reference(settings: EmbedSettings) -> EncoderRef:
    """Return the encoder's name and digests, without loading it.

    Raises:
        SettingsError: nobody knows the model.
        HubError: it is not on this machine and the hub does not answer.
    """
    registry.load("clipcap.encoders", settings.encoder)
    return models.encoder(settings.model)


def recipe(settings: EmbedSettings, ref: EncoderRef) -> str:
    """Return the digest of everything but the images that makes an embedding what it is."""
    module = registry.load("clipcap.encoders", settings.encoder)
    identity = module.identity(
        ref, module.Settings(model=settings.model, precision=settings.precision)
    )
    pixels = settings.pixels.model_dump()
    return digest(["embed", VERSION, layout.CONTRACT, settings.encoder, identity, pixels])


def load(settings: EmbedSettings, speed: Speed) -> Encoder:
    """Return the encoder; loaded once in a process."""
    module = registry.load("clipcap.encoders", settings.encoder)
    chosen = module.Settings(
        model=settings.model, device=speed.device, precision=settings.precision
    )
    encoder: Encoder = module.load(chosen)
    return encoder


def wanted(settings: EmbedSettings, shard: Shard, *, out: str) -> Fingerprint:
    """Return the fingerprint that the embeddings of a shard must have."""
    found = commits.find(layout.manifest(out, shard))
    if found is None:
        raise NotFoundError(f"The shard {shard} has no manifest in {out}: it does not count.")
    return Fingerprint(recipe(settings, reference(settings)), found.metadata["members"])


def committed(shard: Shard, ref: EncoderRef, *, out: str) -> Commit:
    """Return the embeddings of a shard, of whichever images and weights they are.

    Raises:
        NotFoundError: the shard is not embedded.
    """
    found = commits.find(layout.embeddings(out, shard, model_id=ref.model_id))
    if found is None:
        raise NotFoundError(
            f"The shard {shard} has no embeddings by {ref.model_id}: embed it first."
        )
    return found


def metadata(ref: EncoderRef, scale: dict[str, str]) -> dict[str, str]:
    """Return what the footer says of the model; `scale` comes from `scale_of`."""
    return {
        "model_id": ref.model_id,
        "model_sha256": ref.sha256,
        "preprocess": ref.preprocess_json,
        "preprocess_sha256": ref.preprocess_sha256,
        "dim": str(ref.dim),
        "normalized": "true",
        "value_precision": "float16",
        **scale,
    }


def scale_of(found: Encoder | Commit) -> dict[str, str]:
    """Return the model's logit scale and bias as footer text."""
    if isinstance(found, Commit):
        return {name: text for name, text in found.metadata.items() if name in _SCALE}
    pairs = zip(_SCALE, (found.logit_scale, found.logit_bias), strict=True)
    return {name: repr(value) for name, value in pairs if value is not None}


_SCALE: Final = ("logit_scale", "logit_bias")
