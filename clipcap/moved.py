"""Images that have no row yet in, the rows that the same bytes have under another name out.

A renamed image, or a copy, is a new image: another address, another shard. What a model said of its
content holds all the same, so it costs no second pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import commits, layout, plans, rows, tables
from clipcap.commits import Commit
from clipcap.errors import DamagedError, NotFoundError
from clipcap.layout import Run, Shard

_OWN = ("image_id", "key", "source_uri")  # what is of the image, and not of its content


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows for images that have none, and one of the objects that they are from."""

    rows: pa.Table | None = None
    source: Commit | None = None


def found(
    todo: pa.Table, shard: Shard, *, run: Run, recipe: str, url: Callable[[Shard], str]
) -> Moved:
    """Return rows for images of `todo` from other shards' objects of the same recipe.

    Args:
        todo: `image_id`, `key`, `content_sha256`, and `source_uri` where the rows have it.
        shard: The shard that they are in.
        run: The run whose plan says where the same bytes may lie.
        recipe: What the rows must have been made from, but for the images.
        url: Where the table of a shard lies.
    """
    moved = Moved()
    for donor in plans.donors(run, shard) if todo.num_rows else ():
        there, given = _given(url(donor)) if donor != shard else (None, None)
        if there is not None and given is not None and there.recipe == recipe:
            same = _renamed(given, todo)
            todo = rows.missing(todo, same)
            moved = Moved(rows.together(moved.rows, same), there)
    return moved


def _given(url: str) -> tuple[Commit | None, pa.Table | None]:
    """Return what another shard could give; nothing, where it is gone or damaged."""
    with suppress(NotFoundError, DamagedError):
        found = commits.find(url)
        return found, tables.read(url) if found else None
    return None, None


def with_source(todo: pa.Table, shard: Shard, *, out: str) -> pa.Table:
    """Return embedded images with the `source_uri` that the shard's manifest has of them.

    Raises:
        NotFoundError: the manifest does not have them any more.
    """
    live = tables.read(layout.manifest(out, shard), columns=["image_id", "source_uri"])
    at = pc.index_in(todo["image_id"], value_set=live["image_id"].combine_chunks())
    if at.null_count:
        raise NotFoundError(
            f"Images left the shard {shard} since it was embedded: embed it again first."
        )
    return todo.append_column("source_uri", live["source_uri"].take(at))


def _renamed(given: pa.Table, todo: pa.Table) -> pa.Table:
    """Return the rows of one image for each wanted content, as rows of the images of `todo`."""
    contents = todo["content_sha256"].combine_chunks()
    wanted = given.filter(pc.is_in(given["content_sha256"], contents))
    first = wanted.group_by("content_sha256").aggregate([("image_id", "min")])["image_id_min"]
    wanted = wanted.filter(pc.is_in(wanted["image_id"], first.combine_chunks()))
    places: dict[str, list[int]] = {}
    for at, content in enumerate(wanted["content_sha256"].to_pylist()):
        places.setdefault(content, []).append(at)
    asked = [places.get(content, []) for content in todo["content_sha256"].to_pylist()]
    taken = pa.array([at for one in asked for at in one], pa.int64())
    owners = pa.array(np.repeat(np.arange(todo.num_rows), [len(one) for one in asked]))
    made = wanted.take(taken)
    for name in _OWN:
        if name in made.schema.names:
            field = made.schema.field(name)
            own = todo[name].take(owners).cast(field.type)
            made = made.set_column(made.schema.get_field_index(name), field, own)
    return made
