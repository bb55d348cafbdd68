"""Candidate texts as tokens in, trees of tokens out: what candidates begin with alike stands once.

A language model reads a tree behind a prefix in one pass: a mask says which tokens each token
descends from, and positions how deep it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tokens = tuple[int, ...]
"""One candidate; at least one token."""
_ROOT: Final = -1


@dataclass(frozen=True, slots=True)
class Trie:
    """Some candidates as one tree: E tokens that are guessed, of which T are read as well."""

    candidates: list[int] = field(default_factory=list)
    """Their places among all."""
    paths: list[list[int]] = field(default_factory=list)
    """Which of the E tokens each candidate is made of."""
    token_E: list[int] = field(default_factory=list)
    source_E: list[int] = field(default_factory=list)
    """Where each is guessed from: 0 at the end of the prefix, t + 1 at the read token t."""
    token_T: list[int] = field(default_factory=list)
    depth_T: list[int] = field(default_factory=list)
    above_T: list[int] = field(default_factory=list)
    """The read token that each goes on from; -1: the prefix."""


def tries(tokens_C: Sequence[Tokens], width: int) -> list[Trie]:
    """Share candidates out among trees of about so many tokens; neighbours begin alike."""
    parts: list[list[int]] = []
    size, before = 0, Tokens()
    for c in sorted(range(len(tokens_C)), key=lambda c: tokens_C[c]):
        ids = tokens_C[c]
        new = len(ids) - _alike(before, ids)
        if not parts or size + new > width:
            parts.append([])
            size, new = 0, len(ids)
        parts[-1].append(c)
        size, before = size + new, ids
    return [_trie(tokens_C, part) for part in parts]


def _alike(left: Tokens, right: Tokens) -> int:
    """Return how many tokens two candidates begin with alike."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _trie(tokens_C: Sequence[Tokens], candidates: list[int]) -> Trie:
    edges: dict[tuple[int, int], int] = {}
    paths: list[list[int]] = []
    for c in candidates:
        at, path = _ROOT, []
        for token in tokens_C[c]:
            at = edges.setdefault((at, token), len(edges))
            path.append(at)
        paths.append(path)
    parents, tokens = [parent for parent, _ in edges], [token for _, token in edges]
    read = sorted({*parents} - {_ROOT})  # the last tokens of candidates are only guessed
    place = {edge: t for t, edge in enumerate(read)} | {_ROOT: -1}
    above_T = [place[parents[edge]] for edge in read]
    depth_T: list[int] = []
    for above in above_T:
        depth_T.append(0 if above < 0 else depth_T[above] + 1)
    return Trie(
        candidates=candidates,
        paths=paths,
        token_E=tokens,
        source_E=[place[parent] + 1 for parent in parents],
        token_T=[tokens[edge] for edge in read],
        depth_T=depth_T,
        above_T=above_T,
    )


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows as a tensor, zeros behind those that are shorter."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)


def mask(of: Sequence[Trie], prefix_length: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention, `mask_A1TS`: 0 on the prefix and on ancestors."""
    width = max(len(trie.token_T) for trie in of)
    seen_ATS = torch.zeros(len(of), width, prefix_length + width, dtype=torch.bool)
    seen_ATS[:, :, :prefix_length] = True
    for seen_TS, trie in zip(seen_ATS, of, strict=True):
        for t, above in enumerate(trie.above_T):
            if above >= 0:
                seen_TS[t] = seen_TS[above]
            seen_TS[t, prefix_length + t] = True
    mask_ATS = torch.zeros(seen_ATS.shape, dtype=dtype)
    return mask_ATS.masked_fill_(~seen_ATS, torch.finfo(dtype).min)[:, None]


def sums(of: Sequence[Trie], log_p_AE: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the sum of each candidate's tokens, of each trie."""
    return [
        np.array([log_p_E[path].sum() for path in trie.paths])
        for trie, log_p_E in zip(of, log_p_AE, strict=True)
    ]
