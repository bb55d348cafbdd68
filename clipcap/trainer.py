"""Embeddings and their captions in, a trained captioner and its losses out; touches no file.

Unlike in the original ClipCap, padding is a mask and not token 0, and a frozen language model has
no gradient buffers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from clipcap.batches import Captions, batches, held_out, image_batches, tokenised
from clipcap.captioner import Captioner, require_embeddings
from clipcap.errors import SettingsError
from clipcap.lora import adapted
from clipcap.losses import can_pack, caption_loss, packed_loss
from clipcap.masters import Masters
from clipcap.packing import pack
from clipcap.progress import (
    NO_HOOKS,
    Best,
    Hooks,
    Progress,
    State,
    due,
    from_tensor,
    learning_rate_share,
    to_tensor,
)
from clipcap.training import TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """What a training did."""

    curve: tuple[Progress, ...]
    """Every batch, in order."""
    validation_loss: float | None
    """Of the weights that were kept; None when no image was held out."""
    captions_trained: int
    captions_held_out: int
    captions_blank: int
    """Left out because they say nothing."""
    captions_cut: int
    """Longer than `max_tokens`."""
    rows_held_out: tuple[int, ...]
    """Which images no gradient ever saw."""
    best_step: int | None = None
    """The step with the best measurement; None when no image was held out."""


def train(
    embedding_ND: Tensor,
    captions: Sequence[Sequence[str]],
    captioner: Captioner,
    settings: TrainSettings,
    *,
    hooks: Hooks = NO_HOOKS,
) -> TrainMetrics:
    """Train the captioner's mapper, and its language model unless frozen, in place.

    `embedding_ND` is in the mapper's own scale (`Captioner.scaled`), `captions[n]` belongs to row
    n. The same seed gives the same weights on a CPU, also where the training was killed and went on
    from what `hooks` kept.

    Raises:
        SettingsError: rows and captions do not pair up, no caption to learn from, numbers that are
            not finite, a tokenizer that cannot end a caption, or a loss that ran away.
    """
    require_embeddings(embedding_ND, captioner.card.encoder.dim)
    _require_pairs(embedding_ND, captions)
    stop_token = captioner.stop_token(settings.stop)
    data, counts = tokenised(captions, captioner.tokenizer, stop_token, settings.max_tokens)
    if counts.cut or counts.blank:
        log.warning("captions cut: %d, left out for they say nothing: %d", counts.cut, counts.blank)
    captioner.require_room(data.token_ST.shape[1])
    device = captioner.device
    held_out_N = held_out(data, len(embedding_ND), settings)
    held_out_S = held_out_N[data.row_S]
    training, validation = (data.take(m.nonzero().flatten()) for m in (~held_out_S, held_out_S))
    _require_measurable(validation, settings)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        rows = tuple(held_out_N.nonzero().flatten().tolist())
        with _learning(captioner, settings):
            loop = _Loop(captioner, embedding_ND.to(device).float(), settings)
            curve = loop.run(training, validation, rows, hooks)
    kept = loop.best.step if settings.keep == "best" else len(curve)
    return TrainMetrics(
        curve=tuple(curve),
        validation_loss=curve[kept - 1].validation_loss if kept else None,
        captions_trained=len(training),
        captions_held_out=len(validation),
        captions_blank=counts.blank,
        captions_cut=counts.cut,
        rows_held_out=rows,
        best_step=loop.best.step or None,
    )


def _require_pairs(embedding_ND: Tensor, captions: Sequence[Sequence[str]]) -> None:
    if len(captions) != len(embedding_ND):
        raise SettingsError(
            f"There must be one list of captions per embedding, but there are {len(captions)} "
            f"lists for {len(embedding_ND)} embeddings instead."
        )


def _require_measurable(validation: Captions, settings: TrainSettings) -> None:
    if not len(validation) and (settings.patience or settings.measure == "cider"):
        raise SettingsError(
            "`patience` and `measure: cider` need images that are held out, but none is: raise "
            f"`validation_share` ({settings.validation_share:g})."
        )


def _learning(captioner: Captioner, settings: TrainSettings) -> AbstractContextManager[None]:
    """Put the small matrices beside the language model where they are what learns."""
    if settings.language_model != "lora":
        return nullcontext()
    return adapted(captioner.language_model, settings.lora)


class _Loop:
    """One training run: what the batches have in common."""

    def __init__(self, captioner: Captioner, embedding_ND: Tensor, settings: TrainSettings) -> None:
        self.captioner = captioner
        self.settings = settings
        self.masters = Masters(captioner, settings)
        self.best = Best()
        self.embedding_ND = embedding_ND
        self.packed = settings.packing and _can_pack(captioner)

    def run(
        self, training: Captions, validation: Captions, rows: Sequence[int], hooks: Hooks
    ) -> list[Progress]:
        settings = self.settings
        per_epoch = math.ceil(len(training) / settings.batch_size)
        steps = settings.steps or settings.epochs * per_epoch
        curve = self._resumed(hooks, steps)
        self.masters.learn()
        order = (image_batches if self.packed else batches)(training, settings)
        for _ in curve:
            next(order)
        while len(curve) < steps and not self._is_stale():
            step = len(curve) + 1
            rate = self._set_learning_rate(step, steps)
            loss = self._step(training, next(order))
            if not math.isfinite(loss):
                raise SettingsError(
                    f"The loss must be finite, but is {loss} at step {step} of {steps} instead. "
                    f"Lower `learning_rate` ({settings.learning_rate}) or set `clip_norm`."
                )
            curve.append(Progress(step, steps, loss, rate))
            self._told(curve, validation, rows, hooks)
        if settings.keep == "best":
            self.best.put_back(self.masters.weights)
        self.captioner.eval()
        return curve

    def _told(
        self, curve: list[Progress], validation: Captions, rows: Sequence[int], hooks: Hooks
    ) -> None:
        """Measure and save where that is due, and tell of the last step."""
        now = curve[-1]
        measuring = due(now.step, now.steps, self.settings.validations)
        if measuring and len(validation):
            score = hooks.score(self.captioner, rows) if hooks.score else None
            now = replace(now, validation_loss=self._measure(validation), validation_score=score)
            curve[-1] = now
            self.best.offer(now, self.masters.weights, keep=self.settings.keep == "best")
        if hooks.on_progress is not None:
            hooks.on_progress(now)
        saving = measuring or now.step % hooks.save_steps == 0
        if hooks.save is not None and saving and now.step < now.steps:
            hooks.save(self._state(curve))

    def _is_stale(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best.later >= patience

    def _state(self, curve: list[Progress]) -> State:
        state = self.masters.state() | self.best.state()
        state |= {"curve": to_tensor(curve), "random.cpu": torch.get_rng_state()}
        if self.captioner.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.captioner.device)
        return state

    def _resumed(self, hooks: Hooks, steps: int) -> list[Progress]:
        """Go on from what was kept; return the curve up to there."""
        state = hooks.load() if hooks.load is not None else None
        if state is None:
            return []
        self.masters.restore(state)
        self.best.restore(state)
        torch.set_rng_state(state["random.cpu"])
        if self.captioner.device.type == "cuda" and "random.cuda" in state:
            torch.cuda.set_rng_state(state["random.cuda"], self.captioner.device)
        curve = from_tensor(state["curve"], steps)
        log.info("training goes on after step %d of %d", len(curve), steps)
        return curve

    def _set_learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up from 0, then linear decay to 0, counted as in the original."""
        warmup = self.settings.warmup_steps
        share = learning_rate_share(step - 1, steps, steps // 20 if warmup is None else warmup)
        for group in self.masters.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * share
        return self.settings.learning_rate * share

    def _step(self, training: Captions, index_B: Tensor) -> float:
        count = training.length_S[index_B].sum()
        total = torch.zeros((), device=self.captioner.device)
        for part_B in torch.tensor_split(index_B, min(self.settings.accumulate, len(index_B))):
            loss = self._loss(training.take(part_B), noisy=True) / count
            loss.backward()  # type: ignore[no-untyped-call]
            self.masters.gather()
            total += loss.detach()
        self.masters.step(self.settings.clip_norm)
        return float(total)

    def _loss(self, batch: Captions, *, noisy: bool) -> Tensor:
        """Return the summed cross entropy of a batch."""
        if not self.packed:
            batch = batch.to(self.captioner.device)
            embedding_BD = self._read(batch.row_S, noisy=noisy)
            reading = self.masters.reading
            return caption_loss(reading, embedding_BD, batch.token_ST, batch.mask())
        rows = pack(batch, self.captioner.card.prefix_length).to(self.captioner.device)
        embedding_ID = self._read(rows.image_I, noisy=noisy)
        return packed_loss(self.masters.reading, embedding_ID, rows)

    def _read(self, row_B: Tensor, *, noisy: bool) -> Tensor:
        embedding_BD = self.embedding_ND[row_B]
        return (self._noisy(embedding_BD) if noisy else embedding_BD).to(self.masters.dtype)

    def _noisy(self, embedding_BD: Tensor) -> Tensor:
        if not self.settings.embedding_noise:
            return embedding_BD
        noisy_BD = embedding_BD + self.settings.embedding_noise * torch.randn_like(embedding_BD)
        return functional.normalize(noisy_BD) if self.captioner.card.normalized else noisy_BD

    def _measure(self, validation: Captions) -> float:
        self.masters.reading.eval()
        total = 0.0
        with torch.inference_mode():
            order_S = (validation.row_S if self.packed else validation.length_S).argsort()
            for index_B in torch.split(order_S, 4 * self.settings.batch_size):
                total += float(self._loss(validation.take(index_B), noisy=False))
        self.masters.learn()
        return total / int(validation.length_S.sum())


def _can_pack(captioner: Captioner) -> bool:
    able = can_pack(captioner)
    if not able:
        log.warning(
            "%s reads no packed captions: each stands behind a prefix of its own, which takes "
            "several times as long", type(captioner.language_model).__name__,
        )  # fmt: skip
    return able
