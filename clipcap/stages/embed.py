"""Shards in, embeddings tables out: one L2-normalised row per live image, sorted by key.

The model goes on with the next shard while the table of the last one is written.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from typing import Final, Self

import pyarrow as pa

from clipcap import ahead, commits, embedding, intake, layout, manifest, moved, rows, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.embedder import Embedded, Embedder
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import ClipcapError, StorageError
from clipcap.feed import Part
from clipcap.intake import Refused
from clipcap.layout import Run, Shard
from clipcap.models import EncoderRef
from clipcap.outcomes import Outcome, State, committed

_LOOKED_UP: Final = 4  # shards ahead of the one that is embedded: hides the latency of a store
_WRITTEN: Final = 2  # tables that may wait to be written: bounds the memory


@dataclass(frozen=True, slots=True)
class _Job:
    """A shard: what is there of its embeddings, and its live images, of which some have none."""

    shard: Shard
    older: Commit | None
    wanted: Fingerprint
    live: int
    kept: pa.Table | None
    todo: pa.Table
    tar: str


@dataclass(frozen=True, slots=True)
class _Stage:
    """What all shards of a call have in common."""

    run: Run
    settings: EmbedSettings
    speed: Speed
    ref: EncoderRef

    def job(self, shard: Shard) -> _Job | Outcome:
        """Look a shard up: what is to do, or that it is done."""
        started = time.time()
        wanted = embedding.wanted(self.settings, shard, out=self.run.out)
        found = rows.standing(self.url(shard), wanted)
        if found.done:
            return _outcome(shard, "unchanged", found.done, Embedded(started=started))
        live = tables.read(layout.manifest(self.run.out, shard))
        kept = rows.live_rows(found.rows, live)
        todo = rows.missing(live, kept)
        same = moved.found(todo, shard, run=self.run, recipe=wanted.recipe, url=self.url)
        kept, todo = rows.together(kept, same.rows), rows.missing(todo, same.rows)
        tar = manifest.tar_url(self.run.out, shard, tables.metadata(live))
        older = found.older or same.source
        return _Job(shard, older, wanted, live.num_rows, kept, todo, tar)

    def url(self, shard: Shard) -> str:
        """Where the embeddings of a shard lie."""
        return layout.embeddings(self.run.out, shard, model_id=self.ref.model_id)


def embed(
    shards: Sequence[Shard], *, run: Run, settings: EmbedSettings, speed: Speed
) -> list[Outcome]:
    """Embed the live images of shards; one already done costs two small reads and no model.

    An image that gives no finite embedding leaves the manifest and becomes a reject.

    Raises:
        StorageError: a tar does not hold what its manifest says; all other shards are done.
    """
    stage = _Stage(run, settings, speed, embedding.reference(settings))
    with _Writer(stage) as writer:
        jobs = _with_images_to_do(stage, shards, writer)
        if first := next(jobs, None):
            images = first.todo.num_rows * len(shards)
            embedder: Embedder[_Job] = Embedder(settings, speed, run_id=run.run_id, images=images)
            parts = (Part(job, job.tar, job.todo) for job in chain([first], jobs))
            with closing(embedder.embedded(parts)) as embedded:
                for job, made in embedded:
                    writer.add(job, made)
    if writer.failures:
        shard, error = next(iter(writer.failures.items()))
        count = f"{len(writer.failures)} of {len(shards)} shards"
        raise StorageError(f"{count} could not be embedded, the others are. {shard}: {error}")
    return [writer.outcomes[shard] for shard in shards]


def _with_images_to_do(stage: _Stage, shards: Sequence[Shard], writer: _Writer) -> Iterator[_Job]:
    """Yield the shards that need the model; what the others need is done meanwhile."""
    for found in ahead.mapped(stage.job, shards, threads=_LOOKED_UP):
        if isinstance(found, Outcome):
            writer.outcomes[found.shard] = found
        elif found.todo.num_rows:
            yield found
        else:
            writer.add(found, Embedded())


class _Writer:
    """Writes behind: one thread, and never more than a few tables in memory."""

    def __init__(self, stage: _Stage) -> None:
        self.outcomes: dict[Shard, Outcome] = {}
        self.failures: dict[Shard, StorageError] = {}
        self._stage = stage
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="embed-write")
        self._waiting: deque[Future[Outcome]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let everything that is complete be written, also where a later shard has failed."""
        try:
            self._take(0)
        finally:
            self._pool.shutdown()

    def add(self, job: _Job, made: Embedded) -> None:
        """Have a shard written; waits while too many are."""
        if made.failure is not None:
            self.failures[job.shard] = made.failure
            return
        self._take(_WRITTEN - 1)
        run = copy_context().run  # what it logs belongs to this task
        self._waiting.append(self._pool.submit(run, _written, self._stage, job, made))

    def _take(self, left: int) -> None:
        while len(self._waiting) > left:
            outcome = self._waiting.popleft().result()
            self.outcomes[outcome.shard] = outcome


def _written(stage: _Stage, job: _Job, made: Embedded) -> Outcome:
    """Write the embeddings of a shard, once every one of its images is accounted for."""
    run, shard, wanted = stage.run, job.shard, job.wanted
    _require_working_model(made, stage.ref.model_id, shard)
    table = rows.joined(job.kept, made.table(stage.ref.dim))
    if table.num_rows + len(made.refused) != job.live:
        raise ClipcapError(
            f"{shard} has {job.live} live images, but {table.num_rows} embeddings and "
            f"{len(made.refused)} rejects came of them. Nothing was written."
        )
    if made.refused:
        _reject(made.refused, shard, run=run)
        wanted = embedding.wanted(stage.settings, shard, out=run.out)
    older = job.older
    scale = older if older and not made.count else embedding.load(stage.settings, stage.speed)
    metadata = embedding.metadata(stage.ref, embedding.scale_of(scale))
    commit = commits.publish(
        stage.url(shard),
        table,
        fingerprint=wanted,
        run_id=run.run_id,
        metadata=metadata | {"members": wanted.members},
    )
    return _outcome(shard, "written", commit, made)


def _require_working_model(made: Embedded, model_id: str, shard: Shard) -> None:
    """Refuse to empty a shard because a model, a device, a number format or a limit is at fault."""
    reasons = Counter(sample.reason for sample in made.refused)
    if made.count or len(made.refused) == 1:
        return
    broken = reasons["model_error"]
    if broken > 1:
        raise ClipcapError(
            f"{model_id} gave no finite embedding for any of the {broken} images of {shard}: "
            "the model, the device or its number format is broken. Nothing was changed; try "
            "`--device cpu` or another model."
        )
    if made.refused and reasons["timeout"] + reasons["oom"] == len(made.refused):
        raise ClipcapError(
            f"None of the {len(made.refused)} images of {shard} could be decoded within the limits "
            "`speed.decode.seconds` and `speed.decode.memory_bytes`, though `shard` has decoded "
            "them. Nothing was changed; raise the limits, or free the machine."
        )


def _outcome(shard: Shard, state: State, commit: Commit, made: Embedded) -> Outcome:
    return committed(
        "embed",
        shard,
        commit,
        state=state,
        started_at=made.started,
        computed=made.count,
        rejected=len(made.refused),
        model_s=made.model_s,
        device=made.device,
        peak_gpu_bytes=made.peak_gpu_bytes,
        read_s=made.waits.read_s,
        decode_s=made.waits.decode_s,
        of=commit.metadata.get("model_id", ""),
        reasons=tuple(Counter(sample.reason for sample in made.refused).most_common()),
    )


def _reject(refused: Sequence[Refused], shard: Shard, *, run: Run) -> None:
    """Move images from a shard's manifest to its rejects, there first, so that nothing is lost."""
    new = [intake.reject_row(sample, shard, stage="embed", run=run) for sample in refused]
    leaving = {row["image_id"] for row in new}
    known = manifest.read_rejects(run.out, shard).to_pylist()
    old = [row for row in known if row["image_id"] not in leaving]  # an earlier try got so far
    manifest.publish_rejects([*old, *new], shard, run=run)
    manifest.retire(shard, run=run, live=leaving, rejects=set())
