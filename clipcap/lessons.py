"""Embeddings and what is said of them in, what is learned in which order and what is held out out.

Texts without images come first: by them the captioner learns to write, and then to look. The
embedding of a text stands in the place of an image's (arXiv:2211.00575).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from clipcap.batches import Captions, Counts, held_out, tokenised
from clipcap.captioner import Captioner, require_embeddings
from clipcap.errors import SettingsError
from clipcap.training import TrainSettings

log = logging.getLogger(__name__)

_UNKNOWN: Final = 0.1  # more, and captions lack what they are about
WITH_VIEWS: Final = 3
"""Axes of embeddings with views."""


@dataclass(frozen=True, slots=True)
class Examples:
    """N embeddings in the mapper's own scale, and what is said of each.

    With V views of each, as `embedding_NVD`, the first is the image itself.
    """

    embedding_ND: Tensor
    captions: Sequence[Sequence[str]]
    texts: int = 0
    """So many of the last rows are embeddings of texts, and say the text itself."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Captions that are learned for some steps, with a warm-up and a decay of their own."""

    data: Captions
    steps: int
    noise: float
    """Standard deviation of what is added to each number of an embedding."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """A training before it begins."""

    phases: tuple[Phase, ...]
    validation: Captions
    rows_held_out: tuple[int, ...]
    counts: Counts
    captions: int
    """Captions of images that are learned."""
    texts: int
    """Texts that are learned."""

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def before(self) -> int:
        """Steps before the last phase."""
        return self.steps - self.phases[-1].steps


def plan(examples: Examples, captioner: Captioner, settings: TrainSettings) -> Lessons:
    """Tokenise, hold out, and put texts before the captions of images.

    Images are held out where any has captions, else texts. A text that is a caption of an image
    held out is not learned.

    Raises:
        SettingsError: rows and captions do not pair up, nothing to learn from or too little to
            measure, numbers that are not finite, or a tokenizer that cannot end a caption.
    """
    _require_pairs(examples, captioner)
    settings = _in_scale(settings, examples, captioner)
    stop_token = captioner.stop_token(settings.stop)
    data, counts = tokenised(
        examples.captions, captioner.tokenizer, stop_token, settings.max_tokens
    )
    if counts.cut or counts.blank:
        log.warning(
            "%d captions are cut at %d tokens, %d are left out for they say nothing",
            counts.cut, settings.max_tokens, counts.blank,
        )  # fmt: skip
    if counts.unknown_share > _UNKNOWN:
        log.warning(
            "the language model has no word for %.0f %% of the captions' tokens, and will write "
            "none: train from another one (`start`)", 100 * counts.unknown_share,
        )  # fmt: skip
    captioner.require_room(data.token_ST.shape[1])
    rows = len(examples.embedding_ND)
    said, texts = data.split(data.row_S >= rows - examples.texts)
    is_text = not len(said)
    training, validation = _held_out(texts if is_text else said, rows, settings)
    phases = [_phase(training, settings, is_text=is_text)]
    if len(said) and len(texts):
        texts = texts.unlike(validation)
        first = settings.model_copy(update={"epochs": settings.texts.epochs, "steps": None})
        phases[:0] = [_phase(texts, first, is_text=True)] if len(texts) else []
    return Lessons(
        phases=tuple(phases),
        validation=validation,
        rows_held_out=tuple(torch.unique(validation.row_S).tolist()),
        counts=counts,
        captions=0 if is_text else len(training),
        texts=len(training) if is_text else len(texts),
    )


def _require_pairs(examples: Examples, captioner: Captioner) -> None:
    rows, lists = len(examples.embedding_ND), len(examples.captions)
    axes = examples.embedding_ND.ndim
    each_view = examples.embedding_ND.flatten(0, 1) if axes == WITH_VIEWS else examples.embedding_ND
    require_embeddings(each_view, captioner.card.encoder.dim)
    if lists != rows:
        raise SettingsError(
            f"There must be one list of captions per embedding, but there are {lists} "
            f"lists for {rows} embeddings instead."
        )


def _held_out(data: Captions, rows: int, settings: TrainSettings) -> tuple[Captions, Captions]:
    """Return what is for training and what is for measuring."""
    training, validation = data.split(held_out(data, rows, settings)[data.row_S])
    if not len(validation) and (settings.patience or settings.measure == "cider"):
        raise SettingsError(
            "`patience` and `measure: cider` need images that are held out, but none is: raise "
            f"`validation_share` ({settings.validation_share:g})."
        )
    return training, validation


def _phase(data: Captions, settings: TrainSettings, *, is_text: bool) -> Phase:
    steps = settings.steps or settings.epochs * math.ceil(len(data) / settings.batch_size)
    return Phase(data, steps, settings.texts.noise if is_text else settings.embedding_noise)


def _in_scale(settings: TrainSettings, examples: Examples, captioner: Captioner) -> TrainSettings:
    """Return settings whose noise of texts is for embeddings as long as theirs, not of length 1."""
    if captioner.card.normalized or not examples.texts:
        return settings
    length = float(examples.embedding_ND[-examples.texts :].norm(dim=-1).mean())
    texts = settings.texts.model_copy(update={"noise": settings.texts.noise * length})
    return settings.model_copy(update={"texts": texts})
