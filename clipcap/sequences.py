"""Tokens that a decoder chooses in, candidates out: the beams of all images that are under way."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from clipcap import search
from clipcap.candidates import Candidate, Decodable
from clipcap.rules import Rules

_ROWS: Final = 16  # of log-probabilities, of which a processor's cache holds so many
_ALL: Final = 1 << 20


class Sequences:
    """K beams of N images.

    Attributes:
        image_N: Which image each slot has.
        token_NK: The last token of each beam.
        source_NK: Which beam of the step before it goes on from.
        score_NK: Sum of the log-probabilities of a beam.
        length_NK: Its tokens, up to the stop token.
        stopped_NK: Whether it has ended.
    """

    def __init__(self, captioner: Decodable, rules: Rules, beams: int) -> None:
        """Begin with no image."""
        self._captioner, self._rules, self._beams = captioner, rules, beams
        self._steps = rules.wording.max_tokens
        device = captioner.device
        whole = torch.zeros(0, beams, dtype=torch.long, device=device)
        self.image_N: list[int] = []
        self.token_NK, self.source_NK, self.length_NK = whole, whole, whole
        self.score_NK, self.stopped_NK = whole.float(), whole.bool()
        self._token_NKT = whole[:, :, None].expand(-1, -1, self._steps)
        self.step_N = whole[:, 0]

    def found(self, prefix_NPE: Tensor, slots: int) -> list[list[Candidate]]:
        """Read prefixes, at most so many images at a time; return the candidates of each.

        Raises:
            SettingsError: the language model has no room for so many tokens.
        """
        if not len(prefix_NPE):
            return []
        slots = min(slots, len(prefix_NPE))
        tree = self._captioner.tree(self._beams, self._steps, slots)
        return search.run(tree, self, prefix_NPE, slots=slots)

    def join(self, images: Sequence[int], logits_BV: Tensor) -> None:
        """Begin with some more images: choose their first tokens and `open` them."""
        raise NotImplementedError

    def extend(self, logits_NKV: Tensor) -> None:
        """Choose the next tokens and `go_on` with them."""
        raise NotImplementedError

    def open(self, images: Sequence[int], token_BK: Tensor, score_BK: Tensor) -> None:
        """Add images with the first tokens of their beams."""
        token_BKT = token_BK.new_zeros(*token_BK.shape, self._steps)
        token_BKT[:, :, 0] = token_BK
        self.image_N += images
        self.token_NK = torch.cat((self.token_NK, token_BK))
        self.source_NK = torch.cat((self.source_NK, torch.zeros_like(token_BK)))
        self.length_NK = torch.cat((self.length_NK, torch.ones_like(token_BK)))
        self.score_NK = torch.cat((self.score_NK, score_BK))
        stopped_BK = self._rules.is_stop(token_BK) | (score_BK == -torch.inf)
        self.stopped_NK = torch.cat((self.stopped_NK, stopped_BK))
        self._token_NKT = torch.cat((self._token_NKT, token_BKT))
        self.step_N = torch.cat((self.step_N, token_BK.new_ones(len(token_BK))))

    def go_on(
        self, source_NK: Tensor, token_NK: Tensor, score_NK: Tensor, length_NK: Tensor
    ) -> None:
        """Let each beam go on from beam `source_NK` with one more token."""
        index_NKT = source_NK[:, :, None].expand_as(self._token_NKT)
        self._token_NKT = self._token_NKT.gather(1, index_NKT)
        at_NK1 = self.step_N[:, None, None].expand(-1, self._beams, 1)
        self._token_NKT.scatter_(2, at_NK1, token_NK[:, :, None])
        self.step_N = self.step_N + 1
        stopped_NK = self.stopped_NK.gather(1, source_NK)
        self.stopped_NK = stopped_NK | self._rules.is_stop(token_NK) | (score_NK == -torch.inf)
        self.token_NK, self.source_NK = token_NK, source_NK
        self.score_NK, self.length_NK = score_NK, length_NK

    def tokens(self) -> list[list[list[int]]]:
        """Return the tokens of each image's beams; behind what they have said stands anything."""
        found: list[list[list[int]]] = self._token_NKT.tolist()
        return found

    def said(self) -> list[list[int] | None]:
        """Return the tokens of all beams, one image's after the other's; None of one that ended."""
        steps = [step for step in self.step_N.tolist() for _ in range(self._beams)]
        rows = zip([row for rows in self.tokens() for row in rows], steps, strict=True)
        stopped = self.stopped_NK.flatten().tolist()
        return [
            None if is_over else row[:step]
            for (row, step), is_over in zip(rows, stopped, strict=True)
        ]

    def likeliest(
        self, logits_RV: Tensor, count: int, *, temperature: float = 1.0, is_first: bool
    ) -> tuple[Tensor, Tensor]:
        """Return log p and token of what R beams may go on with best."""
        said = None if is_first or not self._rules.looks_back else self.said()
        top_RK, token_RK = self._rules.allowed(logits_RV, said).topk(count, -1)
        return top_RK.float() / temperature - whole(logits_RV, temperature), token_RK

    def done(self) -> list[bool]:
        """Tell which images have ended in all beams, or are at the limit."""
        done: list[bool] = (self.stopped_NK.all(1) | (self.step_N >= self._steps)).tolist()
        return done

    def result(self, slot: int) -> list[Candidate]:
        """Return the candidates of an image, best first."""
        average_K = self.score_NK[slot] / self.length_NK[slot]
        order_K = average_K.argsort(descending=True, stable=True).tolist()
        tokens = self._token_NKT[slot].tolist()
        lengths, stopped = self.length_NK[slot].tolist(), self.stopped_NK[slot].tolist()
        averages = average_K.tolist()
        found: dict[tuple[int, ...], Candidate] = {}  # what was cut may have become the same
        for k in order_K:
            if averages[k] > -torch.inf:
                one = self._candidate(tokens[k][: lengths[k]], averages[k], is_stopped=stopped[k])
                found.setdefault(one.token_ids, one)
        return self._rules.preferred(found.values())

    def _candidate(self, tokens: list[int], average: float, *, is_stopped: bool) -> Candidate:
        token_ids = tuple(tokens) if is_stopped else self._rules.cut(tokens, self._captioner)
        return Candidate(
            text=self._captioner.text(token_ids),
            token_ids=token_ids,
            logprob_mean=average,
            finish_reason="stop" if is_stopped else "length",
        )

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these images, in this order."""
        if list(slots) == list(range(len(self.image_N))):
            return
        index = torch.tensor(slots, dtype=torch.long, device=self.token_NK.device)
        self.image_N = [self.image_N[slot] for slot in slots]
        self.token_NK, self.source_NK = self.token_NK[index], self.source_NK[index]
        self.length_NK, self.score_NK = self.length_NK[index], self.score_NK[index]
        self.stopped_NK, self.step_N = self.stopped_NK[index], self.step_N[index]
        self._token_NKT = self._token_NKT[index]


def whole(logits_RV: Tensor, temperature: float) -> Tensor:
    """Return what is taken off logits to make log p of them.

    Without a softmax over V, and a few rows at a time: what does not fit into the processor's
    cache costs as much as a layer of the language model.
    """
    rows = _ROWS if logits_RV.device.type == "cpu" else _ALL
    parts = torch.split(logits_RV, rows)
    return torch.cat([(part.float() / temperature).logsumexp(-1, keepdim=True) for part in parts])


def seeds(embedding_BD: Tensor) -> list[int]:
    """Return a number for each embedding that depends on it alone, as it is stored."""
    return [zlib.crc32(row.tobytes()) for row in embedding_BD.half().cpu().numpy()]
