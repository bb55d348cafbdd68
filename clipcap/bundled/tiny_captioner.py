"""Embeddings of drawn scenes and their captions in, a tiny ClipCap captioner folder out.

Made by the project's own trainer, from stored embeddings alone, with a language model that starts
from random weights and learns together with the mapper.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from clipcap import captioner as captioners
from clipcap import models
from clipcap.bundled import words
from clipcap.bundled.scenes import Scene, caption
from clipcap.captioner import Captioner
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.progress import Hooks, Progress
from clipcap.settings import digest
from clipcap.trainer import TrainMetrics, train
from clipcap.training import TrainSettings

log = logging.getLogger(__name__)

CAPTIONER_ID = "clipcap-tiny"
PREFIX_LENGTH = 4
MAX_TOKENS = 20
NOTE = (
    "Knows only the picture-book scenes that the project draws itself; what it says of photographs "
    "means nothing. Captions of photographs need a real model."
)

_SHAPE: dict[str, JsonValue] = {
    "n_positions": 96, "n_embd": 128, "n_layer": 2, "n_head": 4,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
_TOLD = {
    "language_model", "epochs", "steps", "batch_size", "learning_rate", "warmup_steps",
    "weight_decay", "clip_norm", "embedding_noise", "max_tokens", "stop", "validation_share",
    "validations", "seed",
}  # fmt: skip
"""The settings that the shipped card tells; the others are off."""
_PLAIN: dict[str, Any] = {"packing": False, "precision": "fp32", "keep": "last"}
"""One caption a row in float32: so the weights that are shipped were made."""


def settings(seed: int, epochs: int) -> TrainSettings:
    """How the tiny captioner is trained."""
    return TrainSettings(
        language_model="finetune",
        epochs=epochs,
        batch_size=128,
        learning_rate=2e-3,
        weight_decay=0.01,
        embedding_noise=0.005,
        max_tokens=MAX_TOKENS,
        validation_share=0.02,
        seed=seed,
        **_PLAIN,
    )


def make(
    encoder_folder: Path, embedding_ND: Tensor, scenes: Sequence[Scene], chosen: TrainSettings
) -> Captioner:
    """Train a captioner for the encoder of that folder; `embedding_ND` as the table stores it."""
    tokenizer = words.tokenizer(for_clip=False)
    size = len(words.vocabulary())
    ends: dict[str, JsonValue] = {
        "vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1,
    }  # fmt: skip
    language_model = captioners.random_language_model("gpt2", _SHAPE | ends, seed=chosen.seed)
    captions = [[caption(scene)] for scene in scenes]
    captioner = captioners.new(_card(encoder_folder), language_model, tokenizer, seed=chosen.seed)
    metrics = train(
        embedding_ND, captions, captioner, chosen, hooks=Hooks(on_progress=_log_progress)
    )
    training = told(chosen, metrics, digest(captions))
    captioner.card = captioner.card.model_copy(update={"training": training})
    return captioner


def _card(encoder_folder: Path) -> Card:
    found = models.encoder(str(encoder_folder))
    return Card(
        captioner_id=CAPTIONER_ID,
        note=NOTE,
        encoder=EncoderFit(
            model_id=models.BUNDLED_ENCODER_ID,
            sha256=found.sha256,
            preprocess_sha256=found.preprocess_sha256,
            dim=found.dim,
        ),
        prefix_length=PREFIX_LENGTH,
        decode=Choice(name="beam", settings={"max_tokens": MAX_TOKENS}),
    )


def told(chosen: TrainSettings, metrics: TrainMetrics, data_digest: str) -> dict[str, JsonValue]:
    """Return what the card says of the training."""
    return {
        "settings": chosen.model_dump(mode="json", include=_TOLD),
        "captions": metrics.captions_trained,
        "validation_loss": metrics.validation_loss,
        "data_sha256": data_digest,
    }


def _log_progress(progress: Progress) -> None:
    if progress.validation_loss is not None or progress.step % 100 == 0:
        log.info(
            "captioner step %d of %d: loss %.4f, held out %s",
            progress.step,
            progress.steps,
            progress.loss,
            progress.validation_loss,
        )


def stored(embedding_ND: Tensor) -> Tensor:
    """Round unit vectors as the embeddings table does: to float16, kept as float32."""
    return embedding_ND.to(torch.float16).float()
