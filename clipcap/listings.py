"""A source in, its samples as Arrow batches out: a container is walked once per version of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import layout, samples, storage, tables
from clipcap.errors import NotFoundError
from clipcap.forgotten import KeptOut
from clipcap.scratch import Spool
from clipcap.storage import ObjectInfo

_NOTHING: Final = KeptOut()

_KINDS: Final = {
    **dict.fromkeys((".parquet", ".csv", ".tsv"), "table"),
    ".tar": "tars",
    ".zip": "zips",
    ".arrow": "huggingface",
}
_SAVED: Final = (
    "dataset_dict.json",
    "state.json",
)  # in what the library `datasets` saved to a disk


@dataclass(frozen=True, slots=True)
class Origin:
    """What a listing is of: a canonical URL that stands in manifests, and the time it was made.

    An image that was first seen after `as_of` cannot be in the listing; None: it was made now.
    """

    url: str
    as_of: datetime | None = None


def kind(source: str) -> str:
    """Return the name of the file in `clipcap/sources` that reads a source, by its ending."""
    if source.endswith("manifest.json"):
        return "inventory"
    ending = f".{source.lower().rpartition('.')[2]}"
    if ending == ".parquet" and re.search(r"[*?[]", source):
        return "huggingface"  # a table is one file
    if ending in _KINDS:
        return _KINDS[ending]
    if storage.local_path(source) is None:
        return "folder"  # a bucket is not asked: what it refuses would be told of one small file
    folder = storage.canonical(source)
    is_saved = any(storage.info(f"{folder}/{name}") for name in _SAVED)
    return "huggingface" if is_saved else "folder"


def origin(module: ModuleType, settings: Any) -> Origin:  # noqa: ANN401 - any source's
    """Return what a source lists: its own address, unless it has `lists(settings)` to say more."""
    if hasattr(module, "lists"):
        url, as_of = module.lists(settings)
        return Origin(storage.canonical(url), as_of)
    return Origin(storage.canonical(settings.url))


def without(
    batches: Iterable[pa.RecordBatch], kept_out: KeptOut, left: Spool
) -> Iterator[pa.RecordBatch]:
    """Yield rows of a listing but those that are kept out of the output; these go to `left`."""
    for batch in batches:
        stays = [not kept_out.holds(uri) for uri in batch["source_uri"].to_pylist()]
        if all(stays):
            yield batch
            continue
        mask = pa.array(stays, pa.bool_())
        left.append(batch.select(["source_uri"]).filter(pc.invert(mask)))
        yield batch.filter(mask)


def batches(
    module: ModuleType,
    settings: Any,  # noqa: ANN401 - any source's
    *,
    out: str,
    write: bool,
    kept_out: KeptOut = _NOTHING,
) -> Iterator[pa.RecordBatch]:
    """Yield the samples of a source as batches of `samples.SCHEMA`, in no order.

    A source has `batches(settings)`, or `containers(settings)` and `members(container)`, or only
    `samples(settings)`. What a container holds is kept in the output (unless `write` is off) and
    goes when the container goes; without the names of what is `kept_out`.
    """
    if hasattr(module, "batches"):
        return map(samples.completed, module.batches(settings))
    if hasattr(module, "containers"):
        return _of_containers(module, settings, out=out, write=write, kept_out=kept_out)
    return samples.batches(module.samples(settings))


def _of_containers(
    module: ModuleType,
    settings: Any,  # noqa: ANN401 - any source's
    *,
    out: str,
    write: bool,
    kept_out: KeptOut,
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
                storage.write(url, tables.to_bytes(_named(kept, kept_out), {"source": source}))
        return kept

    with ThreadPoolExecutor(storage.IN_FLIGHT, thread_name_prefix="listings") as pool:
        for start in range(0, len(urls), storage.IN_FLIGHT):
            part = slice(start, start + storage.IN_FLIGHT)
            for found in pool.map(held, urls[part], containers[part]):
                yield from found.to_batches()
    if write:
        _forget_others(layout.listings(out, source), set(urls))


def _named(table: pa.Table, kept_out: KeptOut) -> pa.Table:
    """Return what may be written down of a container."""
    if not kept_out:
        return table
    stays = [not kept_out.holds(uri) for uri in table["source_uri"].to_pylist()]
    return table.filter(pa.array(stays, pa.bool_()))


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
