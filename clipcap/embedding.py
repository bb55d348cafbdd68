"""Settings in; the encoder, the fingerprint and the footer of embeddings out."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from clipcap import commits, layout, manifest, models, registry
from clipcap.commits import Commit, Fingerprint
from clipcap.errors import NotFoundError, SettingsError
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

    encoder: str = "auto"
    """File of `clipcap/encoders` that loads the model; `auto` sees it from the model's files."""
    model: str = models.BUNDLED
    """`bundled`, a folder, `hf-hub:organisation/name`, `organisation/name` as transformers takes
    it, or a published name of open_clip like `ViT-B-32/tag`."""
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
    ref = models.encoder(settings.model)
    _library(settings, ref)
    return ref


def recipe(settings: EmbedSettings, ref: EncoderRef) -> str:
    """Return the digest of everything but the images that makes an embedding what it is."""
    module = _library(settings, ref)
    identity = module.identity(
        ref, module.Settings(model=settings.model, precision=settings.precision)
    )
    pixels, library = settings.pixels.model_dump(), module.__name__.rpartition(".")[2]
    return digest(["embed", VERSION, layout.RECIPES, library, identity, pixels])


def load(settings: EmbedSettings, speed: Speed) -> Encoder:
    """Return the encoder; loaded once in a process."""
    module = _library(settings, models.encoder(settings.model))
    chosen = module.Settings(
        model=settings.model, device=speed.device, precision=settings.precision
    )
    encoder: Encoder = module.load(chosen)
    return encoder


def _library(settings: EmbedSettings, ref: EncoderRef) -> ModuleType:
    """Return the file of `clipcap/encoders` that loads a model."""
    name = ref.loader if settings.encoder == "auto" else settings.encoder
    return registry.load("clipcap.encoders", name)


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


def current(shard: Shard, ref: EncoderRef, *, out: str) -> Commit:
    """Return the embeddings of a shard, sure that these weights made them.

    Raises:
        NotFoundError: the shard is not embedded.
        SettingsError: the embeddings are of other weights.
    """
    found = committed(shard, ref, out=out)
    require_same(found, ref)
    return found


def require_same(found: Commit, ref: EncoderRef) -> None:
    """Do nothing where embeddings were made with the weights of an encoder.

    Raises:
        SettingsError: they were not.
    """
    made_with = found.metadata.get("model_sha256", "")
    if made_with != ref.sha256:
        raise SettingsError(
            f"The embeddings {found.url} must be made by {ref.model_id} with weights "
            f"{ref.sha256[:12]}, but are made with {made_with[:12]} instead. Embed again."
        )


def of_output(out: str, ref: EncoderRef) -> dict[Shard, Commit]:
    """Return the embeddings of every shard of an output, all by the weights of an encoder.

    Raises:
        NotFoundError: there is no image, or a shard is not embedded.
        SettingsError: they are of other weights.
    """
    found = {shard: current(shard, ref, out=out) for shard in manifest.shards(out)}
    if not found:
        raise NotFoundError(
            f"There must be images in {out}, but there are none. `clipcap run` makes them."
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
