"""An embedded output, or a pickle of the original, in; embeddings beside captions as a table out.

An image without captions is left out, one with captions and without an embedding is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import captionfiles, embedding, layout, manifest, rows, tables
from clipcap.captionfiles import Joined
from clipcap.cards import EncoderFit
from clipcap.embedding import EmbedSettings
from clipcap.errors import NotFoundError, SettingsError
from clipcap.layout import Shard
from clipcap.models import EncoderRef
from clipcap.sample import caption_text
from clipcap.settings import digest

if TYPE_CHECKING:
    from clipcap.oldpickles import Image

Embeddings = Literal["stored", "file"]
_COLUMNS: Final = ["image_id", "content_sha256", "embedding", "embedding_norm"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a captioner learns from."""

    table: pa.Table
    """image_id, content_sha256, embedding, embedding_norm, reference_captions and shard."""
    fit: EncoderFit
    """Whose embeddings they are."""
    recipe: str
    """Digest of what made the embeddings."""
    unmatched: int = 0
    """Captions of the file whose image the output does not have."""
    blank: int = 0
    """Captions of the file that say nothing."""


def gather(
    out: str,
    encoder: EmbedSettings,
    captions: str,
    embeddings: Embeddings,
    *,
    may_be_none: bool = False,
) -> Pairs:
    """Return the pairs of an output, or those that a file of captions holds by itself.

    Args:
        out: the canonical URL of the output.
        encoder: whose embeddings they are.
        captions: URL of a file; empty: those that the images came with.
        embeddings: `stored` by the output, or those in the `file`, a pickle of the original.
        may_be_none: whether an output may be without captions.

    Raises:
        SettingsError: no image has captions; a file that is no pickle or of another width.
        NotFoundError: an image that has captions is not embedded.
    """
    if embeddings == "file":
        return _of_pickle(captions, encoder.model)
    ref = embedding.reference(encoder)
    joined = captionfiles.join(captions, out) if captions else None
    fit = EncoderFit(
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )
    counts = (joined.unmatched, joined.blank) if joined else (0, 0)
    found = read(out, ref, joined, may_be_none=may_be_none)
    return Pairs(found, fit, embedding.recipe(encoder, ref), *counts)


def read(
    out: str, ref: EncoderRef, joined: Joined | None, *, may_be_none: bool = False
) -> pa.Table:
    """Return embeddings beside the captions of the same image and content, sorted by `image_id`.

    Columns as in `Pairs.table`. `joined` takes the place of the captions that the images came with.

    Raises:
        SettingsError: no image has captions, unless there need be none.
        NotFoundError: an image that has is not embedded.
    """
    parts = []
    for shard in manifest.shards(out):
        captioned = _captioned(out, shard, joined)
        if not captioned.num_rows:
            continue
        embedded = tables.read(layout.embeddings(out, shard, model_id=ref.model_id), _COLUMNS)
        if (left := rows.missing(captioned, embedded)).num_rows:
            raise NotFoundError(
                f"The image {left['image_id'][0]} of {shard} is not embedded: embed first."
            )
        captioned = captioned.sort_by("image_id")
        part = rows.live_rows(embedded.sort_by("image_id"), captioned)
        shards = pa.repeat(str(shard), captioned.num_rows)
        parts.append(_table(part, ref.dim, captioned["reference_captions"], shards))
    if not parts and not may_be_none:
        raise SettingsError(
            f"No image in {out} has captions to learn from. Put a .txt or .json file beside each "
            "image, and run `clipcap shard` and `clipcap embed` again, or give a file of captions: "
            "--captions FILE, or one of texts without images: --texts FILE."
        )
    return pa.concat_tables([_schema(ref.dim).empty_table(), *parts]).sort_by("image_id")


def _captioned(out: str, shard: Shard, joined: Joined | None) -> pa.Table:
    """Return the images of a shard that have captions."""
    columns = ["image_id", "content_sha256", "reference_captions"]
    live = tables.read(layout.manifest(out, shard), columns)
    if joined is not None:
        texts = [joined.captions.get(image_id) for image_id in live["image_id"].to_pylist()]
        live = live.set_column(2, columns[2], pa.array(texts, tables.STRINGS))
    spoken = pc.greater(pc.list_value_length(live["reference_captions"]), 0)
    return live.filter(spoken)  # null, where an image has none, counts as no


def _table(found: pa.Table, dim: int, captions: pa.Array, shards: pa.Array) -> pa.Table:
    return pa.table([*(found[name] for name in _COLUMNS), captions, shards], _schema(dim))


def _schema(dim: int) -> pa.Schema:
    schema = tables.embeddings_schema(dim)
    texts = pa.field("reference_captions", tables.STRINGS)
    shard = pa.field("shard", pa.string())
    return pa.schema([*(schema.field(name) for name in _COLUMNS), texts, shard])


def _of_pickle(url: str, model: str) -> Pairs:
    """Return what a pickle of the original holds; nothing in it says whose embeddings they are.

    Embeddings are brought to length 1, as stored ones are, and their lengths kept beside them.
    """
    if not url or not captionfiles.is_pickle(url):
        raise SettingsError(
            "`--embeddings file` needs `--captions FILE`, a pickle of the original ClipCap "
            f"(oscar_split_*.pkl), but {url or 'no file'} is given."
        )
    from clipcap import interop, oldpickles  # noqa: PLC0415 - need torch

    fit = interop.encoder_fit(model)
    embedding_ND, captions = oldpickles.read(url)
    if embedding_ND.shape[1] != fit.dim:
        raise SettingsError(
            f"{url} has embeddings of {embedding_ND.shape[1]} numbers, but the encoder {model} "
            f"gives {fit.dim}. Name the one that made them: --model ViT-B-32-quickgelu/openai, for "
            "example, for the original's ViT-B/32."
        )
    kept, blank = _spoken(oldpickles.images(embedding_ND, captions))
    if not kept:
        raise SettingsError(f"Every caption in {url} is blank: there is nothing to learn from.")
    vector_ND = embedding_ND.numpy()[[image.row for image in kept]]
    del embedding_ND, captions  # gigabytes
    norm_N = np.sqrt(np.einsum("nd,nd->n", vector_ND, vector_ND, dtype=np.float64))
    if not norm_N.all():
        row = kept[int(norm_N.argmin())].row
        raise SettingsError(f"The embedding in row {row} of {url} has length 0.")
    sha256 = [hashlib.sha256(vector_D.tobytes()).hexdigest() for vector_D in vector_ND]
    vector_ND /= norm_N[:, None].astype(np.float32)
    flat, kind = pa.array(vector_ND.reshape(-1)), tables.vector_type(fit.dim)
    columns = [
        [f"{image.name}@{image.row}" for image in kept],
        sha256,
        pa.FixedSizeListArray.from_arrays(flat, type=kind),
        norm_N.astype(np.float32),
    ]
    texts = pa.array([image.captions for image in kept], tables.STRINGS)
    shards = pa.nulls(len(kept), pa.string())
    table = _table(pa.table(columns, _COLUMNS), fit.dim, texts, shards)
    return Pairs(table, fit, digest(["file", fit.model_id]), blank=blank)


def _spoken(images: Sequence[Image]) -> tuple[list[Image], int]:
    """Return images with captions that say something, by name, and how many say nothing."""
    in_order = sorted(images, key=lambda image: f"{image.name}@{image.row}")
    told = [
        image._replace(captions=list(filter(None, map(caption_text, image.captions))))
        for image in in_order
    ]
    blank = sum(len(image.captions) for image in images) - sum(len(one.captions) for one in told)
    return [image for image in told if image.captions], blank


@dataclass(frozen=True, slots=True)
class Lying:
    """Images of pairs that lie in one tar."""

    shard: Shard
    tar: str
    rows: pa.Table
    """Their rows of the manifest."""


def lying(found: pa.Table, out: str) -> Iterator[Lying]:
    """Yield where the images of pairs lie, shard by shard; of none that came without images."""
    for name in pc.unique(found["shard"].drop_null()).sort().to_pylist():
        shard = Shard(*name.split("/", 1))
        live = tables.read(layout.manifest(out, shard))
        wanted = found.filter(pc.equal(found["shard"], name))
        tar = manifest.tar_url(out, shard, tables.metadata(live))
        yield Lying(shard, tar, rows.live_rows(live, wanted))
