"""An embedded output in, embeddings beside captions out, as one table to train on."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from clipcap import layout, manifest, tables
from clipcap.captionfiles import Joined
from clipcap.errors import NotFoundError, SettingsError
from clipcap.layout import Shard
from clipcap.models import EncoderRef


def read(out: str, ref: EncoderRef, joined: Joined | None) -> pa.Table:
    """Return embeddings beside the captions of the same image and content, sorted by `image_id`.

    Columns: image_id, content_sha256, embedding, embedding_norm, reference_captions. `joined` takes
    the place of the captions that the images came with.

    Raises:
        SettingsError: no image has captions.
        NotFoundError: an image that has is not embedded.
    """
    parts = []
    columns = ["image_id", "content_sha256", "embedding", "embedding_norm"]
    for shard in manifest.shards(out):
        captioned = _captioned(out, shard, joined)
        if not captioned:
            continue
        url = layout.embeddings(out, shard, model_id=ref.model_id)
        embedded = {row["image_id"]: row for row in tables.read(url, columns=columns).to_pylist()}
        for row in captioned:
            vector = embedded.get(row["image_id"])
            if vector is None or vector["content_sha256"] != row["content_sha256"]:
                raise NotFoundError(
                    f"The image {row['image_id']} of {shard} is not embedded: embed first."
                )
            parts.append({**vector, "reference_captions": row["reference_captions"]})
    if not parts:
        raise SettingsError(
            f"No image in {out} has captions to learn from. Put a .txt or .json file beside each "
            "image, and run `clipcap shard` and `clipcap embed` again, or give a file of captions: "
            "--captions FILE."
        )
    parts.sort(key=lambda row: str(row["image_id"]))
    schema = tables.embeddings_schema(ref.dim)
    texts = pa.field("reference_captions", tables.STRINGS)
    wanted = pa.schema([*(schema.field(name) for name in columns), texts])
    return tables.from_rows(parts, wanted)


def _captioned(out: str, shard: Shard, joined: Joined | None) -> list[dict[str, Any]]:
    """Return the images of a shard that have captions."""
    columns = ["image_id", "content_sha256", "reference_captions"]
    rows: list[dict[str, Any]] = tables.read(
        layout.manifest(out, shard), columns=columns
    ).to_pylist()
    if joined is not None:
        rows = [row | {"reference_captions": joined.captions.get(row["image_id"])} for row in rows]
    return [row for row in rows if row["reference_captions"]]
