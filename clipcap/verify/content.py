"""Rows of one shard's tables in; what contradicts manifest, tar or closed lists out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import keys, layout, manifest, shards, storage, tables
from clipcap.errors import REASONS, RETRYABLE_REASONS, SettingsError, StorageError
from clipcap.front.contract import CLOSED_LISTS
from clipcap.layout import Shard
from clipcap.settings import digest
from clipcap.storage import ObjectInfo
from clipcap.verify.findings import Problem
from clipcap.verify.objects import Opened

_NORM_TOLERANCE: Final = 2e-3  # float16 has 11 bits: unit vectors of any width stay well inside
_TAR_END: Final = 2 * shards.BLOCK
_SHOWN: Final = 3


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def of_manifest(one: Opened, shard: Shard) -> Iterator[Problem]:
    """Check a manifest against itself: digest of its members, ids of their URIs, keys once each."""
    rows = one.rows
    if manifest.members(rows) != one.footer.get("members"):
        yield one.problem("members", "The members in its footer are not those of its rows.")
    for row in rows.select(["image_id", "key", "source_uri", "shard"]).to_pylist():
        if row["image_id"] != keys.image_id(row["source_uri"]):
            yield one.problem(
                "content", f"The image_id of {row['source_uri']} is not that of its URI."
            )
        if not keys.is_key(row["key"]):
            yield one.problem(
                "content", f"The key {row['key']!r} has signs that a key must not have."
            )
        if row["shard"] != shard.name:
            yield one.problem(
                "content", f"{row['key']} says that it lies in the shard {row['shard']}."
            )
    for name in ("image_id", "key"):
        twice = _twice(rows[name])
        if twice:
            yield one.problem("duplicate", f"`{name}` stands more than once: {_some(twice)}.")
    yield from _outside(one, "flags")


def _twice(column: pa.ChunkedArray) -> list[str]:
    counted = column.value_counts().to_pylist()
    return [str(found["values"]) for found in counted if found["counts"] > 1]


def _outside(one: Opened, name: str) -> Iterator[Problem]:
    """Yield a problem if a column holds what its closed list does not."""
    column = one.rows[name]
    values = column.combine_chunks().flatten() if pa.types.is_list(column.type) else column
    strange = {str(value) for value in pc.unique(values).to_pylist() if value is not None}
    strange -= set(CLOSED_LISTS[{"reason": "reasons"}.get(name, name)])
    if strange:
        yield one.problem(
            "content", f"`{name}` holds {_some(sorted(strange))}: not in the closed list."
        )


def of_chained(one: Opened, live: Opened) -> Iterator[Problem]:
    """Check embeddings, captions or labels of a shard against its manifest, then in themselves."""
    if one.footer.get("members") != live.footer.get("members"):
        yield one.problem(
            "members", "It was made from other members than its manifest lists: run again."
        )
    have, want = _identities(one.rows), _identities(live.rows)
    if dead := have - want:
        yield one.problem(
            "orphan", f"It has rows of images that are not live: {_some(sorted(dead))}."
        )
    if gone := want - have:
        yield one.problem("missing", f"It lacks live images: {_some(sorted(gone))}.")
    column = one.rows["image_id"]
    if one.name == "labels":
        column = one.rows.filter(pc.equal(one.rows["rank"], 1))["image_id"]
    if twice := _twice(column):
        yield one.problem("duplicate", f"It has images more than once: {_some(twice)}.")
    yield from _folder(one)
    if one.name == "embeddings":
        yield from _embeddings(one)
    elif one.name == "captions":
        yield from _captions(one)
    else:
        yield from _labels(one)


def _identities(rows: pa.Table) -> set[str]:
    pairs = zip(rows["image_id"].to_pylist(), rows["content_sha256"].to_pylist(), strict=True)
    return {f"{image_id} ({content[:12]})" for image_id, content in pairs}


def _folder(one: Opened) -> Iterator[Problem]:
    """The folder (`model=...`), the footer and the column must say the same."""
    column = {"embeddings": "model_id", "captions": "captioner_id", "labels": "label_set"}[one.name]
    folder = one.place.split("/")[1].partition("=")[2]
    said = {str(value) for value in pc.unique(one.rows[column]).to_pylist()}
    if any(keys.path_name(value) != folder for value in said):
        yield one.problem(
            "content", f"`{column}` is {_some(sorted(said))}, but it lies in {folder}."
        )


def _embeddings(one: Opened) -> Iterator[Problem]:
    if one.rows.num_rows == 0:
        return
    length_B = np.linalg.norm(tables.vectors(one.rows).astype(np.float64), axis=1)
    bad = int((~(np.abs(length_B - 1) < _NORM_TOLERANCE)).sum())
    if bad:
        yield one.problem("content", f"{bad} embeddings are not finite unit vectors.")
    norm_B = one.rows["embedding_norm"].to_numpy()
    if not bool(np.all(np.isfinite(norm_B) & (norm_B > 0))):
        yield one.problem("content", "An embedding_norm is not a length.")


def _captions(one: Opened) -> Iterator[Problem]:
    for name in ("status", "finish_reason", "review_reasons"):
        yield from _outside(one, name)
    ok = pc.equal(one.rows["status"], "ok")
    silent = pc.sum(pc.and_(ok, pc.is_null(one.rows["caption"]))).as_py()
    if silent:
        yield one.problem("content", f"{silent} rows are `ok` but have no caption.")


def _labels(one: Opened) -> Iterator[Problem]:
    if one.rows.num_rows == 0:
        return
    score = pc.min_max(one.rows["score"]).as_py()
    if not 0 <= score["min"] <= score["max"] <= 1 + 1e-6:
        yield one.problem(
            "content", f"Scores must be 0 to 1, but are {score['min']} to {score['max']}."
        )


def of_rejects(one: Opened, shard: Shard) -> Iterator[Problem]:
    """Check the rejects of a shard against themselves and the closed list."""
    rows = one.rows
    listed = digest([rows["source_uri"].to_pylist(), rows["reason"].to_pylist()])
    if listed != one.footer.get("members"):
        yield one.problem("members", "The members in its footer are not those of its rows.")
    yield from _outside(one, "reason")
    if twice := _twice(rows["source_uri"]):
        yield one.problem("duplicate", f"It has objects more than once: {_some(twice)}.")
    for row in rows.select(["source_uri", "reason", "retryable", "shard"]).to_pylist():
        if row["reason"] in REASONS and row["retryable"] != (row["reason"] in RETRYABLE_REASONS):
            yield one.problem(
                "content", f"`retryable` of {row['source_uri']} is not that of its reason."
            )
        if row["shard"] not in (None, shard.name):
            yield one.problem(
                "content", f"{row['source_uri']} says that its shard is {row['shard']}."
            )


def of_tar(live: Opened, shard: Shard, out: str, tar: ObjectInfo | None) -> Iterator[Problem]:
    """Check that a tar is there and long enough for its manifest; reads no byte of it."""
    if live.rows.num_rows == 0:
        return
    place = f"shards/dt={shard.dt}/{shard.name}.tar"
    if tar is None:
        found = storage.info(layout.tar(out, shard))  # may be younger than the listing
        if found is None:
            yield Problem(
                place, "missing", "The manifest of this shard is there, but its tar is not."
            )
        return
    pairs = zip(
        live.rows["member_offset"].to_pylist(), live.rows["member_bytes"].to_pylist(), strict=True
    )
    end = max(offset + length for offset, length in pairs)
    if tar.size_bytes < end + _TAR_END:
        message = f"It must have {end + _TAR_END} bytes or more, but has {tar.size_bytes}."
        yield Problem(place, "tar", message)


def of_tar_bytes(live: Opened, shard: Shard, out: str) -> Iterator[Problem]:
    """Check every live member of a tar: its name, place, length and sha256."""
    place = f"shards/dt={shard.dt}/{shard.name}.tar"
    try:
        data = storage.read(layout.tar(out, shard))
        packed = {found.name: found for found in shards.members(data)}
    except (SettingsError, StorageError, ValueError) as error:
        yield Problem(place, "tar", f"It cannot be read whole: {error}")
        return
    columns = ["member", "member_offset", "member_bytes", "content_sha256"]
    for row in live.rows.select(columns).to_pylist():
        yield from _member(place, row, packed.get(row["member"]), data)


def _member(
    place: str, row: dict[str, Any], found: shards.Member | None, data: bytes
) -> Iterator[Problem]:
    name, offset, length = row["member"], row["member_offset"], row["member_bytes"]
    if found is None:
        yield Problem(place, "tar", f"It must hold {name}, but does not.")
    elif (found.offset, found.length) != (offset, length):
        yield Problem(
            place, "tar",
            f"{name} must be {length} bytes at {offset}, but is {found.length} at {found.offset}.",
        )  # fmt: skip
    elif hashlib.sha256(data[offset : offset + length]).hexdigest() != row["content_sha256"]:
        yield Problem(place, "tar", f"The bytes of {name} are not those of its content_sha256.")
