"""Prefixes and tokens in, logits out: a language model reads several continuations of each image.

All beams of an image share one buffer of keys and values: `[prefix | token 1 of K beams | token 2
of K beams | ...]`. A mask says which of them a beam descends from; when beams change places the
mask is gathered and nothing is copied. What no beam descends from is dropped where room is needed.
Images stand in slots, each at a step of its own, so that a new one can take the place of one that
is done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_STEPS: Final = 16  # tokens of all beams that a buffer has room for at first
_PROBE: Final = 1e-3  # relative difference of logits that rounding explains, in float32


class Tree(Protocol):
    """Images that a language model has read the prefix of, and K continuations of each."""

    can_join: bool
    """Whether an image may join while others are under way."""

    def join(self, prefix_BPE: Tensor) -> Tensor:
        """Read the prefixes of B more images, behind those that are there; return `logits_BV`."""

    def advance(self, token_NK: Tensor, source_NK: Tensor) -> Tensor:
        """Read one more token of each beam; return `logits_NKV`.

        Args:
            token_NK: what each of K beams of all N images goes on with.
            source_NK: which of the K beams of the step before it goes on from; at the first step
                of an image they all go on from its prefix.
        """

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these images, in this order."""


def of(language_model: Any, *, takes_trees: bool, beams: int, slots: int) -> Tree:  # noqa: ANN401 - transformers' own types are dynamic
    """Return an empty tree of at most so many images with so many beams each."""
    return Shared(language_model, beams, slots) if takes_trees else Rows(language_model, beams)


class Shared:
    """A tree in one buffer for each layer; it is what the model takes for its cache."""

    can_join = True

    def __init__(self, language_model: Any, beams: int, slots: int) -> None:  # noqa: ANN401 - as above
        """Begin with no image; the first prefix tells shapes."""
        self._model, self._beams, self._slots = language_model, beams, slots
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._step_N = torch.zeros(0, dtype=torch.long, device=language_model.device)
        self._used_N = self._step_N
        self._seen_NKS = torch.zeros(0, beams, 0, dtype=torch.bool, device=language_model.device)
        self._prefix = 0
        self._at: tuple[Tensor, Tensor] | None = None
        self._width = 0

    def join(self, prefix_BPE: Tensor) -> Tensor:
        """Read the prefixes of B more images, behind those that are there; return `logits_BV`."""
        count, self._prefix = prefix_BPE.shape[:2]
        self._require_width(self._prefix + _STEPS * self._beams)
        self._at, device = None, prefix_BPE.device
        place_P = torch.arange(self._prefix, device=device)
        seen_PP = place_P[:, None] >= place_P
        logits_BV = self._read(seen_PP[None, None], place_P[None], inputs_embeds=prefix_BPE)
        self._step_N = torch.cat((self._step_N, self._step_N.new_zeros(count)))
        self._used_N = torch.cat((self._used_N, self._step_N.new_full((count,), self._prefix)))
        seen_BKS = self._seen_NKS.new_zeros(count, *self._seen_NKS.shape[1:])
        seen_BKS[:, :, : self._prefix] = True
        self._seen_NKS = torch.cat((self._seen_NKS, seen_BKS))
        return logits_BV[:, -1]

    def advance(self, token_NK: Tensor, source_NK: Tensor) -> Tensor:
        """Read one more token of each beam; return `logits_NKV`."""
        beams = self._beams
        if int(self._used_N.max()) + beams > self._seen_NKS.shape[2]:
            self._forget()
        self._width = int(self._used_N.max()) + beams
        self._require_width(self._width)
        index_NKS = source_NK[:, :, None].expand(-1, -1, self._seen_NKS.shape[2])
        self._seen_NKS = self._seen_NKS.gather(1, index_NKS)
        at_NK = self._used_N[:, None] + torch.arange(beams, device=token_NK.device)
        self._seen_NKS.scatter_(2, at_NK[:, :, None], value=True)
        self._at = (torch.arange(len(at_NK), device=at_NK.device)[:, None], at_NK)
        position_NK = (self._prefix + self._step_N)[:, None].expand(-1, beams)
        seen_NKS = self._seen_NKS[:, None, :, : self._width]
        logits_NKV = self._read(seen_NKS, position_NK, input_ids=token_NK)
        self._step_N, self._used_N = self._step_N + 1, self._used_N + beams
        return logits_NKV

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these images, in this order."""
        index = torch.tensor(slots, dtype=torch.long, device=self._step_N.device)
        moved = [(to, slot) for to, slot in enumerate(slots) if to != slot]
        if moved:
            to, slot = torch.tensor(moved, device=index.device).unbind(1)
            for buffer in (*self._keys, *self._values):
                buffer[to] = buffer[slot]
        self._step_N, self._used_N = self._step_N[index], self._used_N[index]
        self._seen_NKS = self._seen_NKS[index]

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Take a layer's new keys and values [N, heads, tokens, width]; return all of its images.

        What the attention of every transformers model calls.
        """
        if layer_idx == len(self._keys):
            shape = (self._slots, key.shape[1], self._seen_NKS.shape[2])
            self._keys.append(key.new_zeros(*shape, key.shape[3]))
            self._values.append(value.new_zeros(*shape, value.shape[3]))
        for buffer, new in ((self._keys[layer_idx], key), (self._values[layer_idx], value)):
            if self._at is None:
                start = len(self._step_N)
                buffer[start : start + len(new), :, : new.shape[2]] = new
            else:
                row_N1, at_NK = self._at
                buffer[row_N1, :, at_NK] = new.transpose(1, 2)
        if self._at is None:
            return key, value
        kept = (slice(len(key)), slice(None), slice(self._width))
        return self._keys[layer_idx][kept], self._values[layer_idx][kept]

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given, but some models ask."""
        return 0

    def _read(self, seen: Tensor, position: Tensor, **inputs: Tensor) -> Tensor:
        """Let the model read; with a prefix only its last position is spoken from."""
        zero = torch.zeros((), dtype=self._model.dtype, device=seen.device)
        mask = torch.where(seen, zero, torch.finfo(zero.dtype).min)
        out = self._model(
            attention_mask=mask,
            position_ids=position,
            past_key_values=self,
            use_cache=True,
            logits_to_keep=1 if "inputs_embeds" in inputs else 0,
            **inputs,
        )
        logits: Tensor = out.logits
        return logits

    def _forget(self) -> None:
        """Drop what no beam descends from: most beams of an image soon have the same ancestors."""
        for slot in (self._used_N + self._beams > self._seen_NKS.shape[2]).nonzero().flatten():
            alive_L = self._seen_NKS[slot].any(0).nonzero().flatten()
            for buffer in (*self._keys, *self._values):
                buffer[slot, :, : len(alive_L)] = buffer[slot].index_select(1, alive_L)
            seen_KL = self._seen_NKS[slot][:, alive_L]
            self._seen_NKS[slot] = False
            self._seen_NKS[slot, :, : len(alive_L)] = seen_KL
            self._used_N[slot] = len(alive_L)

    def _require_width(self, width: int) -> None:
        """Make room for so many keys of an image, twice as many as there were at least."""
        more = width - self._seen_NKS.shape[2]
        if more <= 0:
            return
        more = max(more, self._seen_NKS.shape[2] - self._prefix)
        pad = torch.nn.functional.pad
        self._seen_NKS = pad(self._seen_NKS, (0, more))
        self._keys = [pad(buffer, (0, 0, 0, more)) for buffer in self._keys]
        self._values = [pad(buffer, (0, 0, 0, more)) for buffer in self._values]


class Rows:
    """A tree for any other model: each beam is a row with keys and values of its own."""

    can_join = False

    def __init__(self, language_model: Any, beams: int) -> None:  # noqa: ANN401 - as above
        """Begin with no image."""
        self._model, self._beams = language_model, beams
        self._cache: Any = None
        self._is_first = True

    def join(self, prefix_BPE: Tensor) -> Tensor:
        """Read the prefixes of the first images; return `logits_BV`."""
        out = self._model(inputs_embeds=prefix_BPE, use_cache=True, logits_to_keep=1)
        self._cache, self._is_first = out.past_key_values, True
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV

    def advance(self, token_NK: Tensor, source_NK: Tensor) -> Tensor:
        """Read one more token of each beam; return `logits_NKV`."""
        first_N1 = torch.arange(len(token_NK), device=token_NK.device)[:, None]
        row_NK = first_N1.expand_as(token_NK)
        if not self._is_first:
            row_NK = first_N1 * self._beams + source_NK
        self._cache.batch_select_indices(row_NK.flatten())
        self._is_first = False
        out = self._model(
            input_ids=token_NK.reshape(-1, 1), past_key_values=self._cache, use_cache=True
        )
        logits_NKV: Tensor = out.logits.view(*token_NK.shape, -1)
        return logits_NKV

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these images, in this order."""
        beams = 1 if self._is_first else self._beams
        rows = [slot * beams + beam for slot in slots for beam in range(beams)]
        device = self._model.device
        self._cache.batch_select_indices(torch.tensor(rows, dtype=torch.long, device=device))


def has_window(config: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a language model looks back only so far, by the order of what it has read."""
    return any(getattr(config, name, None) for name in ("sliding_window", "window_size"))


@torch.inference_mode()
def takes_trees(language_model: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a model reads a tree as it reads rows, by having it do both.

    One with positions that come from the order of the keys (ALiBi) or with a state does not; nor
    does one that forgets what lies far behind, which its configuration tells.
    """
    if has_window(language_model.config):
        return False
    generator = torch.Generator().manual_seed(0)
    dim = language_model.get_input_embeddings().weight.shape[1]
    vocabulary = language_model.get_input_embeddings().weight.shape[0]
    prefix_BPE = torch.randn(2, 3, dim, generator=generator)
    prefix_BPE = prefix_BPE.to(language_model.device, language_model.dtype)
    token_TNK = torch.randint(vocabulary, (3, 2, 2), generator=generator)
    source_NK = torch.tensor([[1, 1], [0, 1]], device=language_model.device)
    try:
        found, wanted = (
            _probe(tree, prefix_BPE, token_TNK.to(language_model.device), source_NK)
            for tree in (Shared(language_model, 2, 2), Rows(language_model, 2))
        )
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        _LOG.debug("reads no trees", exc_info=error)
        return False
    difference = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)
    limit = _PROBE if language_model.dtype == torch.float32 else 50 * _PROBE
    return bool(difference < limit)


def _probe(tree: Tree, prefix_BPE: Tensor, token_TNK: Tensor, source_NK: Tensor) -> Tensor:
    found = [tree.join(prefix_BPE).flatten()]
    for token_NK in token_TNK:
        found.append(tree.advance(token_NK, source_NK).flatten())
    return torch.cat(found).float()
