"""Stored embeddings and the images they are of in, an error out where they do not belong together.

A few images are embedded anew. Number formats and scaled decoding explain 4e-4 (1 - cosine) at the
most, while of 831 photographs no two were nearer than 0.07: rows that were shifted are found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import pairs, tables
from clipcap.embedder import Embedded, Embedder
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.feed import Part

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

COSINE: Final = 0.99
"""Of an embedding with the stored one of the same image, at least."""


def require(found: pa.Table, out: str, *, encoder: EmbedSettings, speed: Speed, images: int) -> int:
    """Embed some images of pairs anew, compare, and return how many were compared.

    Images that cannot be read are passed over, and the log says so.

    Args:
        found: pairs, as `pairs.Pairs.table`.
        out: the canonical URL of the output that the images are of.
        encoder: what made the embeddings.
        speed: where it runs.
        images: how many are looked at, spread evenly; 0: none.

    Raises:
        SettingsError: the stored embedding of an image is not its own.
        TransientStorageError: the store says "later".
    """
    if not images or not found.num_rows:
        return 0
    with_image = found.filter(pc.is_valid(found["shard"]))
    if not with_image.num_rows:
        _tell_unchecked("the embeddings came without images")
        return 0
    places = np.unique(np.linspace(0, with_image.num_rows - 1, images).round().astype(int))
    chosen = with_image.take(pa.array(places))
    stored = dict(zip(chosen["image_id"].to_pylist(), tables.vectors(chosen), strict=True))
    compared, why = 0, ""
    for addresses, made in _embedded_anew(chosen, out, encoder, speed):
        for image_id, vector_D in _vectors(made):
            cosine = float(stored[image_id] @ vector_D)
            if not cosine >= COSINE:
                raise SettingsError(
                    f"Embeddings and images must belong together, but the stored embedding of "
                    f"{addresses[image_id]} ({image_id}) has a cosine of {cosine:.3f} with the one "
                    f"made of its image just now, not {COSINE} or more."
                    f"{_owner(found, image_id, vector_D)} Delete the embeddings of this model and "
                    "run `clipcap embed` again; `alignment_images: 0` trains nevertheless."
                )
            compared += 1
        why = why or _failure(made)
    if compared < len(places):
        _tell_unchecked(f"{len(places) - compared} of {len(places)} images cannot be read ({why})")
    return compared


def _tell_unchecked(why: str) -> None:
    log.warning("Whether embeddings and images belong together is not checked: %s.", why)


def _embedded_anew(
    chosen: pa.Table, out: str, encoder: EmbedSettings, speed: Speed
) -> Iterator[tuple[dict[str, str], Embedded]]:
    """Yield the addresses of the images of each shard, by `image_id`, and what they gave."""
    embedder: Embedder[dict[str, str]] = Embedder(encoder, speed, run_id="", images=chosen.num_rows)
    parts = (
        Part(_addresses(place.rows), place.tar, place.rows) for place in pairs.lying(chosen, out)
    )
    with closing(embedder.embedded(parts)) as embedded:
        yield from embedded


def _addresses(rows: pa.Table) -> dict[str, str]:
    return dict(zip(rows["image_id"].to_pylist(), rows["source_uri"].to_pylist(), strict=True))


def _vectors(made: Embedded) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for table in made.tables:
        yield from zip(table["image_id"].to_pylist(), tables.vectors(table), strict=True)


def _failure(made: Embedded) -> str:
    """Return why images of a shard gave no embedding."""
    if made.failure is not None:
        return str(made.failure)
    return next((f"{one.reason}: {one.error}" for one in made.refused), "")


def _owner(found: pa.Table, image_id: str, vector_D: NDArray[np.float32]) -> str:
    """Return whose embedding it is instead, where that can be told."""
    cosine_N = tables.vectors(found) @ vector_D
    nearest = int(cosine_N.argmax())
    other = found["image_id"][nearest].as_py()
    if other == image_id or not cosine_N[nearest] >= COSINE:
        return " It is no other image's either: was the encoder exchanged?"
    return f" It is what is stored for {other}: the rows are shifted."
