"""Embeddings and the captions people wrote for the same images in, a captioner folder out."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pydantic import Field

from clipcap import captionfiles, cards, embedding, layout, models, pairs, storage, tables
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.embedding import EmbedSettings
from clipcap.layout import Run
from clipcap.models import EncoderRef
from clipcap.settings import Settings, digest
from clipcap.training import TrainSettings as LoopSettings

if TYPE_CHECKING:
    from clipcap.captioner import Captioner
    from clipcap.resume import Checkpoint
    from clipcap.trainer import TrainMetrics

log = logging.getLogger(__name__)

VERSION: Final = 2
"""Raised by hand when training the same data gives another captioner."""


class TrainSettings(Settings):
    """Which captioner is trained, and how."""

    name: str = "captioner"
    """Name of the new captioner; its folder is `captioners/NAME` in the output."""
    start: str = models.BUNDLED
    """Captioner whose language model training starts from, or the folder of a transformers one."""
    captions: str = ""
    """File of captions, joined by key, address or file name; empty: those that images came with."""
    mapper: Choice = Choice(name="mlp")
    """File of `clipcap/mappers` and its settings."""
    prefix_length: int = Field(default=10, gt=0)
    """Vectors P that the mapper puts before the language model's input."""
    device: str = "auto"
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`."""
    loop: LoopSettings = LoopSettings()
    """Loss, steps and rates."""
    checkpoint_steps: int = Field(default=500, gt=0)
    """Steps after which a killed training goes on, besides measurements; changes no result."""


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
    captions_unmatched: int = 0
    """Captions of the file whose image the output does not have."""


def train(run: Run, *, settings: TrainSettings, encoder: EmbedSettings) -> Trained:
    """Train on every live image that is embedded and has reference captions, joined by `image_id`.

    Raises:
        SettingsError: no image has both an embedding and a caption; parts that do not fit.
        NotFoundError: a shard is not embedded.
    """
    began = time.time()
    ref = embedding.reference(encoder)
    joined = captionfiles.join(settings.captions, run.out) if settings.captions else None
    found = pairs.read(run.out, ref, joined)
    fingerprint = _fingerprint(found, settings, embedding.recipe(encoder, ref))
    folder, state_url = (
        made(run.out, settings.name) for made in (layout.captioner, layout.training)
    )
    old = _existing(folder)
    was_there = old is not None and old.training.get("fingerprint") == fingerprint
    done = Trained(
        folder=folder,
        captioner_id=settings.name,
        images=found.num_rows,
        captions=sum(len(texts) for texts in found["reference_captions"].to_pylist()),
        loss=None,
        validation_loss=_validation_loss(old) if was_there else None,
        was_there=was_there,
        seconds=0.0,
        captions_unmatched=joined.unmatched if joined is not None else 0,
    )
    if not was_there:
        from clipcap.resume import Checkpoint

        checkpoint = Checkpoint(state_url, fingerprint)
        metrics = _train(found, _untrained(ref, settings), folder, checkpoint, settings)
        last = metrics.curve[-1].loss if metrics.curve else None
        done = replace(done, loss=last, validation_loss=metrics.validation_loss)
    storage.delete(state_url)
    done = replace(done, seconds=time.time() - began)
    log.info(
        "train %s: %d images, %d captions, loss %s, %.1f s",
        settings.name, done.images, done.captions, done.loss, done.seconds,
    )  # fmt: skip
    return done


def _validation_loss(card: Card | None) -> float | None:
    loss = card.training.get("validation_loss") if card is not None else None
    return loss if isinstance(loss, float) else None


def _fingerprint(found: pa.Table, settings: TrainSettings, embed_recipe: str) -> str:
    chosen = settings.model_dump(mode="json", exclude={"device", "checkpoint_steps", "captions"})
    data = [
        found[name].to_pylist() for name in ("image_id", "content_sha256", "reference_captions")
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
    found: pa.Table,
    captioner: Captioner,
    folder: str,
    checkpoint: Checkpoint,
    settings: TrainSettings,
) -> TrainMetrics:
    import torch

    from clipcap import trainer, validation
    from clipcap.encoders.openclip import choose_device
    from clipcap.progress import Hooks

    captioner.to(choose_device(settings.device))
    embedding_ND = torch.tensor(tables.vectors(found))
    norm_N = torch.tensor(found["embedding_norm"].to_numpy())
    captions = found["reference_captions"].to_pylist()
    by_cider = settings.loop.measure == "cider"
    hooks = Hooks(
        load=checkpoint.load,
        save=checkpoint.save,
        save_steps=settings.checkpoint_steps,
        score=validation.cider(embedding_ND, norm_N, captions) if by_cider else None,
    )
    scaled_ND = captioner.scaled(embedding_ND, norm_N)
    metrics = trainer.train(scaled_ND, captions, captioner, settings.loop, hooks=hooks)
    told = {"fingerprint": checkpoint.fingerprint, "images": found.num_rows}
    training = told | _told(metrics, settings)
    captioner.card = captioner.card.model_copy(update={"training": training})
    _save(captioner, folder)
    return metrics


def _told(metrics: TrainMetrics, settings: TrainSettings) -> dict[str, Any]:
    """Return what the card says of a training."""
    every = max(1, len(metrics.curve) // 100)
    return {
        "settings": settings.loop.model_dump(mode="json"),
        "captions": metrics.captions_trained,
        "validation_loss": metrics.validation_loss,
        "best_step": metrics.best_step,
        "validation": [
            {"step": now.step, "loss": now.validation_loss, "score": now.validation_score}
            for now in metrics.curve
            if now.validation_loss is not None
        ],
        "losses": [progress.loss for progress in metrics.curve[::every]],
    }


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
