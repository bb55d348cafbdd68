"""`prefix_NPE` in, captions drawn by chance out: the likely words at each step, by their odds.

Nucleus sampling (arXiv:1904.09751) with temperature, top-p and top-k. Each image draws numbers of
its own, made from the seed and its embedding, so its captions do not depend on its neighbours. Of
captions that are equal one is kept, and others are drawn in the place of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clipcap.candidates import SLOTS, Candidate, Decodable
from clipcap.rules import rules
from clipcap.sequences import Sequences
from clipcap.wording import Wording

_ROUNDS: Final = 8  # of drawing until so many captions differ; then fewer are returned
_LIKELY: Final = 512  # words that are looked at first: nearly always they have the mass


class Settings(Wording):
    """How captions are drawn."""

    captions: int = Field(default=5, ge=1, le=1_000)
    """Different captions for each image; fewer where the odds leave no others."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits; below 1 likely words become likelier."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Only the likeliest words that together have this probability are drawn; where `never` and
    the like leave less, or `top_k` is set, this share of what is left."""
    top_k: int = Field(default=0, ge=0)
    """Only so many of the likeliest words are drawn; 0: any number."""
    seed: int = Field(default=0, ge=0)
    """Another seed draws other captions."""


@torch.inference_mode()
def decode(
    captioner: Decodable,
    prefix_NPE: Tensor,
    settings: Settings,
    *,
    slots: int = SLOTS,
    seeds: Sequence[int] = (),
) -> list[list[Candidate]]:
    """Draw captions for N prefixes; different ones of each image, likeliest first.

    Without `seeds` an image's place in the list is its number.

    Raises:
        SettingsError: no stop token, or no room for so many tokens.
    """
    own = list(seeds) or list(range(len(prefix_NPE)))
    found: list[dict[tuple[int, ...], Candidate]] = [{} for _ in own]
    todo = list(range(len(own)))
    for turn in range(_ROUNDS):
        if not todo:
            break
        draws = _Draws(captioner, settings, [(settings.seed, own[n], turn) for n in todo])
        drawn = draws.found(prefix_NPE[todo], slots)
        for n, candidates in zip(todo, drawn, strict=True):
            for candidate in candidates:
                if len(found[n]) < settings.captions:
                    found[n].setdefault(candidate.token_ids, candidate)
        todo = [n for n in todo if len(found[n]) < settings.captions]
    return [sorted(one.values(), key=_badness) for one in found]


def _badness(candidate: Candidate) -> float:
    return -candidate.logprob_mean


class _Draws(Sequences):
    """Of each image some beams that never meet: a token is drawn for each."""

    def __init__(
        self, captioner: Decodable, settings: Settings, seeds: Sequence[tuple[int, int, int]]
    ) -> None:
        super().__init__(captioner, rules(settings, captioner), settings.captions)
        self._settings, self._seeds = settings, seeds
        self._chance: dict[int, Tensor] = {}

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Draw the first tokens."""
        shape = (self._settings.max_tokens, self._settings.captions)
        for image in images:
            numbers = np.random.Generator(np.random.Philox(seed=self._seeds[image])).random(shape)
            self._chance[image] = torch.from_numpy(numbers)
        chance_BK = torch.stack([self._chance[image][0] for image in images])
        logits_RV = logits_BV.repeat_interleave(self._settings.captions, 0)
        token_R, logp_R = self._drawn(logits_RV, chance_BK.flatten(), is_first=True)
        self.open(images, token_R.view_as(chance_BK), logp_R.view_as(chance_BK))

    def extend(self, logits_NKV: Tensor) -> None:
        """Draw one more token for each beam that has not ended."""
        rows = zip(self.image_N, self.step_N.tolist(), strict=True)
        chance_NK = torch.stack([self._chance[image][step] for image, step in rows])
        token_R, logp_R = self._drawn(logits_NKV.flatten(0, 1), chance_NK.flatten(), is_first=False)
        open_NK = ~self.stopped_NK
        beam_K = torch.arange(self._settings.captions, device=token_R.device)
        self.go_on(
            beam_K.expand_as(open_NK),
            token_R.view(open_NK.shape),
            self.score_NK + logp_R.view(open_NK.shape) * open_NK,
            self.length_NK + open_NK,
        )

    def _drawn(
        self, logits_RV: Tensor, chance_R: Tensor, *, is_first: bool
    ) -> tuple[Tensor, Tensor]:
        """Return a token for each row, and its log p before the unlikely ones are left out."""
        settings, size = self._settings, self._rules.size(logits_RV.shape[1])
        likeliest = partial(
            self.likeliest, logits_RV, temperature=settings.temperature, is_first=is_first
        )
        chance_R1 = chance_R.to(logits_RV.device)[:, None]
        count = min(settings.top_k or _LIKELY, size)
        logp_RC, token_RC = likeliest(count)
        mass_RC = logp_RC.double().exp().cumsum(1)
        if not settings.top_k and count < size and bool((mass_RC[:, -1] < settings.top_p).any()):
            logp_RC, token_RC = likeliest(size)
            mass_RC = logp_RC.double().exp().cumsum(1)
        whole_R1 = mass_RC[:, -1:]
        is_cut_R1 = (whole_R1 < settings.top_p) | bool(settings.top_k)
        total_R1 = torch.where(is_cut_R1, whole_R1, 1.0)
        before_RC = mass_RC - logp_RC.double().exp()
        last_R1 = (before_RC < settings.top_p * total_R1).sum(1, keepdim=True).clamp(min=1) - 1
        drawn_R1 = chance_R1 * mass_RC.gather(1, last_R1)
        place_R1 = torch.searchsorted(mass_RC, drawn_R1, right=True).minimum(last_R1)
        return token_RC.gather(1, place_R1)[:, 0], logp_RC.gather(1, place_R1)[:, 0]
