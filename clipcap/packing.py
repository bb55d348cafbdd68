"""A batch of captions in, rows that a language model reads without waste out.

A row holds the captions of several images, each image's behind one shared prefix:
`[prefix | caption 1 | caption 2 ... | prefix | caption 1 ...]`. A caption sees its image's prefix
and itself, and its positions go on after the prefix, so that losses and gradients are those of
rows with one caption each, for a fraction of the positions.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, fields
from typing import Final

import torch
from torch import Tensor

from clipcap.batches import Captions

ROW_POSITIONS: Final = 160  # about; shorter rows pad more, longer ones attend to more masked
MOST_BEHIND: Final = 16  # captions behind one prefix: bounds the length of a row
_ATTENDED: Final = 1_000  # positions that are attended to as dearly as one is read
_TRIED_ROWS: Final = 3
_PADDING: Final = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """R rows of T positions with I prefixes, W words that are read and N words that are guessed."""

    image_I: Tensor
    """Which image each prefix is of."""
    prefix_IP: Tensor
    """Where the prefixes lie among the R * T positions."""
    word_W: Tensor
    """Where the words that are read lie."""
    token_W: Tensor
    target_N: Tensor
    """The words to guess."""
    source_N: Tensor
    """Where each is guessed from: i stands for the end of prefix i, I + w for the word w."""
    position_RT: Tensor
    """How far each position is from the start of its image's prefix, along its caption."""
    image_RT: Tensor
    """The prefix that each position belongs to, -1 where there is only padding."""
    caption_RT: Tensor
    """The caption that each position belongs to, -1 on prefixes."""

    def to(self, device: torch.device) -> Rows:
        """Move to a device."""
        return Rows(*(getattr(self, part.name).to(device) for part in fields(self)))

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the attention of each position to each, as `mask_R1TT`."""
        image_RT, caption_RT = self.image_RT, self.caption_RT
        shared_RTT = caption_RT[:, None, :] == _PADDING
        own_RTT = caption_RT[:, :, None] == caption_RT[:, None, :]
        seen_RTT = (image_RT[:, :, None] == image_RT[:, None, :]) & (shared_RTT | own_RTT)
        seen_RTT = seen_RTT.tril()
        mask_RTT = torch.zeros(seen_RTT.shape, dtype=dtype, device=seen_RTT.device)
        return mask_RTT.masked_fill_(~seen_RTT, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True, slots=True)
class _Piece:
    """An image with some of its captions."""

    image: int
    captions: list[list[int]]

    def positions(self, prefix_length: int) -> int:
        return prefix_length + sum(len(ids) - 1 for ids in self.captions)


def pack(batch: Captions, prefix_length: int) -> Rows:
    """Lay the captions of a batch into rows; the order of the batch changes no loss."""
    pieces = _pieces(batch)
    shared = _rows(pieces, prefix_length)
    layout = _Layout(len(shared), _width(shared, prefix_length), prefix_length)
    for number, row in enumerate(shared):
        layout.add_row(number, row)
    return layout.rows()


def _pieces(batch: Captions) -> list[_Piece]:
    """Gather the captions of each image; many of them stand behind several prefixes."""
    by_image: dict[int, list[list[int]]] = {}
    for image, ids, length in zip(
        batch.row_S.tolist(), batch.token_ST.tolist(), batch.length_S.tolist(), strict=True
    ):
        by_image.setdefault(image, []).append(ids[:length])
    return [
        _Piece(image, captions[start : start + MOST_BEHIND])
        for image, captions in by_image.items()
        for start in range(0, len(captions), MOST_BEHIND)
    ]


def _rows(pieces: list[_Piece], prefix_length: int) -> list[list[_Piece]]:
    """Share pieces out among rows so that there is little padding."""
    total = sum(piece.positions(prefix_length) for piece in pieces)
    about = math.ceil(total / ROW_POSITIONS)
    fewest = min(len(pieces), max(1, about - 1))
    counts = range(fewest, min(len(pieces), about + _TRIED_ROWS) + 1)
    shared = [_shared(pieces, prefix_length, count) for count in counts]
    return min(shared, key=lambda rows: _cost(rows, prefix_length))


def _shared(pieces: list[_Piece], prefix_length: int, count: int) -> list[list[_Piece]]:
    """Put each piece, longest first, into the row that is shortest so far."""
    rows: list[list[_Piece]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for piece in sorted(pieces, key=lambda piece: -piece.positions(prefix_length)):
        length, number = heapq.heappop(heap)
        rows[number].append(piece)
        heapq.heappush(heap, (length + piece.positions(prefix_length), number))
    return rows


def _width(rows: list[list[_Piece]], prefix_length: int) -> int:
    return max(sum(piece.positions(prefix_length) for piece in row) for row in rows)


def _cost(rows: list[list[_Piece]], prefix_length: int) -> float:
    """Return what rows cost: their positions, each of which attends to a whole row."""
    width = _width(rows, prefix_length)
    return len(rows) * width * (1 + width / _ATTENDED)


class _Layout:
    """Rows while they are filled."""

    def __init__(self, rows: int, width: int, prefix_length: int) -> None:
        self.width = width
        self.prefix_length = prefix_length
        self.position_RT = torch.zeros((rows, width), dtype=torch.long)
        self.image_RT = torch.full((rows, width), _PADDING)
        self.caption_RT = torch.full((rows, width), _PADDING)
        self.images: list[int] = []
        self.prefix: list[range] = []
        self.words: list[int] = []
        self.tokens: list[int] = []
        self.first: list[tuple[int, int]] = []
        self.inner: list[int] = []
        self.captions = 0

    def add_row(self, number: int, row: list[_Piece]) -> None:
        at = 0
        for piece in row:
            start, at = at, at + piece.positions(self.prefix_length)
            self.image_RT[number, start:at] = len(self.images)
            self._add(piece, number, start)

    def _add(self, piece: _Piece, number: int, start: int) -> None:
        flat, prefix_length = number * self.width, self.prefix_length
        self.position_RT[number, start : start + prefix_length] = torch.arange(prefix_length)
        self.prefix.append(range(flat + start, flat + start + prefix_length))
        at = start + prefix_length
        for ids in piece.captions:
            end = at + len(ids) - 1
            self.position_RT[number, at:end] = torch.arange(end - at) + prefix_length
            self.caption_RT[number, at:end] = self.captions
            self.words += range(flat + at, flat + end)
            self.tokens += ids[:-1]
            self.first.append((len(self.images), ids[0]))
            self.inner += ids[1:]
            self.captions += 1
            at = end
        self.images.append(piece.image)

    def rows(self) -> Rows:
        ends, firsts = zip(*self.first, strict=True)
        inner = range(len(self.images), len(self.images) + len(self.inner))
        return Rows(
            image_I=torch.tensor(self.images),
            prefix_IP=torch.tensor([list(places) for places in self.prefix]),
            word_W=torch.tensor(self.words, dtype=torch.long),
            token_W=torch.tensor(self.tokens, dtype=torch.long),
            target_N=torch.tensor([*firsts, *self.inner]),
            source_N=torch.tensor([*ends, *inner]),
            position_RT=self.position_RT,
            image_RT=self.image_RT,
            caption_RT=self.caption_RT,
        )
