"""Steps of a tree on a CUDA device in, the same steps in few shapes out, recorded as CUDA graphs.

A step of a small language model is a few hundred kernels, which take longer to start than to run.
A recorded step starts them all at once. It needs the same memory each time: so it reads all slots,
whether an image stands there or not, and a width of the buffer that is rounded up. Choosing tokens,
refilling slots and dropping dead beams stay as they are, between the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Final, Self

import torch
from torch import Tensor

from clipcap import trees
from clipcap.trees import Shared, Tree

_LOG = logging.getLogger(__name__)
_STEPS: Final = 4  # tokens of all beams between two widths
_MOST_TREES: Final = 2  # each holds keys, values and logits of all slots
_LEAST_FULL: Final = 0.5  # fewer images are cheaper by themselves than with empty slots beside them
_NEAR: Final = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative difference of logits that rounding explains."""

Run = Callable[[], Tensor]
"""Reads its static inputs and returns `logits_NKV`; run twice it does what it does run once."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What was recorded: where a replay writes its logits."""

    logits_NKV: Tensor
    replay: Callable[[], None]


def record(run: Run) -> Recording:
    """Record a step as a CUDA graph.

    Raises:
        RuntimeError: it does what a graph cannot, or the memory does not do.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may pin memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits_NKV = run()
    return Recording(logits_NKV, graph.replay)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of one width: what a replay reads, of all slots, and what was recorded."""

    inputs: tuple[Tensor, ...]
    recording: Recording

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits of the first slots."""
        _fill(self.inputs, inputs)
        self.recording.replay()
        return self.recording.logits_NKV[: len(inputs[0])]


def _fill(inputs: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Write into the first slots; the others keep what was there, which nobody looks at."""
    for static, new in zip(inputs, given, strict=True):
        static[: len(new)] = new


class Recorded(Shared):
    """A tree whose steps are recorded when their width comes for the second time.

    The logits of a step hold until the next one. Not for several threads.
    """

    def __init__(
        self,
        language_model: Any,  # noqa: ANN401 - transformers' own types are dynamic
        beams: int,
        slots: int,
        record: Callable[[Run], Recording] = record,
    ) -> None:
        """Begin with no image."""
        super().__init__(language_model, beams, slots)
        self._record = record
        self._came: set[int] = set()
        self._steps: dict[int, _Step] = {}
        self._can_record = True

    def cleared(self) -> Self:
        """Forget all images; memory and recordings stay."""
        self._step_N, self._used_N = self._step_N[:0], self._used_N[:0]
        self._seen_NKS = self._seen_NKS[:0]
        return self

    def _read(self, seen: Tensor, position: Tensor, **inputs: Tensor) -> Tensor:
        if self._at is None or len(position) < _LEAST_FULL * self._slots:
            return super()._read(seen, position, **inputs)
        width = self._rounded(self._width)
        seen_N1KS = self._seen_NKS[:, None, :, :width]
        given = (inputs["input_ids"], position, self._at[1], seen_N1KS)
        step = self._steps.get(width)
        if step is None and width in self._came and self._can_record:
            step = self._recorded(width, given)
        self._came.add(width)  # run once, it has started what cannot be started while recording
        if step is None:
            return super()._read(seen, position, **inputs)
        return step.replay(given)

    def _rounded(self, width: int) -> int:
        """Return the next larger of a few widths."""
        more = _STEPS * self._beams
        return min(self._prefix - (self._prefix - width) // more * more, self._seen_NKS.shape[2])

    def _recorded(self, width: int, given: Sequence[Tensor]) -> _Step | None:
        """Record the step of a width, and look whether a replay gives what a plain step gives."""
        inputs = tuple(new.new_zeros(self._slots, *new.shape[1:]) for new in given)
        inputs[-1][..., 0] = True  # who sees nothing at all has NaN to say, and leaves it behind
        _fill(inputs, given)
        run = partial(self._plain, inputs, width)
        try:
            recording = self._record(run)
            found_NKV = _Step(inputs, recording).replay(given).clone()
        except RuntimeError as error:
            self._refuse(str(error).partition("\n")[0])
            return None
        wanted_NKV = run()[: len(found_NKV)].float()
        off = float((found_NKV - wanted_NKV).abs().max() / wanted_NKV.abs().max().clamp(min=1e-6))
        if not off < _NEAR.get(found_NKV.dtype, 0.0):
            self._refuse(f"a replay gives other logits (by {off:.2g} of the largest)")
            return None
        self._steps[width] = _Step(inputs, recording)
        return self._steps[width]

    def _refuse(self, reason: str) -> None:
        self._can_record = False
        _LOG.info("captions are found without CUDA graphs: %s", reason)

    def _plain(self, inputs: tuple[Tensor, ...], width: int) -> Tensor:
        """Read one step of all slots; what it writes into the buffers it may write again."""
        token_NK, position_NK, at_NK, seen_N1KS = inputs
        kept = self._at, self._width
        row_N1 = torch.arange(self._slots, device=at_NK.device)[:, None]
        self._at, self._width = (row_N1, at_NK), width
        try:
            return super()._read(seen_N1KS, position_NK, input_ids=token_NK)
        finally:
            self._at, self._width = kept

    def _require_width(self, width: int) -> None:
        """Make room; what was recorded reads the memory that was there before."""
        before = self._seen_NKS.shape[2]
        super()._require_width(width)
        if self._seen_NKS.shape[2] != before:
            if self._steps and self._seen_NKS.is_cuda:
                torch.cuda.synchronize()  # they may still run
            self._steps.clear()
            self._came.clear()


class Kept:
    """The trees of one language model: those on a CUDA device are used again."""

    def __init__(self) -> None:
        """Begin with none."""
        self._trees: dict[tuple[torch.device, torch.dtype, int, int], Recorded] = {}

    def tree(self, language_model: Any, beams: int, slots: int, *, takes_trees: bool) -> Tree:  # noqa: ANN401 - as above
        """Return an empty tree, as `trees.of` does; it ends the one that was returned before."""
        if not takes_trees or language_model.device.type != "cuda":
            return trees.of(language_model, takes_trees=takes_trees, beams=beams, slots=slots)
        kind = (language_model.device, language_model.dtype, beams)
        larger = [key for key in self._trees if key[:-1] == kind and key[-1] >= slots]
        key = min(larger, default=(*kind, slots), key=itemgetter(-1))  # for the few left, too
        found = self._trees.pop(key, None) or Recorded(language_model, beams, slots)
        self._trees[key] = found
        if len(self._trees) > _MOST_TREES:
            torch.cuda.synchronize()  # it may still run
            del self._trees[next(iter(self._trees))]
        return found.cleared()
