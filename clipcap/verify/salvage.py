"""A damaged table of one shard in; the rows of it that are good, in the contract's columns, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import keys, tables
from clipcap.errors import REASONS, RETRYABLE_REASONS
from clipcap.front import contract
from clipcap.front.contract import CLOSED_LISTS
from clipcap.verify.objects import Opened

NORM_TOLERANCE: Final = 2e-3  # float16 has 11 bits: unit vectors of any width stay well inside
_SLACK: Final = 1e-6  # of a sum of scores


def restored(one: Opened) -> pa.Table | None:
    """Return the rows in the contract's columns; a lost nullable column is empty. None: no way."""
    dim = one.footer.get("dim", "")
    wanted = contract.schema(one.name, dim=int(dim) if dim.isdecimal() and dim != "0" else 1)
    columns = []
    for field in wanted:
        if field.name in one.rows.schema.names:
            column = one.rows[field.name]
        elif field.nullable:
            column = pa.nulls(one.rows.num_rows, field.type)
        else:
            return None
        if column.null_count and not field.nullable:
            return None
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
    return pa.Table.from_arrays(columns, schema=wanted)


def manifest(rows: pa.Table, shard: str) -> pa.Table:
    """Return the rows that can be: the id of their URI, a key, this shard, once each."""
    seen: set[str] = set()

    def is_good(row: dict[str, Any]) -> bool:
        new = row["image_id"] not in seen and row["key"] not in seen
        good = (
            new
            and row["image_id"] == keys.image_id(row["source_uri"])
            and keys.is_key(row["key"])
            and row["shard"] == shard
            and set(row["flags"] or ()) <= set(CLOSED_LISTS["flags"])
        )
        if good:
            seen.update((row["image_id"], row["key"]))
        return good

    return _kept(rows, is_good, ["image_id", "key", "source_uri", "shard", "flags"])


def rejects(rows: pa.Table, shard: str) -> pa.Table:
    """Return the rows whose reason is known, of this shard, one of each object."""
    seen: set[str] = set()

    def is_good(row: dict[str, Any]) -> bool:
        good = (
            row["source_uri"] not in seen
            and row["reason"] in REASONS
            and row["retryable"] == (row["reason"] in RETRYABLE_REASONS)
            and row["shard"] in (None, shard)
        )
        seen.add(row["source_uri"])
        return good

    return _kept(rows, is_good, ["source_uri", "reason", "retryable", "shard"])


def _kept(rows: pa.Table, is_good: Callable[[dict[str, Any]], bool], names: list[str]) -> pa.Table:
    mask = [is_good(row) for row in rows.select(names).to_pylist()]
    return rows.filter(pa.array(mask, pa.bool_()))


def chained(one: Opened, rows: pa.Table) -> pa.Table:
    """Return the rows of embeddings, captions or labels that can be, those of an image once."""
    if rows.num_rows == 0:
        return rows
    good = {"embeddings": _embeddings, "captions": _captions, "labels": _labels}[one.name](rows)
    good = good & _of_folder(one, rows)
    ids = rows["image_id"].to_pylist()
    if one.name != "labels":
        return rows.filter(pa.array(good & _first(ids, good)))
    first = Counter(i for i, n in zip(ids, rows["rank"].to_pylist(), strict=True) if n == 1)
    bad = {i for i, is_good in zip(ids, good, strict=True) if not is_good}
    return rows.filter(pa.array([first[i] == 1 and i not in bad for i in ids], pa.bool_()))


def _of_folder(one: Opened, rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which rows name the model, captioner or label set whose folder they lie in."""
    column = {"embeddings": "model_id", "captions": "captioner_id", "labels": "label_set"}[one.name]
    folder = one.place.split("/")[1].partition("=")[2]
    return _all(keys.path_name(value) == folder for value in rows[column].to_pylist())


def _embeddings(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    length_B = np.linalg.norm(tables.vectors(rows).astype(np.float64), axis=1)
    norm_B = rows["embedding_norm"].to_numpy()
    is_unit = np.abs(length_B - 1) < NORM_TOLERANCE
    return np.asarray(is_unit & np.isfinite(norm_B) & (norm_B > 0), np.bool_)


def _captions(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    names = ["status", "caption", "finish_reason", "review_reasons"]
    return _all(
        row["status"] in CLOSED_LISTS["status"]
        and (row["status"] != "ok" or row["caption"] is not None)
        and row["finish_reason"] in (None, *CLOSED_LISTS["finish_reason"])
        and set(row["review_reasons"] or ()) <= set(CLOSED_LISTS["review_reasons"])
        for row in rows.select(names).to_pylist()
    )


def _labels(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    score = rows["score"].to_numpy()
    return np.asarray((score >= 0) & (score <= 1 + _SLACK), np.bool_)


def _first(
    ids: list[str], good: np.ndarray[Any, np.dtype[np.bool_]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which rows are the first good one of their image."""
    seen: set[str] = set()

    def is_first(image_id: str, is_good: bool) -> bool:  # noqa: FBT001 - one of a row's two facts
        new = is_good and image_id not in seen
        if new:
            seen.add(image_id)
        return new

    return _all(is_first(*pair) for pair in zip(ids, good.tolist(), strict=True))


def _all(values: Iterable[bool]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.fromiter(values, np.bool_)


def identities(rows: pa.Table) -> set[tuple[str, str]]:
    """Return image and content of each row."""
    columns = (rows[name].to_pylist() for name in ("image_id", "content_sha256"))
    return set(zip(*columns, strict=True))


def of_live(rows: pa.Table, live: pa.Table) -> pa.Table:
    """Return the rows of live images."""
    wanted = identities(live)
    columns = (rows[name].to_pylist() for name in ("image_id", "content_sha256"))
    mask = [pair in wanted for pair in zip(*columns, strict=True)]
    return rows.filter(pa.array(mask, pa.bool_()))


def marked(rows: pa.Table, lost: set[str], etag: str) -> pa.Table:
    """Return a manifest in which the version of some images is another one."""
    is_lost = pc.is_in(rows["image_id"], pa.array(sorted(lost), pa.string()))
    at = rows.schema.get_field_index("source_etag")
    column = pc.if_else(is_lost, pa.scalar(etag), rows["source_etag"])
    return rows.set_column(at, rows.schema.field(at), column)
