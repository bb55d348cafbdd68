"""Shards' rows in, embedding rows out: the model runs while the next images are decoded."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np
import pyarrow as pa

from clipcap import alive, embedding, tables, tuning, workers
from clipcap.embedding import EmbedSettings, Speed
from clipcap.encoding import peak_gpu_bytes
from clipcap.errors import ClipcapError, ImageError, StorageError
from clipcap.feed import PIXELS, WINDOW, Batch, Feed, Part, Waits
from clipcap.intake import Refused
from clipcap.planning import Todo
from clipcap.preprocessing import Preprocess
from clipcap.sample import Bytes, Sample
from clipcap.windows import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from clipcap.encoders import Encoder

_LOG = logging.getLogger(__name__)
_TOLD: Final[set[str]] = set()

T = TypeVar("T")


@dataclass(slots=True)
class Embedded:
    """What embedding some images gave: rows, images that gave none, and where the seconds went.

    `failure` says why the part as a whole gave nothing. `started` is by the clock, `model_s` inside
    the model, which is on `device`, and `peak_gpu_bytes` the most memory that it had there; `waits`
    is what the model had to wait for, with the next part's first batch.
    """

    tables: list[pa.Table] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    failure: StorageError | None = None
    model_s: float = 0.0
    device: str = ""
    peak_gpu_bytes: int = 0
    waits: Waits = field(default_factory=Waits)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(part.num_rows for part in self.tables)

    def table(self, dim: int) -> pa.Table:
        """Return the rows."""
        return pa.concat_tables([tables.embeddings_schema(dim).empty_table(), *self.tables])


@dataclass(frozen=True, slots=True)
class _Running(Generic[T]):
    """A batch inside the model; `result` waits for the embeddings of its `good` images."""

    batch: Batch[T]
    good: NDArray[np.intp]
    result: Callable[[], Tensor]
    started: float
    begun_s: float


class Embedder(Generic[T]):
    """A loaded encoder, and workers that decode for it."""

    def __init__(
        self,
        settings: EmbedSettings,
        speed: Speed,
        *,
        run_id: str,
        images: int,
        grid: Grid | None = None,
    ) -> None:
        """Start the workers and load the encoder.

        Args:
            settings: which encoder.
            speed: how fast.
            run_id: what the rows say.
            images: about how many there will be: whether measuring the best batch size pays.
            grid: windows of each image that are embedded in its place; their rows have `WINDOW`.
        """
        workers.pool(PIXELS, speed.decode)  # they start while the model is loaded
        self._settings, self._speed, self._run_id = settings, speed, run_id
        self.encoder: Encoder = embedding.load(settings, speed)
        preprocess = Preprocess.of(json.loads(self.encoder.preprocess_json))
        self._preprocess = replace(preprocess, grid=grid)
        pictures = images * self._preprocess.pictures
        self.batch_size = tuning.batch_size(self.encoder, speed.batch_size, pictures)

    def embedded(self, parts: Iterable[Part[T]]) -> Generator[tuple[T, Embedded]]:
        """Yield what each part gave, in order.

        Raises:
            TransientStorageError: the store says "later".
        """
        feed: Feed[T] = Feed(
            self._preprocess,
            self._settings.pixels,
            self._speed.decode,
            batch_size=self.batch_size,
            prefetch=self._speed.prefetch,
        )
        made, waited = Embedded(), Waits()
        with feed:
            for running in self._running(feed.batches(parts)):
                self._keep(made, running)
                if running.batch.is_last:
                    made.waits, waited = feed.waits.since(waited), replace(feed.waits)
                    yield running.batch.of, made
                    made = Embedded()

    def _running(self, batches: Iterator[Batch[T]]) -> Iterator[_Running[T]]:
        """Begin with each batch before the one ahead of it is waited for."""
        before: _Running[T] | None = None
        failed: ClipcapError | None = None
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except ClipcapError as error:  # what was begun before it is whole
                failed = error
                break
            good = np.flatnonzero([error is None for error in batch.errors])
            started, began = time.time(), time.perf_counter()
            result = self._begin(batch, good)
            begun_s = time.perf_counter() - began
            alive.beat()
            if before is not None:
                yield before
            before = _Running(batch, good, result, started, begun_s)
        if before is not None:
            yield before
        if failed is not None:
            raise failed

    def _begin(self, batch: Batch[T], good: NDArray[np.intp]) -> Callable[[], Tensor]:
        import torch  # noqa: PLC0415 - what only finds out that nothing is to do needs none

        if not len(good):
            return lambda: torch.zeros(0, self.encoder.dim)
        is_whole = len(good) == len(batch.errors)
        pixels = batch.pixels_BHWC if is_whole else batch.pixels_BHWC[good]
        return self.encoder.encode_pixels(torch.from_numpy(pixels))

    def _keep(self, made: Embedded, running: _Running[T]) -> None:
        """Add what a batch gave: rows, their numbers rounded to float16, or rejects."""
        began = time.perf_counter()
        made.started = min(made.started, running.started)
        raw_BD = running.result().numpy()
        made.model_s += running.begun_s + time.perf_counter() - began
        device = self.encoder.device
        made.device, made.peak_gpu_bytes = str(device), peak_gpu_bytes(device)
        made.failure = made.failure or running.batch.failure
        rows, errors = running.batch.rows, running.batch.errors
        norm_B = np.linalg.norm(raw_BD.astype(np.float64), axis=1)
        has_direction = np.isfinite(norm_B) & (norm_B > 0)
        unusable = ImageError("model_error", "The embedding is not finite or has length 0.")
        bad = {n: error for n, error in enumerate(errors) if error is not None}
        bad |= dict.fromkeys(running.good[~has_direction].tolist(), unusable)
        if bad:
            named = rows.take(pa.array(list(bad), pa.int64())).to_pylist()
            made.refused += map(_refused, named, bad.values())
        kept = rows.take(pa.array(running.good[has_direction]))
        if kept.num_rows:
            raw_BD, norm_B = raw_BD[has_direction], norm_B[has_direction]
            made.tables.append(self._table(kept, raw_BD / norm_B[:, None], norm_B))
            self._tell_speed(made)

    def _table(
        self, rows: pa.Table, unit_BD: NDArray[np.floating[Any]], norm_B: NDArray[np.float64]
    ) -> pa.Table:
        schema = tables.embeddings_schema(self.encoder.dim)
        rounded = unit_BD.astype(np.float16).astype(np.float32)
        flat = pa.array(rounded.reshape(-1))
        columns = {
            **{name: rows[name] for name in ("image_id", "key", "content_sha256")},
            "model_id": pa.repeat(self.encoder.model_id, rows.num_rows),
            "embedding": pa.FixedSizeListArray.from_arrays(
                flat, type=schema.field("embedding").type
            ),
            "embedding_norm": pa.array(norm_B.astype(np.float32)),
            "run_id": pa.repeat(self._run_id, rows.num_rows),
            "extra_json": pa.nulls(rows.num_rows, pa.string()),
        }
        if WINDOW in rows.schema.names:
            columns[WINDOW] = rows[WINDOW]
            schema = schema.append(rows.schema.field(WINDOW))
        return pa.table(columns, schema=schema)

    def _tell_speed(self, made: Embedded) -> None:
        """Log, once for each model of a process, where it runs and what its first batch took."""
        if self.encoder.model_id in _TOLD:
            return
        _TOLD.add(self.encoder.model_id)
        import torch  # noqa: PLC0415 - as above

        on_cpu = self.encoder.device.type == "cpu"
        place = f"{torch.get_num_threads()} CPU threads" if on_cpu else str(self.encoder.device)
        _LOG.info(
            "embed: %s runs on %s, %d images at a time, %d processes decode; "
            "first batch: %.0f images/s",
            self.encoder.model_id, place, self.batch_size, self._speed.decode.count,
            made.count / max(time.time() - made.started, 1e-9),
        )  # fmt: skip


def _refused(row: dict[str, Any], error: ImageError) -> Refused:
    sample = Sample(row["source_uri"], row["source_etag"], row["source_bytes"], Bytes(""))
    tried = int(json.loads(row["extra_json"] or "{}").get("attempts", 0))
    return Refused(Todo(sample, row["first_seen_at"], tried), error.reason, error)
