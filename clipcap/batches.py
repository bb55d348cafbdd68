"""Captions as text in, batches of tokens with little padding out, for the trainer.

Padding is told by a length and never by a token, so that no word of the vocabulary is lost to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from clipcap.errors import SettingsError
from clipcap.training import TrainSettings

_BUCKET_BATCHES: Final = 50  # captions of so many batches are sorted by length: little padding
_NOTHING: Final = 0


@dataclass(frozen=True, slots=True)
class Captions:
    """S tokenised captions of N images, padded on the right."""

    row_S: Tensor
    """The image that each caption belongs to."""
    token_ST: Tensor
    length_S: Tensor

    def __len__(self) -> int:
        return len(self.row_S)

    def take(self, index_B: Tensor) -> Captions:
        """Return some captions, padded to the longest of them only."""
        length_B = self.length_S[index_B]
        width = int(length_B.max()) if len(length_B) else 0
        return Captions(self.row_S[index_B], self.token_ST[index_B, :width], length_B)

    def split(self, second_S: Tensor) -> tuple[Captions, Captions]:
        """Return the captions outside of a mask, and those under it."""
        outside, under = (self.take(mask.nonzero().flatten()) for mask in (~second_S, second_S))
        return outside, under

    def unlike(self, other: Captions) -> Captions:
        """Return the captions whose words are not those of one of the others."""
        known = set(other.words())
        return self.split(torch.tensor([words in known for words in self.words()]))[0]

    def words(self) -> list[tuple[int, ...]]:
        """Return the tokens of each caption."""
        pairs = zip(self.token_ST.tolist(), self.length_S.tolist(), strict=True)
        return [tuple(ids[:length]) for ids, length in pairs]

    def mask(self) -> Tensor:
        """Return which of `token_ST` are words, not padding."""
        place_T = torch.arange(self.token_ST.shape[1], device=self.token_ST.device)
        return place_T < self.length_S[:, None]

    def to(self, device: torch.device) -> Captions:
        """Move to a device."""
        return Captions(*(part.to(device) for part in (self.row_S, self.token_ST, self.length_S)))


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the captions that were given."""

    blank: int
    """Left out because they say nothing."""
    cut: int
    """Longer than `max_tokens`."""
    unknown_share: float = 0.0
    """Share of the tokens that stand for words which the tokenizer does not know."""


def tokenised(
    captions: Sequence[Sequence[str]],
    tokenizer: Any,  # noqa: ANN401 - transformers' own types are dynamic
    stop_token: int,
    max_tokens: int,
) -> tuple[Captions, Counts]:
    """Turn the captions of each image into tokens that end with the stop token.

    Raises:
        SettingsError: there is no caption that says anything.
    """
    pairs = [(n, text.strip()) for n, texts in enumerate(captions) for text in texts]
    spoken = [(n, text) for n, text in pairs if text]
    if not spoken:
        raise SettingsError("There must be captions to learn from, but every one is blank instead.")
    encoded = tokenizer([text for _, text in spoken], add_special_tokens=False)["input_ids"]
    tokens = [ids if ids[-1:] == [stop_token] else [*ids, stop_token] for ids in encoded]
    cut = sum(len(ids) > max_tokens for ids in tokens)
    tokens = [ids[:max_tokens] for ids in tokens]
    width = max(map(len, tokens))
    data = Captions(
        row_S=torch.tensor([n for n, _ in spoken]),
        token_ST=torch.tensor([ids + [_NOTHING] * (width - len(ids)) for ids in tokens]),
        length_S=torch.tensor([len(ids) for ids in tokens]),
    )
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in tokens)
    if tokenizer.unk_token_id == stop_token:  # as GPT-2 has it, which knows every word
        unknown = 0
    share = unknown / sum(map(len, tokens))
    return data, Counts(blank=len(pairs) - len(spoken), cut=cut, unknown_share=share)


def held_out(data: Captions, rows: int, settings: TrainSettings) -> Tensor:
    """Choose whole images, among those with captions, so that no image is on both sides.

    Returns a mask over the N images; at least one image stays for training.
    """
    captioned = torch.unique(data.row_S.cpu())
    count = min(round(len(captioned) * settings.validation_share), len(captioned) - 1)
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = torch.randperm(len(captioned), generator=generator)[:count]
    held_out_N = torch.zeros(rows, dtype=torch.bool)
    held_out_N[captioned[chosen]] = True
    return held_out_N.to(data.row_S.device)


def batches(data: Captions, settings: TrainSettings) -> Iterator[Tensor]:
    """Yield the captions of each batch for ever, one epoch after another.

    The captions of a batch are about equally long.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    length_S = data.length_S.cpu()
    while True:
        order_S = torch.randperm(len(data), generator=generator)
        parts: list[Tensor] = []
        for pool in torch.split(order_S, settings.batch_size * _BUCKET_BATCHES):
            by_length = pool[length_S[pool].argsort(stable=True)]
            parts.extend(torch.split(by_length, settings.batch_size))
        for place in torch.randperm(len(parts), generator=generator).tolist():
            yield parts[place].to(data.row_S.device)


def image_batches(data: Captions, settings: TrainSettings) -> Iterator[Tensor]:
    """Yield the captions of each batch for ever, those of one image beside each other.

    Images come in another order each epoch; a batch is full even where that parts an image.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    row_S = data.row_S.cpu()
    images, image_S = torch.unique(row_S, return_inverse=True)
    while True:
        shuffled_S = torch.randperm(len(data), generator=generator)
        place_I = torch.randperm(len(images), generator=generator)
        order_S = shuffled_S[place_I[image_S[shuffled_S]].argsort(stable=True)]
        for part in torch.split(order_S, settings.batch_size):
            yield part.to(data.row_S.device)
