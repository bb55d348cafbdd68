"""Rows of manifests and their tars in, batches of pixels out: read and decoded ahead of the model.

A batch never mixes two parts, but the decoding runs on into the next ones: the model does not wait
where a shard ends. What is held at a time is bounded by `prefetch` batches.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import pyarrow as pa

from clipcap import ranges, storage, tables, workers
from clipcap.errors import ImageError, NotFoundError, StorageError, TransientStorageError
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.sharedmemory import SharedMemory
from clipcap.workers import WorkerSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXELS: Final = "clipcap.pixels"
"""What the workers run; imported by them alone, for it needs torch."""
WINDOW: Final = "window"
"""Where there is a grid, the column of a batch that tells which window of its image a row is."""
_CHANGED: Final = "changed"  # clipcap.pixels.CHANGED
_BATCH_BYTES: Final = 2**26  # of files in one batch, unless its first is larger
_ALL_BYTES: Final = 2**29  # of files in all batches that are ahead
_THREADS: Final = 32
_HELD: Final = 2  # batches that the caller may still use
_LEAST_AHEAD: Final = 4  # batches: two with the caller, one done, one at work
_MOST_BYTES: Final = 2**29  # of pixels, as long as the least fits
_SERIALS: Final = itertools.count()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """Images of one tar: `rows` has `member`, `member_offset`, `member_bytes`, `content_sha256`."""

    of: T
    tar: str
    rows: pa.Table
    view: int = 0
    """Which augmented view of them; 0: they themselves."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Some images of a part; with a grid, some windows: a row for each window of each image.

    `pixels_BHWC` are uint8, with a hole where `errors` has the reason. They are overwritten when
    the second batch after this one is asked for.
    """

    of: T
    rows: pa.Table
    pixels_BHWC: NDArray[np.uint8]
    errors: tuple[ImageError | None, ...]
    is_last: bool
    failure: StorageError | None = None
    """Why the tar gives nothing: it is gone, or does not hold what its manifest says."""


@dataclass(slots=True)
class Waits:
    """Seconds that whoever takes the batches had to wait, and for what."""

    read_s: float = 0.0
    decode_s: float = 0.0

    def since(self, before: Waits) -> Waits:
        """Return what came on top."""
        return Waits(self.read_s - before.read_s, self.decode_s - before.decode_s)


@dataclass(frozen=True, slots=True)
class _Cut(Generic[T]):
    """What shall become a batch."""

    part: Part[T]
    rows: pa.Table
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Begun(Generic[T]):
    """A batch at work: first its files are read into memory, then workers decode them."""

    cut: _Cut[T]
    region: int
    asked: Future[tuple[SharedMemory | None, list[Future[list[Any]]]]]


def ahead(batch_size: int, image_bytes: int, processes: int) -> int:
    """Return how many batches to hold: enough to keep the workers busy, as far as memory allows."""
    busy = -(-4 * processes * workers.CHUNK // batch_size) + _HELD
    fitting = _MOST_BYTES // (batch_size * image_bytes)
    return max(_LEAST_AHEAD, min(busy, fitting))


class Feed(Generic[T]):
    """Decodes ahead; `with` it, so that its memory is given back."""

    def __init__(
        self,
        wanted: Preprocess,
        pixels: PixelSettings,
        decode: WorkerSettings,
        *,
        batch_size: int,
        prefetch: int | None = None,
    ) -> None:
        self._grid, self._each = wanted.grid, wanted.pictures
        self._images = max(1, batch_size // self._each)
        self._each_region = self._images * self._each
        shape = (self._each_region, wanted.height, wanted.width, 3)
        size = int(np.prod(shape))
        wanted_ahead = prefetch or ahead(self._images, size // self._images, decode.count)
        regions = max(wanted_ahead, _HELD + 1)
        self.waits = Waits()
        self._batch_bytes = min(_BATCH_BYTES, max(ranges.MOST, _ALL_BYTES // regions))
        self._pool = workers.pool(PIXELS, decode)
        self._memory = SharedMemory(regions * size)
        self._slots = np.frombuffer(self._memory.map, np.uint8, regions * size)
        self._slots = self._slots.reshape(regions, *shape)
        self._free = deque(range(regions))
        self._begun: deque[_Begun[T]] = deque()
        self._shared = {
            "memory": self._memory.path,
            "serial": next(_SERIALS),
            "preprocess": asdict(wanted),
            "settings": pixels.model_dump(),
        }
        self._batches = ThreadPoolExecutor(min(regions, _THREADS), thread_name_prefix="feed")
        self._reads = ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="feed-read")

    def __enter__(self) -> Feed[T]:
        return self

    def __exit__(self, *_: object) -> None:
        while self._begun:
            self._settle(self._begun.popleft())
        self._batches.shutdown()
        self._reads.shutdown()
        self._memory.close()

    def _settle(self, begun: _Begun[T]) -> None:
        """Wait until no worker looks at the memory of a batch that nobody will take."""
        if begun.asked.cancel():
            return
        wait([begun.asked])
        if begun.asked.exception() is None:
            memory, asked = begun.asked.result()
            wait([one for one in asked if not one.cancel()])
            if memory is not None:
                memory.close()

    def batches(self, parts: Iterable[Part[T]]) -> Iterator[Batch[T]]:
        """Yield all images of the parts, in order; a part that fails does not keep others from it.

        Raises:
            TransientStorageError: the store says "later".
        """
        cuts = _cut(parts, self._images, self._batch_bytes)
        held: deque[int] = deque()
        while True:
            while self._free and (cut := next(cuts, None)) is not None:
                region = self._free.popleft()
                asked = self._batches.submit(self._begin, cut, region)
                self._begun.append(_Begun(cut, region, asked))
            if not self._begun:
                return
            first = self._begun[0]
            yield self._done(first)
            self._begun.popleft()
            held.append(first.region)
            if len(held) == _HELD:
                self._free.append(held.popleft())

    def _begin(
        self, cut: _Cut[T], region: int
    ) -> tuple[SharedMemory | None, list[Future[list[Any]]]]:
        places = [
            (row["member_offset"], row["member_bytes"])
            for row in cut.rows.select(["member_offset", "member_bytes"]).to_pylist()
        ]
        digests = cut.rows["content_sha256"].to_pylist()
        path, memory = storage.local_path(cut.part.tar), None
        if path is None:
            memory, places = self._fetched(cut.part.tar, places)
        elif places and not path.is_file():
            raise NotFoundError(f"Cannot read {cut.part.tar}: it is not there.")
        source, slot = str(path) if memory is None else memory.path, region * self._each_region
        items = [
            [source, *place, sha256, slot + n * self._each, cut.part.view]
            for n, (place, sha256) in enumerate(zip(places, digests, strict=True))
        ]
        return memory, self._pool.submit(self._shared, items)

    def _fetched(
        self, url: str, places: Sequence[tuple[int, int]]
    ) -> tuple[SharedMemory, list[tuple[int, int]]]:
        """Read ranges of an object into memory, neighbours in one request; return where they lie.

        `places` are offsets and lengths, in ascending order.
        """
        runs = list(ranges.runs(places))
        lying, at = [], 0
        for start, end in runs:
            lying.append(at)
            at += end - start

        def read(start: int, end: int, to: int) -> None:
            data = storage.read_range(url, start, end - start)
            memory.write(data, to)

        with ExitStack() as undo:  # an error waits for the others: they write into the memory
            memory = SharedMemory(at)
            undo.callback(memory.close)
            asked = [
                self._reads.submit(read, *run, to) for run, to in zip(runs, lying, strict=True)
            ]
            undo.callback(wait, asked)
            for one in asked:
                one.result()
            undo.pop_all()
        found, run = [], 0
        for offset, length in places:
            while offset >= runs[run][1] and run + 1 < len(runs):
                run += 1
            found.append((lying[run] + offset - runs[run][0], length))
        return memory, found

    def _done(self, begun: _Begun[T]) -> Batch[T]:
        cut, slots = begun.cut, self._slots[begun.region]
        try:
            answers = self._answers(begun)
        except TransientStorageError:
            raise
        except StorageError as error:
            return Batch(cut.part.of, cut.rows, slots[:0], (), cut.is_last, error)
        rows = tables.numbered(cut.rows, self._each, WINDOW) if self._grid else cut.rows
        errors = tuple(answer for answer in answers for _ in range(self._each))
        return Batch(cut.part.of, rows, slots[: len(errors)], errors, cut.is_last)

    def _answers(self, begun: _Begun[T]) -> list[ImageError | None]:
        started = time.perf_counter()
        memory, asked = begun.asked.result()
        read = time.perf_counter()
        answers = [answer for one in asked for answer in one.result()]
        if memory is not None:
            memory.close()
        self.waits.read_s += read - started
        self.waits.decode_s += time.perf_counter() - read
        if _CHANGED in answers:
            part, member = begun.cut.part, begun.cut.rows["member"][answers.index(_CHANGED)]
            raise StorageError(
                f"The tar {storage.without_credentials(part.tar)} must hold {member} with the "
                "content digest of its manifest, but does not: it is cut or was changed. Run again "
                "over the source if the tar is one of its own, or `clipcap verify`."
            )
        return answers


def _cut(parts: Iterable[Part[T]], batch_size: int, batch_bytes: int) -> Iterator[_Cut[T]]:
    """Yield each part in pieces, in the order of its tar; a part without rows gives one too."""
    for part in parts:
        rows = part.rows.sort_by("member_offset")
        sizes = rows["member_bytes"].to_pylist()
        at = 0
        while True:
            end, size = at, 0
            while end < len(sizes) and end - at < batch_size:
                size += sizes[end]
                if size > batch_bytes and end > at:
                    break
                end += 1
            yield _Cut(part, rows.slice(at, end - at), end == len(sizes))
            if end == len(sizes):
                break
            at = end
