"""Batches of pixels in, embeddings out, on a CUDA device that never waits for the caller.

A batch is copied while the one before it is computed, and its embeddings come back while the next
one runs. Shapes that come again are recorded as CUDA graphs: without them a small model spends its
time on starting kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_MOST_GRAPHS: Final = 2  # each holds the memory of a batch
_LEAST_FULL: Final = 0.5  # a smaller batch is cheaper by itself than filled up

Forward = Callable[[Tensor], Tensor]
"""uint8 pixels [B, H, W, 3] on the device in, float32 [B, D] on the device out."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A forward of one shape: what `replay` reads and where it writes."""

    pixels_BHWC: Tensor
    embeddings_BD: Tensor
    replay: Callable[[], None]


def record(forward: Forward, pixels_BHWC: Tensor) -> Recorded:
    """Record a forward as a CUDA graph.

    Raises:
        RuntimeError: it does what a graph cannot, or the memory does not do.
    """
    static_BHWC = pixels_BHWC.clone()
    graph = torch.cuda.CUDAGraph()
    # Other threads may pin memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        embeddings_BD = forward(static_BHWC)
    return Recorded(static_BHWC, embeddings_BD, graph.replay)


class Graphs:
    """A forward that is recorded when a shape comes for the second time; not for several threads.

    What it returns holds until the next call. A smaller batch is filled up with what lay there
    before: images do not look at each other.
    """

    def __init__(
        self, forward: Forward, record: Callable[[Forward, Tensor], Recorded] = record
    ) -> None:
        self._forward, self._record = forward, record
        self._seen: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], Recorded] = {}
        self._can_record = True

    def __call__(self, pixels_BHWC: Tensor) -> Tensor:
        """Return embeddings, float32 [B, D]."""
        shape = tuple(pixels_BHWC.shape)
        graph = self._fitting(shape)
        if graph is None and shape in self._seen and self._can_record:
            graph = self._recorded(pixels_BHWC)
        if graph is None:
            self._seen.add(shape)
            return self._forward(pixels_BHWC)
        graph.pixels_BHWC[: shape[0]].copy_(pixels_BHWC)
        graph.replay()
        return graph.embeddings_BD[: shape[0]]

    def _fitting(self, shape: tuple[int, ...]) -> Recorded | None:
        count, *image = shape
        sizes = [
            size for size, *other in self._graphs
            if other == image and _LEAST_FULL * size <= count <= size
        ]  # fmt: skip
        return self._graphs[min(sizes), *image] if sizes else None

    def _recorded(self, pixels_BHWC: Tensor) -> Recorded | None:
        if len(self._graphs) >= _MOST_GRAPHS:
            torch.cuda.synchronize()  # it may still run
            del self._graphs[next(iter(self._graphs))]
        try:
            graph = self._record(self._forward, pixels_BHWC)
        except RuntimeError as error:
            self._can_record = False
            _LOG.info("runs without CUDA graphs: %s", str(error).partition("\n")[0])
            return None
        self._graphs[tuple(pixels_BHWC.shape)] = graph
        return graph


class Pipeline:
    """Begins with batches on a CUDA device; threads may share it."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward = Graphs(forward)
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._lock = Lock()

    def begin(self, pixels_BHWC: Tensor) -> Callable[[], Tensor]:
        """Ask the device for embeddings of uint8 pixels; return what waits for them.

        Raises:
            OutOfMemoryError: the batch does not fit; also at the wait.
        """
        pinned_BHWC = pixels_BHWC.pin_memory()
        with self._lock, torch.cuda.device(self._device), torch.inference_mode():
            computing = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                there_BHWC = pinned_BHWC.to(self._device, non_blocking=True)
            computing.wait_stream(self._copies)
            there_BHWC.record_stream(computing)
            embeddings_BD = self._forward(there_BHWC)
            back_BD = torch.empty(embeddings_BD.shape, dtype=torch.float32, pin_memory=True)
            back_BD.copy_(embeddings_BD, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

        def wait() -> Tensor:
            done.synchronize()
            return back_BD.clone()  # pinned memory is scarce

        return wait
