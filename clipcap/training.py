"""What a person may choose about the training of a captioner; needs no torch."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from clipcap.settings import Settings

_LATER: Final = {"texts", "dropout", "label_smoothing"}  # with their defaults all is as it was


class LoraSettings(Settings):
    """The small matrices that learn beside a language model's own (arXiv:2106.09685)."""

    rank: int = Field(default=8, ge=1)
    """Rows of the smaller one: how much can be learned."""
    alpha: float = Field(default=16.0, gt=0.0)
    """What they learn counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of what they read that is left out while they learn."""


class TextSettings(Settings):
    """How captions are learned from texts alone, as in CapDec (arXiv:2211.00575)."""

    noise: float = Field(default=0.016**0.5, ge=0.0)
    """Standard deviation of the noise added to each number of a text's embedding; the paper's
    variance is 0.016."""
    shift: Literal["mean", "none"] = "mean"
    """`mean` moves the embeddings of texts to where those of images lie, by the difference of
    their means; `none` leaves them."""
    epochs: int = Field(default=3, ge=1)
    """Times that each text is seen before the captions of images; of texts alone, `loop.epochs`."""


class TrainSettings(Settings):
    """How mapper and language model are trained.

    Batch size, epochs, learning rate and weight decay are by default the original ClipCap's.

    Prefix length and mapper stand in the captioner's card.
    """

    language_model: Literal["frozen", "finetune", "lora"] = "finetune"
    """`frozen` trains the mapper alone, `finetune` the language model with it, `lora` a little."""
    lora: LoraSettings = LoraSettings()
    """How much of the language model learns with `lora`."""
    epochs: int = Field(default=10, ge=1)
    """Times that each caption is seen."""
    steps: int | None = Field(default=None, ge=1)
    """Batches to train on; takes the place of `epochs` when set."""
    batch_size: int = Field(default=40, ge=1)
    """Captions in a batch."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch is read in, one after the other: the same gradient in less memory."""
    packing: bool = True
    """Whether the captions of an image stand behind one shared prefix: the same loss, far sooner.

    Where a language model cannot read them so, captions of about one length make a batch.
    """
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the reading; `auto` takes bf16 where the device has it. Weights are fp32."""
    learning_rate: float = Field(default=2e-5, gt=0.0)
    """AdamW's step size at its highest."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Batches until the learning rate is at its highest; null takes a twentieth of all."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decoupled decay; the original has none."""
    clip_norm: float | None = Field(default=1.0, gt=0.0)
    """Gradients longer than this are scaled down to it; null, as in the original, never."""
    embedding_noise: float = Field(default=0.0, ge=0.0)
    """Standard deviation of the noise added to each number of an embedding (arXiv:2211.00575)."""
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of the language model's numbers left out while it learns; null: its own (GPT-2 0.1).
    The mapper's stands in `mapper.settings`."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each word that is spread over all words; not in what is measured."""
    texts: TextSettings = TextSettings()
    """What is learned from texts without images, where there are any."""
    max_tokens: int = Field(default=67, ge=1)
    """Captions are cut after so many tokens."""
    stop: str | None = "."
    """The one-token text that ends every caption; null takes the tokenizer's own end token."""
    validation_share: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the images that are held out to measure the loss."""
    validations: int = Field(default=10, ge=1)
    """Times that the held-out loss is measured, evenly spread, the last at the end."""
    measure: Literal["loss", "cider"] = "loss"
    """What tells the best on the held-out images: `cider` is of greedy captions, and takes longer.
    """
    keep: Literal["best", "last"] = "best"
    """Which weights are kept: the `best` on the held-out images, or those of the `last` step."""
    patience: int | None = Field(default=None, ge=1)
    """Training ends after so many measurements without a better one; null: never early."""
    seed: int = Field(default=0, ge=0)
    """Order of the captions, dropout, noise and the images held out."""

    def told(self) -> dict[str, Any]:
        """Return every setting; of those that came later only what somebody asked for."""
        later = self.model_dump(mode="json", include=_LATER, exclude_defaults=True)
        return self.model_dump(mode="json", exclude=_LATER) | later
