"""What every caption is worth in, a Parquet table of it out, and back."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import storage, tables
from clipcap.errors import NotFoundError, SettingsError

KIND: Final = "clipcap-scores"
VERSION: Final = 1
MEANS: Final = ("rouge_l", "cider_d", "clip_score", "ref_clip_score", "meteor", "spice")
"""Columns whose mean over images is the figure; METEOR's own is weighed by length, and near it."""
_NUMBERS: Final = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", *MEANS)
SCHEMA: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("reference_captions", tables.STRINGS, nullable=False),
        *(pa.field(name, pa.float64()) for name in _NUMBERS),
        pa.field("words", pa.int64(), nullable=False),
        pa.field("reference_words", pa.int64(), nullable=False),
        pa.field("matched", pa.list_(pa.field("element", pa.int64())), nullable=False),
    ]
)
"""`words`, `reference_words` and `matched` (n-grams of 1 to 4 words) give BLEU of any rows."""


def write(url: str, table: pa.Table, metadata: dict[str, str]) -> None:
    """Write a score file whole.

    Raises:
        StorageError: it cannot be written there.
    """
    kept = {"kind": KIND, "version": str(VERSION), **metadata}
    storage.write(storage.canonical(url), tables.to_bytes(table, kept))


def read(url: str) -> pa.Table:
    """Return a score file; its footer rides along.

    Raises:
        SettingsError: it is not there, or is no score file.
    """
    try:
        data = storage.read(storage.canonical(url))
        table = pq.read_table(pa.BufferReader(data))
    except NotFoundError as error:
        raise SettingsError(
            f"There is no score file {url}; `clipcap evaluate OUT --scores {url}` writes one."
        ) from error
    except pa.ArrowInvalid as error:
        raise SettingsError(
            f"{url} must be a score file in Parquet, but is none: {error}"
        ) from error
    found: dict[str, Any] = tables.metadata(table)
    if found.get("kind") != KIND or found.get("version") != str(VERSION):
        raise SettingsError(
            f"{url} must be a score file of version {VERSION}, by `clipcap evaluate --scores`, "
            "but its footer says nothing of that."
        )
    return table.select(SCHEMA.names)
