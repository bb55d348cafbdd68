"""A source of containers in, its samples out: a container is walked once per version of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from clipcap import layout, plans, storage
from clipcap.errors import NotFoundError
from clipcap.planning import Todo
from clipcap.sample import Sample
from clipcap.storage import ObjectInfo


def samples(module: ModuleType, settings: Any, *, out: str, write: bool) -> Iterator[Sample]:  # noqa: ANN401 - any source's
    """Yield the samples of every container; one that has not changed is not read again.

    `module` is a source with `containers(settings)` and `members(container)`. What a container
    holds is kept in the output (unless `write` is off) and goes when the container goes.
    """
    source = storage.canonical(settings.url)
    containers: list[ObjectInfo] = module.containers(settings)
    urls = [layout.listing(out, source, container=one.url, etag=one.etag) for one in containers]

    def held(url: str, container: ObjectInfo) -> list[Sample]:
        try:
            return [todo.sample for todo in plans.read_samples(url)[0]]
        except NotFoundError:
            walked: list[Sample] = module.members(container)
            if write:
                plans.write_samples(url, map(Todo, walked), source=source)
            return walked

    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="listings") as pool:
        for start in range(0, len(urls), storage.IN_FLIGHT):
            part = slice(start, start + storage.IN_FLIGHT)
            for found in pool.map(held, urls[part], containers[part]):
                yield from found
    if write:
        _forget_others(layout.listings(out, source), set(urls))


def _forget_others(folder: str, urls: set[str]) -> None:
    for left in storage.listed(folder):
        if left.url not in urls:
            storage.delete(left.url)
