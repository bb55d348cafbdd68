"""Embeddings and the captions people wrote for the same images in, a captioner folder out."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pydantic import Field

from clipcap import cards, embedding, layout, manifest, models, storage, tables
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.embedding import EmbedSettings
from clipcap.errors import NotFoundError, SettingsError
from clipcap.layout import Run
from clipcap.models import EncoderRef
from clipcap.settings import Settings, digest
from clipcap.training import TrainSettings as LoopSettings

if TYPE_CHECKING:
    from clipcap.captioner import Captioner
    from clipcap.trainer import TrainMetrics

log = logging.getLogger(__name__)

VERSION: Final = 1
"""Raised by hand when training the same data gives another captioner."""


class TrainSettings(Settings):
    """Which captioner is trained, and how."""

    name: str = "captioner"
    """Name of the new captioner; its folder is `captioners/NAME` in the output."""
    start: str = models.BUNDLED
    """Captioner whose language model training starts from, or the folder of a transformers one."""
    mapper: Choice = Choice(name="mlp")
    """File of `clipcap/mappers` and its settings."""
    prefix_length: int = Field(default=10, gt=0)
    """Vectors P that the mapper puts before the language model's input."""
    device: str = "auto"
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`."""
    loop: LoopSettings = LoopSettings()
    """Loss, steps and rates."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A captioner that was trained, or found trained already from the same data and settings."""

    folder: str
    captioner_id: str
    images: int
    captions: int
    loss: float | None
    validation_loss: float | None
    was_there: bool
    seconds: float


def train(run: Run, *, settings: TrainSettings, encoder: EmbedSettings) -> Trained:
    """Train on every live image that is embedded and has reference captions, joined by `image_id`.

    Raises:
        SettingsError: no image has both an embedding and a caption; parts that do not fit.
        NotFoundError: a shard is not embedded.
    """
    began = time.time()
    ref = embedding.reference(encoder)
    pairs = _pairs(run.out, ref)
    fingerprint = _fingerprint(pairs, settings, embedding.recipe(encoder, ref))
    folder = layout.captioner(run.out, settings.name)
    count = sum(len(texts) for texts in pairs["reference_captions"].to_pylist())
    if (old := _existing(folder)) is not None and old.training.get("fingerprint") == fingerprint:
        loss = old.training.get("validation_loss")
        return Trained(
            folder=folder,
            captioner_id=settings.name,
            images=pairs.num_rows,
            captions=count,
            loss=None,
            validation_loss=loss if isinstance(loss, float) else None,
            was_there=True,
            seconds=time.time() - began,
        )
    metrics = _train(pairs, ref, folder, settings=settings, fingerprint=fingerprint)
    last = metrics.curve[-1].loss if metrics.curve else None
    seconds = time.time() - began
    log.info(
        "train %s: %d images, %d captions, loss %s, %.1f s",
        settings.name, pairs.num_rows, count, last, seconds,
    )  # fmt: skip
    return Trained(
        folder=folder,
        captioner_id=settings.name,
        images=pairs.num_rows,
        captions=count,
        loss=last,
        validation_loss=metrics.validation_loss,
        was_there=False,
        seconds=seconds,
    )


def _pairs(out: str, ref: EncoderRef) -> pa.Table:
    """Return embeddings beside the captions of the same image and content, sorted by `image_id`."""
    parts = []
    columns = ["image_id", "content_sha256", "embedding", "embedding_norm"]
    for shard in manifest.shards(out):
        captioned = tables.read(
            layout.manifest(out, shard),
            columns=["image_id", "content_sha256", "reference_captions"],
        )
        lists = captioned["reference_captions"].to_pylist()
        captioned = captioned.filter(pa.array([bool(texts) for texts in lists], pa.bool_()))
        if captioned.num_rows == 0:
            continue
        url = layout.embeddings(out, shard, model_id=ref.model_id)
        embedded = {row["image_id"]: row for row in tables.read(url, columns=columns).to_pylist()}
        for row in captioned.to_pylist():
            vector = embedded.get(row["image_id"])
            if vector is None or vector["content_sha256"] != row["content_sha256"]:
                raise NotFoundError(
                    f"The image {row['image_id']} of {shard} is not embedded: embed first."
                )
            parts.append({**vector, "reference_captions": row["reference_captions"]})
    if not parts:
        raise SettingsError(
            f"No image in {out} has captions to learn from. Put a .txt or .json file beside each "
            "image, or give the shard stage a captions file, and run `clipcap shard` and `clipcap "
            "embed` again."
        )
    parts.sort(key=lambda row: str(row["image_id"]))
    schema = tables.embeddings_schema(ref.dim)
    texts = pa.field("reference_captions", tables.STRINGS)
    wanted = pa.schema([*(schema.field(name) for name in columns), texts])
    return tables.from_rows(parts, wanted)


def _fingerprint(pairs: pa.Table, settings: TrainSettings, embed_recipe: str) -> str:
    chosen = settings.model_dump(mode="json", exclude={"device"})
    data = [
        pairs[name].to_pylist() for name in ("image_id", "content_sha256", "reference_captions")
    ]
    return digest(["train", VERSION, embed_recipe, chosen, _start_digest(settings.start), data])


def _start_digest(start: str) -> str:
    return cards.captioner_digest(_start_folder(start))


def _start_folder(start: str) -> str:
    path = storage.local_path(start)
    if path is not None and (path / "config.json").is_file():
        return start
    return models.captioner_folder(start)


def _existing(folder: str) -> Card | None:
    if storage.info(f"{folder}/{cards.CARD_NAME}") is None:
        return None
    return cards.read_card(folder)


def _train(
    pairs: pa.Table, ref: EncoderRef, folder: str, *, settings: TrainSettings, fingerprint: str
) -> TrainMetrics:
    import torch

    from clipcap import trainer
    from clipcap.encoders.openclip import choose_device

    captioner = _untrained(ref, settings).to(choose_device(settings.device))
    embedding_ND = torch.tensor(tables.vectors(pairs))
    scaled_ND = captioner.scaled(embedding_ND, torch.tensor(pairs["embedding_norm"].to_numpy()))
    metrics = trainer.train(
        scaled_ND, pairs["reference_captions"].to_pylist(), captioner, settings.loop
    )
    every = max(1, len(metrics.curve) // 100)
    training = {
        "fingerprint": fingerprint,
        "settings": settings.loop.model_dump(mode="json"),
        "images": pairs.num_rows,
        "captions": metrics.captions_trained,
        "validation_loss": metrics.validation_loss,
        "losses": [progress.loss for progress in metrics.curve[::every]],
    }
    captioner.card = captioner.card.model_copy(update={"training": training})
    _save(captioner, folder)
    return metrics


def _untrained(ref: EncoderRef, settings: TrainSettings) -> Captioner:
    """Return a captioner with a fresh mapper before the chosen language model."""
    from clipcap import captioner

    start = _start_folder(settings.start)
    path = storage.local_path(start)
    inner = f"{start}/{cards.LANGUAGE_MODEL_NAME}"
    plain = path is not None and (path / "config.json").is_file()
    language_model, tokenizer = captioner.load_language_model(start if plain else inner)
    card = Card(
        captioner_id=settings.name,
        note=f"Trained on the captions of one image collection, from {settings.start}.",
        encoder=EncoderFit(
            model_id=ref.model_id,
            sha256=ref.sha256,
            preprocess_sha256=ref.preprocess_sha256,
            dim=ref.dim,
        ),
        prefix_length=settings.prefix_length,
        mapper=settings.mapper,
        decode=Choice(
            name="beam",
            settings={"stop": settings.loop.stop, "max_tokens": _longest(language_model, settings)},
        ),
    )
    return captioner.new(card, language_model, tokenizer, seed=settings.loop.seed)


def _longest(language_model: Any, settings: TrainSettings) -> int:  # noqa: ANN401 - transformers' own types are dynamic
    """Return the longest caption in tokens: as trained, and as the model has positions for."""
    room = getattr(language_model.config, "max_position_embeddings", None)
    longest = settings.loop.max_tokens
    return longest if room is None else min(longest, room - settings.prefix_length + 1)


def _save(captioner: Captioner, folder: str) -> None:
    """Write the folder, its card last; a folder on a store is made here first."""
    if storage.local_path(folder) is not None:
        captioner.save(folder)
        return
    with tempfile.TemporaryDirectory() as here:
        captioner.save(here)
        root = Path(here)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == cards.CARD_NAME):
            storage.write(f"{folder}/{path.relative_to(root).as_posix()}", path.read_bytes())
