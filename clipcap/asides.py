"""An embedded output and a folder of the caller's in, what a table for each shard needs out.

Such tables are no part of the output; each is one object whose footer says of which output it is
and what it was made from, so that a second call computes only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipcap import cards, embedding, layout, storage
from clipcap.commits import Commit
from clipcap.layout import Shard
from clipcap.models import EncoderRef

if TYPE_CHECKING:
    from clipcap.cards import Card


def removed(tables: Sequence[str], shards: Sequence[Shard]) -> int:
    """Delete the tables of shards that are gone; return how many there were."""
    gone = [url for url in tables if layout.shard_of(url) not in shards]
    for url in gone:
        storage.delete(url)
    return len(gone)


def sources(out: str, ref: EncoderRef, card: Card | None) -> dict[Shard, Commit]:
    """Return the embeddings of every shard of an output, once it is sure that all fit.

    Args:
        out: the output.
        ref: the encoder that they must be made by.
        card: of the captioner that reads them; None: none does.

    Raises:
        NotFoundError: there is no image, or a shard is not embedded.
        SettingsError: encoder, embeddings and captioner do not fit.
    """
    found = embedding.of_output(out, ref)
    if card is not None:
        for source in found.values():
            cards.require_fit(
                card,
                model_id=ref.model_id,
                sha256=ref.sha256,
                preprocess_sha256=source.metadata.get("preprocess_sha256"),
                dim=int(source.metadata.get("dim", 0)),
            )
    return found
