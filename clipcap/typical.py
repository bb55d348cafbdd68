"""An embedded output in, a few images from all over it out: what a picture there is usually like.

They are kept as an object, and taken from there later: a new image then changes nothing that was
made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

from clipcap import commits, forgotten, layout, manifest, rows, scrubbing, tables
from clipcap.commits import Commit, Fingerprint
from clipcap.models import EncoderRef
from clipcap.settings import digest

VERSION: Final = 1
_SHARDS: Final = 8  # that images are taken from


def images(folder: str, out: str, ref: EncoderRef, count: int, *, least: int = 0) -> pa.Table:
    """Return so many rows of an output's embeddings, or all; those kept in a folder if enough.

    Where one of them was taken down since, all are chosen anew.

    Raises:
        NotFoundError: a shard is not embedded.
        SettingsError: nobody can say what was taken down; embeddings are not finite.
    """
    url = f"{folder}/{scrubbing.TYPICAL}"
    recipe = digest(["typical", VERSION, ref.sha256, ref.preprocess_sha256, count])
    found = commits.find(url)
    if found is None or found.recipe != recipe or found.rows < least or _has_gone(found, out):
        table = _spread(out, ref, count)
        made = Fingerprint(recipe, digest(table["content_sha256"].to_pylist()))
        metadata = {"members": made.members, "model_id": ref.model_id}
        commits.publish(url, table, fingerprint=made, run_id="", metadata=metadata)
    return tables.read(url)


def _has_gone(found: Commit, out: str) -> bool:
    """Tell whether an image that must be nowhere any more is among them."""
    kept_out = forgotten.load(out)
    if not kept_out:
        return False
    table = tables.read(found.url, ["image_id", "content_sha256"])
    ids, contents = (set(column.to_pylist()) for column in table.columns)
    return bool(ids & kept_out.image_ids or contents & kept_out.contents)


def _spread(out: str, ref: EncoderRef, count: int) -> pa.Table:
    some = _evenly(manifest.shards(out), min(_SHARDS, count))
    urls = [layout.embeddings(out, shard, model_id=ref.model_id) for shard in some]
    parts = [_few(rows.embedded(url), count) for url in urls]
    shared = [tables.embeddings_schema(ref.dim).empty_table()]
    left = count
    for n, part in enumerate(sorted(parts, key=lambda part: int(part.num_rows))):
        shared.append(_few(part, left // (len(parts) - n)))  # the larger make up for the small
        left -= shared[-1].num_rows
    return pa.concat_tables(shared)


def _few(table: pa.Table, count: int) -> pa.Table:
    places = pa.array(_evenly(range(table.num_rows), count), pa.int64())
    return table.replace_schema_metadata(None).take(places)


def _evenly(things: Sequence[Any], count: int) -> list[Any]:
    """Return so many things, or all, at like distances."""
    few = min(count, len(things))
    return [things[n * len(things) // few] for n in range(few)]
