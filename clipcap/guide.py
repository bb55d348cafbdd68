"""What a caption has said in, what `only` and `must` leave for its next token out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from clipcap.lexicon import Joints, Must, Only, Place


class Guide:
    """Words that a caption is made of, words that it has to have, or both."""

    def __init__(
        self, only: Only | None, must: Must | None, joints: Joints, max_tokens: int
    ) -> None:
        """Take the words; `max_tokens` is where a caption ends at the latest."""
        self.only, self.must = only, must
        self._joints, self._max_tokens = joints, max_tokens
        self._begin: dict[tuple[int, int, torch.device], Tensor] = {}

    def left(self, logits_V: Tensor, said: Sequence[int]) -> tuple[Tensor, set[int]]:
        """Return logits with -inf for what would break a wish, and the tokens that fulfil one.

        No word is begun that would not be whole before the limit. `must` forbids nothing until
        there is just room for the words that are lacking.
        """
        room = self._max_tokens - len(said) - 1
        place, going_on = None, set[int]()
        if self.only is not None:
            place = self.only.place(said)
            if place is None:
                return logits_V, going_on
            going_on = self.only.may_go_on(place.nodes, room)
            logits_V = self._listed(logits_V, place, going_on, room)
            going_on = going_on if place.start is None else set()
        if self.must is None:
            return logits_V, going_on
        wanted = self.must.place(said)
        longest = 0 if self.only is None else self.only.longest
        if room >= self.must.most(wanted) + longest:
            return logits_V, going_on | self.must.may_begin(wanted)
        if self.must.is_met(wanted):
            return self._apart(logits_V) if self.must.most(wanted) else logits_V, going_on
        tokens = self._forced(logits_V, wanted, place, going_on, room)
        return _kept(logits_V, tokens), tokens

    def _listed(self, logits_V: Tensor, place: Place, going_on: set[int], room: int) -> Tensor:
        only = self.only
        if only is None or place.start is None:
            return _kept(logits_V, going_on)
        room = min(room, only.longest)
        key = (place.start, room, logits_V.device)
        if key not in self._begin:
            is_out_V = torch.ones(len(logits_V), dtype=torch.bool)
            is_out_V[sorted(only.may_begin(place.start, room))] = False
            self._begin[key] = is_out_V.to(logits_V.device)
        found_V = logits_V.masked_fill(self._begin[key], -torch.inf)
        both = sorted(going_on)
        found_V[both] = logits_V[both]
        return found_V

    def _apart(self, logits_V: Tensor) -> Tensor:
        """Leave out what would make another word of the last one."""
        is_in_V = torch.zeros(len(logits_V), dtype=torch.bool)
        goes_on = torch.tensor(self._joints.goes_on[: len(logits_V)])
        is_in_V[: len(goes_on)] = goes_on
        return logits_V.masked_fill(is_in_V.to(logits_V.device), -torch.inf)

    def _forced(
        self, logits_V: Tensor, wanted: Place, place: Place | None, going_on: set[int], room: int
    ) -> set[int]:
        """Return the tokens after which the rest of what is lacking still fits, or nearly."""
        if self.must is None:
            return going_on
        tokens = sorted(self.must.may_begin(wanted) | going_on)
        is_left = (logits_V[tokens] > -torch.inf).tolist()
        needs = {
            token: self._need(wanted, place, token)
            for token, is_one in zip(tokens, is_left, strict=True)
            if is_one
        }
        least = max(room, min(needs.values(), default=room))
        return {token for token, need in needs.items() if need <= least}

    def _need(self, wanted: Place, place: Place | None, token: int) -> int:
        """Return how many tokens are needed after one more."""
        if self.must is None:
            return 0
        after = self.must.step(wanted, token)
        need = self.must.need(after)
        if self.only is None or place is None or self.must.begun(after):
            return need
        listed = self.only.step(place, token)
        return need if listed is None else need + self.only.need(listed)


def _kept(logits_V: Tensor, tokens: Iterable[int]) -> Tensor:
    """Return logits with -inf for all but some tokens."""
    kept = sorted(tokens)
    found_V = torch.full_like(logits_V, -torch.inf)
    found_V[kept] = logits_V[kept]
    return found_V
