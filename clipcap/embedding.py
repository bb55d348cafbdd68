"""Manifest rows and their tar in, embedding rows out: the encoder, its settings and fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipcap import commits, images, layout, models, registry, storage
from clipcap.commits import Commit, Fingerprint
from clipcap.errors import ImageError, NotFoundError, StorageError
from clipcap.images import ImageSettings
from clipcap.intake import Refused
from clipcap.layout import Run, Shard
from clipcap.models import EncoderRef
from clipcap.planning import Todo
from clipcap.sample import Bytes, Sample
from clipcap.settings import Settings, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.encoders import Encoder

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Raised by hand when the meaning of an embedding changes."""
_TOLD: set[str] = set()
_AHEAD: Final = 2  # batches decoded while the model runs on another: bounds the memory


class EmbedSettings(Settings):
    """Which encoder makes the embeddings. Every field changes the result."""

    encoder: str = "openclip"
    """File of `clipcap/encoders` that loads the model."""
    model: str = models.BUNDLED
    """`bundled`, a folder, `hf-hub:organisation/name`, or a published name like `ViT-B-32/tag`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the weights."""


class Speed(Settings):
    """How fast; changes no result, so it is in no fingerprint."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`."""
    batch_size: int = Field(default=64, gt=0)
    """Images in one forward pass."""
    decode_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0)
    """Threads that decode and resize beside the model."""


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
    return digest(["embed", VERSION, layout.CONTRACT, settings.encoder, identity])


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


@dataclass(slots=True)
class Embedded:
    """What embedding some images gave: rows, images that gave none, seconds inside the model."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    model_s: float = 0.0


def embed_rows(
    todo: pa.Table, shard: Shard, *, run: Run, settings: EmbedSettings, speed: Speed
) -> Embedded:
    """Embed the images of some manifest rows.

    Raises:
        StorageError: the tar does not hold what the manifest says.
    """
    made = Embedded()
    if todo.num_rows == 0:
        return made
    encoder = load(settings, speed)
    tar = storage.read(layout.tar(run.out, shard))
    started = time.perf_counter()
    for batch, ready in _decoded(todo, tar, encoder, speed):
        pairs = list(zip(batch, ready, strict=True))
        made.refused += [_refused(row, e) for row, e in pairs if isinstance(e, ImageError)]
        good = [(row, tensor) for row, tensor in pairs if not isinstance(tensor, ImageError)]
        if not good:
            continue
        began = time.perf_counter()
        raw_BD = _forward(encoder, [tensor for _, tensor in good])
        made.model_s += time.perf_counter() - began
        for (row, _), raw_D in zip(good, raw_BD, strict=True):
            _keep(made, row, _row(row, raw_D, encoder.model_id, run))
        _tell_speed(encoder, shard, len(made.rows), todo.num_rows, time.perf_counter() - started)
    return made


def _tell_speed(encoder: Encoder, shard: Shard, done: int, of: int, seconds: float) -> None:
    """Log, once for each model of a process, where it runs and what its first batch promises."""
    if encoder.model_id in _TOLD or not done:
        return
    _TOLD.add(encoder.model_id)
    import torch  # noqa: PLC0415 - as in `_forward`

    on_cpu = encoder.device.type == "cpu"
    place = f"{torch.get_num_threads()} CPU threads" if on_cpu else str(encoder.device)
    rate = done / max(seconds, 1e-9)
    rest = f", about {(of - done) / rate:.0f} s for the other {of - done}" if of > done else ""
    log.info(
        "embed %s: runs on %s; first batch: %d images at %.0f images/s%s",
        shard, place, done, rate, rest,
    )  # fmt: skip


def _keep(made: Embedded, row: dict[str, Any], embedding: dict[str, Any] | None) -> None:
    if embedding is None:
        error = ImageError("model_error", "The embedding is not finite or has length 0.")
        made.refused.append(_refused(row, error))
    else:
        made.rows.append(embedding)


def _forward(encoder: Encoder, tensors: Sequence[Any]) -> NDArray[np.float32]:
    import torch  # noqa: PLC0415 - a flow reads the settings here, and must not load torch

    raw: NDArray[np.float32] = encoder.encode_images(torch.stack(list(tensors))).numpy()
    return raw


def _decoded(
    todo: pa.Table, tar: bytes, encoder: Encoder, speed: Speed
) -> Iterator[tuple[list[dict[str, Any]], list[Any]]]:
    """Yield batches of manifest rows and their preprocessed images, decoded ahead of the model."""
    found = todo.select(_NEEDED).to_pylist()
    batches = [found[at : at + speed.batch_size] for at in range(0, len(found), speed.batch_size)]
    with ThreadPoolExecutor(speed.decode_threads, thread_name_prefix="decode") as pool:

        def submit(batch: list[dict[str, Any]]) -> list[Future[Any]]:
            return [pool.submit(_preprocess, row, tar, encoder) for row in batch]

        waiting = [submit(batch) for batch in batches[:_AHEAD]]
        for n, batch in enumerate(batches):
            ready = [future.result() for future in waiting.pop(0)]
            if n + _AHEAD < len(batches):
                waiting.append(submit(batches[n + _AHEAD]))
            yield batch, ready


_NEEDED: Final = (
    "image_id", "key", "content_sha256", "member", "member_offset", "member_bytes",
    "source_uri", "source_etag", "source_bytes", "first_seen_at", "extra_json",
)  # fmt: skip


def _preprocess(row: dict[str, Any], tar: bytes, encoder: Encoder) -> Any:  # noqa: ANN401 - Tensor or ImageError
    data = tar[row["member_offset"] : row["member_offset"] + row["member_bytes"]]
    if hashlib.sha256(data).hexdigest() != row["content_sha256"]:
        raise StorageError(
            f"The tar must hold {row['member']} with the content digest of its manifest, but does "
            "not: it is cut or was changed. Run `clipcap verify`."
        )
    try:
        return encoder.preprocess(images.decode(data, _ANY_SIZE))
    except ImageError as error:
        return error


_ANY_SIZE: Final = ImageSettings(max_bytes=2**40, max_pixels=2**40, min_side_px=1)
"""An image in a manifest has passed the limits of the night that took it in."""


def _row(
    row: dict[str, Any], raw_D: NDArray[np.float32], model_id: str, run: Run
) -> dict[str, Any] | None:
    """Return one row, its numbers rounded to float16; None if there is no direction to keep."""
    norm = float(np.linalg.norm(raw_D.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0.0:
        return None
    return {
        "image_id": row["image_id"],
        "key": row["key"],
        "content_sha256": row["content_sha256"],
        "model_id": model_id,
        "embedding": (raw_D / norm).astype(np.float16).astype(np.float32),
        "embedding_norm": norm,
        "run_id": run.run_id,
    }


def _refused(row: dict[str, Any], error: ImageError) -> Refused:
    sample = Sample(row["source_uri"], row["source_etag"], row["source_bytes"], Bytes(""))
    tried = int(json.loads(row["extra_json"] or "{}").get("attempts", 0))
    return Refused(Todo(sample, row["first_seen_at"], tried), error.reason, error)


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
