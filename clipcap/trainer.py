"""Embeddings and their captions in, a trained captioner and its losses out; touches no file.

Unlike in the original ClipCap, padding is a mask and not token 0, and a frozen language model has
no gradient buffers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from clipcap import parallel
from clipcap.batches import Captions, batches, image_batches
from clipcap.captioner import Captioner
from clipcap.dropout import dropped
from clipcap.errors import SettingsError
from clipcap.lessons import WITH_VIEWS, Examples, Lessons, Phase, plan
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
    line,
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
    texts_trained: int = 0
    """Texts without an image."""
    text_steps: int = 0
    """Steps of texts before those of captions of images."""


def train(
    embedding_ND: Tensor,
    captions: Sequence[Sequence[str]],
    captioner: Captioner,
    settings: TrainSettings,
    *,
    hooks: Hooks = NO_HOOKS,
) -> TrainMetrics:
    """Train on images and their captions, in place; see `learn`.

    `embedding_ND` is in the mapper's own scale (`Captioner.scaled`), `captions[n]` belongs to row
    n. As `embedding_NVD` it has V views of each image: every step draws one, and what is held out
    is measured on the first, the image itself.
    """
    return learn(Examples(embedding_ND, captions), captioner, settings, hooks=hooks)


def learn(
    examples: Examples, captioner: Captioner, settings: TrainSettings, *, hooks: Hooks = NO_HOOKS
) -> TrainMetrics:
    """Train the captioner's mapper, and its language model unless frozen, in place.

    The same seed gives the same weights on a CPU, also where the training was killed and went on
    from what `hooks` kept.

    Raises:
        SettingsError: rows and captions do not pair up, no caption to learn from, numbers that are
            not finite, a tokenizer that cannot end a caption, or a loss that ran away.
    """
    lessons = plan(examples, captioner, settings)
    device = captioner.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        with _learning(captioner, settings):
            loop = _Loop(captioner, examples.embedding_ND.to(device).float(), settings)
            curve = loop.run(lessons, hooks)
    kept = loop.best.step if settings.keep == "best" else len(curve)
    return TrainMetrics(
        curve=tuple(curve),
        validation_loss=curve[kept - 1].validation_loss if kept else None,
        captions_trained=lessons.captions,
        captions_held_out=len(lessons.validation),
        captions_blank=lessons.counts.blank,
        captions_cut=lessons.counts.cut,
        rows_held_out=lessons.rows_held_out,
        best_step=loop.best.step or None,
        texts_trained=lessons.texts,
        text_steps=lessons.before,
    )


@contextmanager
def _learning(captioner: Captioner, settings: TrainSettings) -> Iterator[None]:
    """Put the small matrices beside the language model where they are what learns."""
    model = captioner.language_model
    small = adapted(model, settings.lora) if settings.language_model == "lora" else nullcontext()
    with dropped(model, settings.dropout), small:
        yield


class _Loop:
    """One training run: what the batches have in common."""

    def __init__(self, captioner: Captioner, embedding_ND: Tensor, settings: TrainSettings) -> None:
        self.captioner = captioner
        self.settings = settings
        self.team = parallel.current(captioner.device)
        self.masters = Masters(captioner, settings)
        self.best = Best()
        self.embedding_ND = embedding_ND
        self.packed = settings.packing and _can_pack(captioner)
        self.began = (0, 0.0)
        self.noise = 0.0  # of the phase that is learned now

    def run(self, lessons: Lessons, hooks: Hooks) -> list[Progress]:
        settings = self.settings
        curve = self._resumed(hooks, lessons.steps)
        self.began = (len(curve), time.monotonic())
        self.masters.learn()
        for phase, done, index_B in islice(self._turns(lessons.phases), len(curve), None):
            if self._is_stale():
                break
            step = len(curve) + 1
            self.noise = phase.noise
            self.team.draw_apart(settings.seed, step)
            rate = self._set_learning_rate(done, phase.steps)
            loss = self._step(phase.data, index_B)
            if not math.isfinite(loss):
                raise SettingsError(
                    f"The loss must be finite, but is {loss} at step {step} of {lessons.steps} "
                    f"instead. Lower `learning_rate` ({settings.learning_rate}) or set `clip_norm`."
                )
            curve.append(Progress(step, lessons.steps, loss, rate))
            self._told(curve, lessons, hooks)
        if settings.keep == "best":
            self.best.put_back(self.masters.weights)
        self.captioner.eval()
        return curve

    def _turns(self, phases: Iterable[Phase]) -> Iterator[tuple[Phase, int, Tensor]]:
        """Yield the captions of each step, with its phase and the phase's steps before it."""
        for phase in phases:
            order = (image_batches if self.packed else batches)(phase.data, self.settings)
            for done in range(phase.steps):
                yield phase, done, next(order)

    def _told(self, curve: list[Progress], lessons: Lessons, hooks: Hooks) -> None:
        """Measure and save where that is due, and tell of the last step."""
        now = curve[-1]
        measuring = due(now.step, now.steps, self.settings.validations)
        if measuring and len(lessons.validation):
            now = curve[-1] = self._measured(now, lessons, hooks)
            self.best.offer(now, self.masters.weights, keep=self.settings.keep == "best")
            if now.step <= lessons.before:
                self.best.later = 0  # else `patience` may end what has not begun
        if hooks.on_progress is not None:
            hooks.on_progress(now)
        if measuring and self.team.is_first:
            before, at = self.began
            log.info("%s", line(now, done=now.step - before, seconds=time.monotonic() - at))
        saving = self.team.is_first and (measuring or now.step % hooks.save_steps == 0)
        if hooks.save is not None and saving and now.step < now.steps:
            hooks.save(self._state(curve))

    def _measured(self, now: Progress, lessons: Lessons, hooks: Hooks) -> Progress:
        found = [math.nan, math.nan]
        if self.team.is_first:
            if hooks.score is not None:
                found[1] = hooks.score(self.captioner, lessons.rows_held_out)
            found[0] = self._measure(lessons.validation)
        loss, score = self.team.first(found)
        return replace(now, validation_loss=loss, validation_score=score if hooks.score else None)

    def _is_stale(self) -> bool:
        return self.best.later >= (self.settings.patience or math.inf)

    def _state(self, curve: list[Progress]) -> State:
        state = self.masters.state() | self.best.state()
        state |= {"curve": to_tensor(curve), "random.cpu": torch.get_rng_state()}
        if self.captioner.device.type == "cuda":
            state["random.cuda"] = torch.cuda.get_rng_state(self.captioner.device)
        return state

    def _resumed(self, hooks: Hooks, steps: int) -> list[Progress]:
        """Go on from what was kept; return the curve up to there."""
        state = hooks.load() if hooks.load is not None else None
        done = 0 if state is None else len(state["curve"])
        self.team.require_same(str(done), "state to go on from")
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

    def _set_learning_rate(self, done: int, steps: int) -> float:
        """Linear warm-up from 0, then linear decay to 0, counted as in the original."""
        warmup = self.settings.warmup_steps
        share = learning_rate_share(done, steps, steps // 20 if warmup is None else warmup)
        for group in self.masters.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * share
        return self.settings.learning_rate * share

    def _step(self, training: Captions, index_B: Tensor) -> float:
        count = training.length_S[index_B].sum()
        total = torch.zeros((), device=self.captioner.device)
        mine_B = self.team.share(index_B)
        parts = min(self.settings.accumulate, len(mine_B))
        for part_B in torch.tensor_split(mine_B, parts) if parts else ():
            loss = self._loss(training.take(part_B), noisy=True) / count
            loss.backward()  # type: ignore[no-untyped-call]
            self.masters.gather()
            total += loss.detach()
        if self.team.size > 1:
            self.team.add([total, *self.masters.gradients()])
        self.masters.step(self.settings.clip_norm)
        return float(total)

    def _loss(self, batch: Captions, *, noisy: bool) -> Tensor:
        """Return the summed cross entropy of a batch."""
        smoothing = self.settings.label_smoothing if noisy else 0.0
        if not self.packed:
            batch = batch.to(self.captioner.device)
            embedding_BD = self._read(batch.row_S, noisy=noisy)
            reading = self.masters.reading
            return caption_loss(
                reading, embedding_BD, batch.token_ST, batch.mask(), smoothing=smoothing
            )
        rows = pack(batch, self.captioner.card.prefix_length).to(self.captioner.device)
        embedding_ID = self._read(rows.image_I, noisy=noisy)
        return packed_loss(self.masters.reading, embedding_ID, rows, smoothing=smoothing)

    def _read(self, row_B: Tensor, *, noisy: bool) -> Tensor:
        embedding_BD = self.embedding_ND[row_B]
        if embedding_BD.ndim == WITH_VIEWS:
            count, views = embedding_BD.shape[:2]
            view_B = torch.randint(views, (count,)) if noisy else torch.zeros(count).long()
            embedding_BD = embedding_BD[torch.arange(count), view_B]
        return (self._noisy(embedding_BD) if noisy else embedding_BD).to(self.masters.dtype)

    def _noisy(self, embedding_BD: Tensor) -> Tensor:
        if not self.noise:
            return embedding_BD
        noisy_BD = embedding_BD + self.noise * torch.randn_like(embedding_BD)
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
