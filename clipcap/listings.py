"""A source in, its samples as Arrow batches out: a container is walked once per version of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any

import pyarrow as pa

from clipcap import layout, samples, storage, tables
from clipcap.errors import NotFoundError
from clipcap.storage import ObjectInfo


@dataclass(frozen=True, slots=True)
class Origin:
    """What a listing is of: a canonical URL that stands in manifests, and the time it was made.

    An image that was first seen after `as_of` cannot be in the listing; None: it was made now.
    """

    url: str
    as_of: datetime | None = None


def origin(module: ModuleType, settings: Any) -> Origin:  # noqa: ANN401 - any source's
    """Return what a source lists: its own address, unless it has `lists(settings)` to say more."""
    if hasattr(module, "lists"):
        url, as_of = module.lists(settings)
        return Origin(storage.canonical(url), as_of)
    return Origin(storage.canonical(settings.url))


def batches(
    module: ModuleType,
    settings: Any,  # noqa: ANN401 - any source's
    *,
    out: str,
    write: bool,
) -> Iterator[pa.RecordBatch]:
    """Yield the samples of a source as batches of `samples.SCHEMA`, in no order.

    A source has `batches(settings)`, or `containers(settings)` and `members(container)`, or only
    `samples(settings)`. What a container holds is kept in the output (unless `write` is off) and
    goes when the container goes.
    """
    if hasattr(module, "batches"):
        return map(samples.completed, module.batches(settings))
    if hasattr(module, "containers"):
        return _of_containers(module, settings, out=out, write=write)
    return samples.batches(module.samples(settings))


def _of_containers(
    module: ModuleType,
    settings: Any,  # noqa: ANN401 - any source's
    *,
    out: str,
    write: bool,
) -> Iterator[pa.RecordBatch]:
    source = origin(module, settings).url
    containers: list[ObjectInfo] = module.containers(settings)
    urls = [layout.listing(out, source, container=one.url, etag=one.etag) for one in containers]

    def held(url: str, container: ObjectInfo) -> pa.Table:
        kept = _kept(url)
        if kept is None:
            kept = pa.Table.from_batches(
                samples.batches(module.members(container)), schema=samples.SCHEMA
            )
            if write:
                storage.write(url, tables.to_bytes(kept, {"source": source}))
        return kept

    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="listings") as pool:
        for start in range(0, len(urls), storage.IN_FLIGHT):
            part = slice(start, start + storage.IN_FLIGHT)
            for found in pool.map(held, urls[part], containers[part]):
                yield from found.to_batches()
    if write:
        _forget_others(layout.listings(out, source), set(urls))


def _kept(url: str) -> pa.Table | None:
    """Return what an earlier night wrote of a container; nothing if its form was another."""
    try:
        table = tables.read(url)
    except NotFoundError:
        return None
    kept = table.replace_schema_metadata(None)
    return kept if kept.schema.equals(samples.SCHEMA) else None


def _forget_others(folder: str, urls: set[str]) -> None:
    for left in storage.listed(folder):
        if left.url not in urls:
            storage.delete(left.url)
