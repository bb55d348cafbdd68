"""`prefix_NPE` in, the K best captions of each image out: the original ClipCap's beam search.

Token for token `generate_beam` of rmokady/CLIP_prefix_caption `predict.py` (score = sum of log p
over length, divided anew at each step; a stopped beam repeats token 0 at log p 0), but many images
at a time, and each token is read once. Words that a caption must have get beams of their own: K for
captions with none of them, K for those with one, and so on (grid beam search, arXiv:1704.07138).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from clipcap.candidates import SLOTS, Candidate, Decodable
from clipcap.errors import SettingsError
from clipcap.rules import rules
from clipcap.sequences import Sequences, whole
from clipcap.wording import Wording

REPEATED_TOKEN: Final = 0
"""What a stopped beam goes on with; cut off again by its length."""


class Settings(Wording):
    """How the beam search looks for captions; the defaults are the original's."""

    searches: ClassVar[bool] = True
    beam_size: int = Field(default=5, ge=1, le=1_000)
    """Captions kept at each step, and candidates returned for each image."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits; below 1 the likeliest words win more clearly."""


@torch.inference_mode()
def decode(
    captioner: Decodable,
    prefix_NPE: Tensor,
    settings: Settings,
    *,
    slots: int = SLOTS,
    seeds: Sequence[int] = (),
) -> list[list[Candidate]]:
    """Search captions for N prefixes; K candidates each, best first.

    Raises:
        SettingsError: more beams than words, no stop token, or no room for so many tokens.
    """
    if not settings.must:
        return Beams(captioner, settings).found(prefix_NPE, slots)
    grid = Grid(captioner, settings)
    return grid.found(prefix_NPE, max(1, slots // grid.rows))


class Beams(Sequences):
    """Of each image the K beams with the best mean log-probability."""

    def __init__(self, captioner: Decodable, settings: Settings) -> None:
        super().__init__(captioner, rules(settings, captioner), settings.beam_size)
        self._beam_size, self._temperature = settings.beam_size, settings.temperature

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Open the beams with the K likeliest first tokens."""
        _require_words(self._beam_size, logits_BV)
        score_BK, token_BK = self.likeliest(
            logits_BV, self._beam_size, temperature=self._temperature, is_first=True
        )
        self.open(images, token_BK, score_BK)

    def extend(self, logits_NKV: Tensor) -> None:
        """Give each image's beams one more token.

        Within a beam the order by average is the order by log p, so the K best of K * V extensions
        are among the K best of each beam.
        """
        beam_size = self._beam_size
        logp_RK, token_RK = self.likeliest(
            logits_NKV.flatten(0, 1), beam_size, temperature=self._temperature, is_first=False
        )
        logp_NKK = logp_RK.view(-1, beam_size, beam_size)
        token_NKK = token_RK.view(-1, beam_size, beam_size)
        stopped_NK = self.stopped_NK
        logp_NKK[stopped_NK] = -torch.inf
        logp_NKK[..., 0].masked_fill_(stopped_NK, 0.0)
        token_NKK[..., 0].masked_fill_(stopped_NK, REPEATED_TOKEN)
        length_NK = self.length_NK + ~stopped_NK
        average_NKK = (self.score_NK[:, :, None] + logp_NKK) / length_NK[:, :, None]
        average_NK, place_NK = average_NKK.flatten(1).topk(beam_size, -1)
        source_NK = place_NK // beam_size
        length_NK = length_NK.gather(1, source_NK)
        token_NK = token_NKK.flatten(1).gather(1, place_NK)
        self.go_on(source_NK, token_NK, average_NK * length_NK, length_NK)


class _Beam(NamedTuple):
    """What a beam of a grid has said, up to its stop."""

    said: Sequence[int]
    score: float
    is_over: bool


class _Next(NamedTuple):
    """A beam of a grid with one more token, or one that has ended."""

    average: float
    source: int
    token: int
    score: float
    length: int


_NONE: Final = _Next(-math.inf, 0, REPEATED_TOKEN, -math.inf, 1)
"""What stands where there is no beam."""


class Grid(Sequences):
    """Of each image the K best beams of each row: row r has r of the words that must come.

    A row is the original's search among beams that have as many words; one that is begun counts.
    Each beam goes on with its K likeliest tokens, and with every token that a word which it lacks
    begins or goes on with. So what the search without such words finds is looked at, too.
    """

    def __init__(self, captioner: Decodable, settings: Settings) -> None:
        known = rules(settings, captioner)
        self.rows = 1 + len(settings.must)
        super().__init__(captioner, known, settings.beam_size * self.rows)
        self._size, self._temperature = settings.beam_size, settings.temperature
        self._must = known.must

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Open the beams with the best first tokens."""
        _require_words(self._size, logits_BV)
        _, token_BK, score_BK, _ = self._best(
            logits_BV, [[_Beam((), 0.0, is_over=False)]] * len(images)
        )
        self.open(images, token_BK, score_BK)

    def extend(self, logits_NKV: Tensor) -> None:
        """Give each image's beams one more token."""
        source_NK, token_NK, score_NK, length_NK = self._best(
            logits_NKV.flatten(0, 1), self._held()
        )
        self.go_on(source_NK, token_NK, score_NK, length_NK)

    def result(self, slot: int) -> list[Candidate]:
        """Return the K best candidates of an image, best first."""
        return super().result(slot)[: self._size]

    def _held(self) -> list[list[_Beam]]:
        numbers = (self.length_NK, self.score_NK, self.stopped_NK)
        rows = zip(self.tokens(), *(number_NK.tolist() for number_NK in numbers), strict=True)
        return [
            [
                _Beam(said[:length], score, is_over)
                for said, length, score, is_over in zip(*row, strict=True)
            ]
            for row in rows
        ]

    def _best(
        self, logits_RV: Tensor, beams: Sequence[Sequence[_Beam]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return source, token, score and length of the beams that each image goes on with."""
        flat = [beam for held in beams for beam in held]
        extensions = iter(self._extensions(logits_RV, flat))
        found = [self._ranked(held, [next(extensions) for _ in held]) for held in beams]
        _, source, token, score, length = zip(
            *(zip(*row, strict=True) for row in found), strict=True
        )
        device = logits_RV.device
        return (
            torch.tensor(source, device=device),
            torch.tensor(token, device=device),
            torch.tensor(score, device=device),
            torch.tensor(length, device=device),
        )

    def _extensions(self, logits_RV: Tensor, beams: Sequence[_Beam]) -> list[dict[int, float]]:
        """Return the tokens that each beam may go on with, and their log p."""
        said = [None if beam.is_over else beam.said for beam in beams]
        allowed_RV = self._rules.allowed(logits_RV, said)
        whole_R1 = whole(logits_RV, self._temperature)
        top_RK, token_RK = allowed_RV.topk(self._size, -1)
        logp_RK = top_RK.float() / self._temperature - whole_R1
        found = [
            dict(zip(tokens, logps, strict=True))
            for tokens, logps in zip(token_RK.tolist(), logp_RK.tolist(), strict=True)
        ]
        wanted = [
            (row, token)
            for row, tokens in enumerate(said)
            if tokens is not None
            for token in sorted(self._must.may_begin(self._must.place(tokens)))
        ]
        if wanted:
            row_F, token_F = torch.tensor(wanted, device=logits_RV.device).unbind(1)
            top_F = allowed_RV[row_F, token_F].float()
            logp_F = top_F / self._temperature - whole_R1[row_F, 0]
            for (row, token), logp in zip(wanted, logp_F.tolist(), strict=True):
                found[row].setdefault(token, logp)
        return found

    def _ranked(
        self, beams: Sequence[_Beam], extensions: Sequence[Mapping[int, float]]
    ) -> list[_Next]:
        """Return the best of each row, K of them."""
        rows: list[list[_Next]] = [[] for _ in range(self.rows)]
        for source, (beam, logps) in enumerate(zip(beams, extensions, strict=True)):
            place, length = self._must.place(beam.said), len(beam.said)
            if beam.is_over and beam.score > -math.inf:
                average = beam.score / length
                one = _Next(average, source, REPEATED_TOKEN, beam.score, length)
                rows[self._must.rank(place)].append(one)
            elif not beam.is_over:
                for token, logp in logps.items():
                    score = beam.score + logp
                    one = _Next(score / (length + 1), source, token, score, length + 1)
                    if score > -math.inf:
                        rows[self._must.rank(self._must.step(place, token))].append(one)
        best = [sorted(row, key=_badness)[: self._size] for row in rows]
        return [one for row in best for one in (*row, *[_NONE] * (self._size - len(row)))]


def _badness(found: _Next) -> float:
    return -found.average


def _require_words(beam_size: int, logits_BV: Tensor) -> None:
    if beam_size > logits_BV.shape[1]:
        raise SettingsError(
            f"`beam_size` must be at most the vocabulary's {logits_BV.shape[1]} words, "
            f"but is {beam_size} instead."
        )
