"""A shard's manifest and an older table in; rows that still hold, and images without one, out.

Rows are matched by image and content: a shard that lost images is rewritten without the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import commits, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Standing:
    """What is there of one table of one shard: done, or an older object of the same recipe."""

    done: Commit | None
    older: Commit | None
    rows: pa.Table | None


def standing(url: str, wanted: Fingerprint) -> Standing:
    """Look a table up; one small ranged read where it is done or not there."""
    found = commits.find(url)
    if found is None or found.recipe != wanted.recipe:
        return Standing(None, None, None)
    if found.fingerprint == wanted.value:
        return Standing(found, found, None)
    return Standing(None, found, tables.read(url))


def embedded(url: str, columns: list[str] | None = None) -> pa.Table:
    """Return the embeddings of a shard, sure that they are finite: NaN would go into every score.

    Raises:
        NotFoundError: there are none.
        SettingsError: some are not finite.
    """
    table = tables.read(url, columns)
    for chunk in table["embedding"].chunks:
        if not np.isfinite(chunk.flatten().to_numpy(zero_copy_only=False)).all():
            raise SettingsError(
                f"Every embedding must be of finite numbers, but some in {url} are not. `clipcap "
                "verify OUT --repair` takes them out; then `clipcap run` embeds them again."
            )
    return table


def live_rows(table: pa.Table | None, live: pa.Table) -> pa.Table | None:
    """Return the rows whose image and content are live, in their order; None of none.

    `live` has `image_id` and `content_sha256` of the images that are wanted.
    """
    if table is None:
        return None
    return table.filter(pc.is_in(_identity(table), _identity(live)))


def missing(live: pa.Table, kept: pa.Table | None) -> pa.Table:
    """Return the live images that have no row."""
    if kept is None:
        return live
    return live.filter(pc.invert(pc.is_in(_identity(live), _identity(kept))))


def together(kept: pa.Table | None, more: pa.Table | None) -> pa.Table | None:
    """Return both tables as one; None of none."""
    if kept is None or more is None:
        return more if kept is None else kept
    return pa.concat_tables([kept, more.cast(kept.schema)])


def _identity(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["image_id"], table["content_sha256"], "/")


def joined(kept: pa.Table | None, made: pa.Table) -> pa.Table:
    """Return kept and new rows together, sorted by key as the tar is."""
    parts = made if kept is None else pa.concat_tables([kept.cast(made.schema), made])
    by = ("key", "question_index", "rank")
    return parts.sort_by([(name, "ascending") for name in by if name in made.schema.names])
