"""Images of an output in, embeddings of other views of them out: shard by shard, what is missing.

What `imageviews` and `crops` have in common. A job is one object; whoever takes what it gave writes
it, so that a killed call goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa

from clipcap import rows
from clipcap.commits import Fingerprint
from clipcap.embedder import Embedded, Embedder
from clipcap.embedding import EmbedSettings, Speed
from clipcap.feed import Part
from clipcap.models import EncoderRef
from clipcap.windows import Grid


@dataclass(frozen=True, slots=True)
class Looked:
    """By which encoder images are looked at, and where it runs."""

    encoder: EmbedSettings
    speed: Speed
    ref: EncoderRef
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """Images of a shard that are to be embedded, or whose object is only to be written anew."""

    url: str
    wanted: Fingerprint
    live: pa.Table
    kept: pa.Table | None
    todo: pa.Table
    tar: str
    view: int = 0


def job(url: str, wanted: Fingerprint, live: pa.Table, tar: str, *, view: int = 0) -> Job | None:
    """Return what is missing of an object; None if it is as it must be.

    Args:
        url: where it lies.
        wanted: the fingerprint that it must have.
        live: rows of the manifest that it must have rows of.
        tar: where their bytes lie.
        view: which augmented view; 0: none.
    """
    there = rows.standing(url, wanted)
    if there.done:
        return None
    kept = rows.live_rows(there.rows, live)
    return Job(url, wanted, live, kept, rows.missing(live, kept), tar, view)


def embedded(
    jobs: Iterator[Job], looked: Looked, *, images: int, grid: Grid | None = None
) -> Iterator[tuple[Job, Embedded]]:
    """Yield what the images of each job gave; the encoder is loaded where there are some to do.

    Args:
        jobs: as `job` gives them.
        looked: by which encoder.
        images: about how many there will be.
        grid: windows of each image that are embedded in its place.

    Raises:
        StorageError: the images of a shard cannot be read.
    """
    for first in jobs:
        if first.todo.num_rows:
            yield from _embedded(chain([first], jobs), looked, images, grid)
        else:
            yield first, Embedded()


def _embedded(
    jobs: Iterable[Job], looked: Looked, images: int, grid: Grid | None
) -> Iterator[tuple[Job, Embedded]]:
    embedder: Embedder[Job] = Embedder(
        looked.encoder, looked.speed, run_id=looked.run_id, images=images, grid=grid
    )
    parts = (Part(job, job.tar, job.todo, job.view) for job in jobs)
    with closing(embedder.embedded(parts)) as found:
        for job, made in found:
            if made.failure is not None:
                raise made.failure
            yield job, made
