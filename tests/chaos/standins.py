"""Models whose every number can be foretold, and threads and workers that do their work at once.

What stands in for a model, a worker process or a thread pool here is asked by the real stages in
the real order; nothing of the stages, flows and tables themselves is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, cached_property, lru_cache
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self, TypeVar
from unittest.mock import patch

import duckdb
import pyarrow as pa
import torch
from torch import Tensor

import clipcap.encoders
from clipcap import (
    captioner,
    cards,
    models,
    registry,
    scratch,
    sharedmemory,
    storage,
    tables,
    workers,
)
from clipcap.candidates import Candidate
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.errors import ImageError
from clipcap.labels import bank
from clipcap.models import EncoderRef
from tests.chaos.store import Store, opener_of_storage

T = TypeVar("T")

_POOLED = ("ahead", "index", "feed", "listings", "summaries", "stages.embed", "report.gathering",
           "verify")  # fmt: skip
"""Modules of clipcap that have threads of their own."""
_LOCKS = [
    "clipcap.labels.bank._LOCK",
    "clipcap.stages.caption._LOCK",
    *(["clipcap.stages.label._Work.live.lock"] if sys.version_info < (3, 12) else []),
]
"""What two runs in two processes do not share; that of `cached_property` is of a class."""
_READ_ONCE = ((registry, "load"), (cards, "read_card"), (cards, "captioner_digest"), (bank, "load"))
"""What a process of one night reads from the disk, and these nights of one process need not."""
_READ_TWICE = ("_parsed", "_parsed_footer")
"""Functions of `clipcap.tables` that give of the same bytes the same each time."""
CAPTIONED = {"images": 0}
"""How many images the stand-in captioners were asked for."""


class AtOnce:
    """A `ThreadPoolExecutor` that does what it is given in the thread that gives it."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take what an executor takes."""

    def submit(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401
        future: Future[T] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def map(self, work: Callable[..., T], *items: Iterable[Any]) -> Iterator[T]:
        return map(work, *items)

    def shutdown(self, *_: object, **__: object) -> None:
        """Do nothing: nothing is under way."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class Here:
    """A `workers.Pool` that works in this process; what harms a worker is tested elsewhere."""

    def __init__(self, module: str) -> None:
        self._work = import_module(module).work

    def submit(
        self, shared: Mapping[str, Any], items: Sequence[Sequence[Any]]
    ) -> list[Future[list[Any]]]:
        future: Future[list[Any]] = Future()
        future.set_result([self._answer(shared, item) for item in items])
        return [future]

    def each(self, shared: Mapping[str, Any], files: Iterable[bytes]) -> Iterator[Any]:
        for data in files:
            with sharedmemory.SharedMemory(0) as memory:
                [place] = memory.refilled([data])
                yield self._answer(shared, list(place))

    def _answer(self, shared: Mapping[str, Any], item: Sequence[Any]) -> Any:  # noqa: ANN401
        try:
            return self._work(shared, item)
        except ImageError as error:
            return error


class Telling:
    """A captioner that tells its name and the embedding that it sees."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.device = torch.device("cpu")

    def for_captions(self, _precision: str) -> Self:
        return self

    def caption(self, embedding_BD: Tensor, _norm_B: Tensor, **_: object) -> list[list[Candidate]]:
        CAPTIONED["images"] += len(embedding_BD)
        texts = [caption_of(self.card.captioner_id, one.numpy()) for one in embedding_BD]
        return [[Candidate(text, (1, 2), -0.5, "stop")] for text in texts]


def caption_of(captioner_id: str, embedding_D: Sequence[float]) -> str:
    """Return what a captioner says of an embedding."""
    return f"{captioner_id} saw {', '.join(f'{value:.2f}' for value in embedding_D[:3])}."


class Shared(scratch.Scratch):
    """A scratch database of its own in one DuckDB: another DuckDB for each night is most of it."""

    _one: ClassVar[duckdb.DuckDBPyConnection | None] = None
    _numbers: ClassVar[Iterator[int]] = count()

    @cached_property
    def database(self) -> duckdb.DuckDBPyConnection:
        if Shared._one is None:
            Shared._one = duckdb.connect(":memory:", config={"threads": 1})
        database = Shared._one.cursor()
        self._name = f"night_{next(self._numbers)}"
        database.execute(f"SET TimeZone = 'UTC'; ATTACH ':memory:' AS {self._name}")
        database.execute(f"USE {self._name}; PRAGMA disable_optimizer")
        return database

    def close(self) -> None:
        if "database" in self.__dict__:
            self.database.execute(f"USE memory; DETACH {self._name}")
            self.database.close()

    def batches(self, query: str, *parameters: object) -> Iterator[pa.RecordBatch]:
        found = self.database.sql(query, params=list(parameters))
        yield from found.to_arrow_table().to_batches(scratch.ROWS)


def make_captioner(folder: Path, captioner_id: str, ref: EncoderRef) -> str:
    """Write the folder of a captioner that fits an encoder; return its name."""
    place = folder / f"{captioner_id}-{ref.model_id}"
    place.mkdir(parents=True)
    fit = EncoderFit(
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )
    card = Card(captioner_id=captioner_id, encoder=fit, decode=Choice(name="greedy"))
    (place / cards.MAPPER_NAME).write_text(captioner_id)
    cards.write_card(str(place), card)
    return str(place)


def colours() -> ModuleType:
    """Return the stand-in encoder's file, as the registry of encoders finds it."""
    folder = str(Path(__file__).parent / "encoders")
    if folder not in clipcap.encoders.__path__:
        clipcap.encoders.__path__.append(folder)
    return import_module("clipcap.encoders.colours")


@contextmanager
def models_installed() -> Iterator[None]:
    """Let models and workers be those of this file; stores, threads and databases are real."""
    encoder, real = colours(), models.encoder
    pools: dict[str, Here] = {}

    def known(name: str) -> EncoderRef:
        found: EncoderRef = encoder.reference(name)
        return found if name.startswith("colours") else real(name)

    def pool(module: str, _settings: object) -> Here:
        return pools.setdefault(module, Here(module))

    def load(folder: str, _device: str = "cpu") -> Telling:
        return Telling(cards.read_card(folder))

    with ExitStack() as patches:
        enter = patches.enter_context
        enter(patch.object(models, "encoder", known))
        enter(patch.object(workers, "pool", pool))
        enter(patch.object(captioner, "load", load))
        enter(patch("flows._join.RETRY_DELAYS_S", (0.0, 0.0, 0.0)))
        yield


@contextmanager
def installed(store: Store) -> Iterator[None]:
    """Let models, workers, threads, databases and stores be those of this file."""
    with ExitStack() as patches:
        enter = patches.enter_context
        enter(models_installed())
        for module, name in _READ_ONCE:
            enter(patch.object(module, name, cache(getattr(module, name))))
        for name in _READ_TWICE:
            enter(patch.object(tables, name, lru_cache(4_096)(getattr(tables, name))))
        enter(patch.object(storage, "_place", store.opener(opener_of_storage())))
        enter(patch.object(scratch, "Scratch", Shared))
        for name in _POOLED:
            enter(patch(f"clipcap.{name}.ThreadPoolExecutor", AtOnce))
        for place in _LOCKS:
            enter(patch(place, nullcontext()))
        yield
