"""Embeddings and their captions in, a trained captioner and its losses out; touches no file.

The loss is the original ClipCap's: cross entropy of each caption token, given the prefix and the
tokens before it. Unlike there, padding is a mask and not token 0, and a frozen language model has
no gradient buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcap.batches import Captions, batches, held_out, tokenised
from clipcap.captioner import Captioner, require_embeddings
from clipcap.errors import SettingsError
from clipcap.training import TrainSettings

ADAM_EPS: Final = 1e-6  # the original's (transformers' AdamW of its time), torch's default is 1e-8


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands after a batch."""

    step: int
    steps: int
    loss: float
    """Mean cross entropy per token of this batch."""
    learning_rate: float
    validation_loss: float | None = None
    """Mean cross entropy per token of the held-out images, when it was just measured."""


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """What a training did."""

    curve: tuple[Progress, ...]
    """Every batch, in order."""
    validation_loss: float | None
    """At the end; None when no image was held out."""
    captions_trained: int
    captions_held_out: int
    captions_blank: int
    """Left out because they say nothing."""
    captions_cut: int
    """Longer than `max_tokens`."""
    rows_held_out: tuple[int, ...]
    """Which images no gradient ever saw."""


def train(
    embedding_ND: Tensor,
    captions: Sequence[Sequence[str]],
    captioner: Captioner,
    settings: TrainSettings,
    *,
    on_progress: Callable[[Progress], object] | None = None,
) -> TrainMetrics:
    """Train the captioner's mapper, and its language model unless frozen, in place.

    `embedding_ND` is in the mapper's own scale (`Captioner.scaled`), `captions[n]` belongs to row
    n. The same seed gives the same weights on a CPU.

    Raises:
        SettingsError: rows and captions do not pair up, no caption to learn from, numbers that are
            not finite, a tokenizer that cannot end a caption, or a loss that ran away.
    """
    require_embeddings(embedding_ND, captioner.card.encoder.dim)
    if len(captions) != len(embedding_ND):
        raise SettingsError(
            f"There must be one list of captions per embedding, but there are {len(captions)} "
            f"lists for {len(embedding_ND)} embeddings instead."
        )
    stop_token = captioner.stop_token(settings.stop)
    data, counts = tokenised(captions, captioner.tokenizer, stop_token, settings.max_tokens)
    captioner.require_room(data.token_ST.shape[1])
    device = captioner.device
    data = data.to(device)
    held_out_N = held_out(data, len(embedding_ND), settings)
    held_out_S = held_out_N[data.row_S]
    training, validation = (data.take(m.nonzero().flatten()) for m in (~held_out_S, held_out_S))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        loop = _Loop(captioner, embedding_ND.to(device).float(), settings)
        curve = loop.run(training, validation, on_progress)
    return TrainMetrics(
        curve=tuple(curve),
        validation_loss=curve[-1].validation_loss,
        captions_trained=len(training),
        captions_held_out=len(validation),
        captions_blank=counts.blank,
        captions_cut=counts.cut,
        rows_held_out=tuple(held_out_N.nonzero().flatten().tolist()),
    )


def caption_loss(
    captioner: Captioner, embedding_BD: Tensor, token_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """Return the summed cross entropy of the tokens under the mask.

    Padding stands on the right of each row, so a causal model needs no attention mask; the head
    runs on the T caption positions only.
    """
    language_model = captioner.language_model
    prefix_BPE = captioner.prefix(embedding_BD)
    read_BTE = language_model.get_input_embeddings()(token_BT[:, :-1])
    logits_BTV = language_model(
        inputs_embeds=torch.cat((prefix_BPE, read_BTE), 1),
        use_cache=False,
        logits_to_keep=token_BT.shape[1],
    ).logits
    return functional.cross_entropy(logits_BTV[mask_BT].float(), token_BT[mask_BT], reduction="sum")


class _Loop:
    """One training run: what the batches have in common."""

    def __init__(self, captioner: Captioner, embedding_ND: Tensor, settings: TrainSettings) -> None:
        self.captioner = captioner
        self.embedding_ND = embedding_ND
        self.settings = settings
        finetune = settings.language_model == "finetune"
        captioner.language_model.requires_grad_(finetune)
        captioner.mapper.requires_grad_()
        modules: list[nn.Module] = [captioner.mapper]
        if finetune:
            modules.append(captioner.language_model)
        self.learning = modules
        self.parameters = [p for module in modules for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            eps=ADAM_EPS,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def run(
        self,
        training: Captions,
        validation: Captions,
        on_progress: Callable[[Progress], object] | None,
    ) -> list[Progress]:
        settings = self.settings
        per_epoch = math.ceil(len(training) / settings.batch_size)
        steps = settings.steps or settings.epochs * per_epoch
        curve: list[Progress] = []
        self._learn()
        order = batches(training, settings)
        for step in range(1, steps + 1):
            learning_rate = self._set_learning_rate(step, steps)
            loss = self._step(training.take(next(order)))
            if not math.isfinite(loss):
                raise SettingsError(
                    f"The loss must be finite, but is {loss} at step {step} of {steps} instead. "
                    f"Lower `learning_rate` ({settings.learning_rate}) or set `clip_norm`."
                )
            measured = None
            if _due(step, steps, settings.validations):
                measured = self._measure(validation)
            curve.append(Progress(step, steps, loss, learning_rate, measured))
            if on_progress is not None:
                on_progress(curve[-1])
        self.optimizer.zero_grad(set_to_none=True)
        self.captioner.eval()
        return curve

    def _learn(self) -> None:
        """Dropout on, but only in what learns."""
        self.captioner.eval()
        for module in self.learning:
            module.train()

    def _set_learning_rate(self, step: int, steps: int) -> float:
        """Linear warm-up from 0, then linear decay to 0, counted as in the original."""
        warmup = self.settings.warmup_steps
        share = learning_rate_share(step - 1, steps, steps // 20 if warmup is None else warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * share
        return self.settings.learning_rate * share

    def _step(self, batch: Captions) -> float:
        mask_BT = batch.mask()
        count = mask_BT.sum()
        embedding_BD = self._noisy(self.embedding_ND[batch.row_S])
        loss = caption_loss(self.captioner, embedding_BD, batch.token_ST, mask_BT) / count
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    def _noisy(self, embedding_BD: Tensor) -> Tensor:
        if not self.settings.embedding_noise:
            return embedding_BD
        noisy_BD = embedding_BD + self.settings.embedding_noise * torch.randn_like(embedding_BD)
        return functional.normalize(noisy_BD) if self.captioner.card.normalized else noisy_BD

    def _measure(self, validation: Captions) -> float | None:
        if not len(validation):
            return None
        self.captioner.eval()
        total = 0.0
        with torch.inference_mode():
            for index_B in torch.split(validation.length_S.argsort(), 4 * self.settings.batch_size):
                batch = validation.take(index_B)
                embedding_BD = self.embedding_ND[batch.row_S]
                total += float(
                    caption_loss(self.captioner, embedding_BD, batch.token_ST, batch.mask())
                )
        self._learn()
        return total / int(validation.length_S.sum())


def learning_rate_share(step: int, steps: int, warmup: int) -> float:
    """Return the share of the highest learning rate for the batch after `step` others.

    As `get_linear_schedule_with_warmup` of transformers, which the original uses; without warm-up
    the first batch has the full rate.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def _due(step: int, steps: int, times: int) -> bool:
    """Tell whether one of `times` evenly spread measurements falls on this step."""
    return step * times // steps > (step - 1) * times // steps
