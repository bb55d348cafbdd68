"""Samples in, Arrow batches out, and back: the form in which a listing of millions travels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import pyarrow as pa

from clipcap import tables
from clipcap.sample import Bytes, Sample, Sidecar

_RANGE: Final = [
    ("url", pa.string()),
    ("offset", pa.int64()),
    ("length", pa.int64()),
    ("form", pa.string()),
]
SCHEMA: Final = pa.schema(
    [
        ("source_uri", pa.string()),
        ("etag", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_at", tables.TIME),
        *_RANGE,
        ("captions", tables.STRINGS),
        ("sidecars", pa.list_(pa.field("element", pa.struct([("suffix", pa.string()), *_RANGE])))),
        ("archived", pa.bool_()),
    ]
)
"""The columns of a listing. All but the first three may be null or not there at all: `url` is then
`source_uri`, `offset` 0, `form` empty. `archived`: it is there, but cannot be read tonight."""
_BATCH: Final = 10_000  # samples as Python objects at a time


def batches(samples: Iterable[Sample]) -> Iterator[pa.RecordBatch]:
    """Yield samples as batches of `SCHEMA`, a bounded number of them held at a time."""
    rest = iter(samples)
    while part := list(islice(rest, _BATCH)):
        yield pa.RecordBatch.from_pylist([row(sample) for sample in part], schema=SCHEMA)


def completed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with every column of `SCHEMA`, those that it lacks null."""
    columns = [
        batch[field.name].cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in SCHEMA
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def row(sample: Sample) -> dict[str, Any]:
    """Return the row that stands for a sample."""
    return {
        "source_uri": sample.source_uri,
        "etag": sample.etag,
        "size_bytes": sample.size_bytes,
        "modified_at": sample.modified_at,
        **_range(sample.at),
        "captions": list(sample.captions),
        "sidecars": [
            {"suffix": sidecar.suffix, **_range(sidecar.at)} for sidecar in sample.sidecars
        ],
    }


def of_row(found: Mapping[str, Any]) -> Sample:
    """Return the sample that a row stands for."""
    return Sample(
        source_uri=found["source_uri"],
        etag=found["etag"],
        size_bytes=found["size_bytes"],
        at=_bytes(found, found["source_uri"]),
        modified_at=found["modified_at"],
        captions=tuple(found["captions"] or ()),
        sidecars=tuple(Sidecar(one["suffix"], _bytes(one, "")) for one in found["sidecars"] or ()),
    )


def _range(at: Bytes) -> dict[str, Any]:
    return {"url": at.url, "offset": at.offset, "length": at.length, "form": at.form}


def _bytes(found: Mapping[str, Any], url: str) -> Bytes:
    return Bytes(found["url"] or url, found["offset"] or 0, found["length"], found["form"] or "")


def in_order(found: Iterable[pa.RecordBatch]) -> Iterator[Sample]:
    """Yield the samples of some batches, sorted by URI; holds them all."""
    rows = [one for batch in found for one in batch.to_pylist()]
    return map(of_row, sorted(rows, key=lambda one: str(one["source_uri"])))
