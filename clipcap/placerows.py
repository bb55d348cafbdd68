"""Images, their windows and what is seen through them in, rows that say where each label is out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipcap import crops, tables
from clipcap.commits import Commit
from clipcap.errors import NotFoundError
from clipcap.labels.bank import Given
from clipcap.windows import EVERYWHERE, Grid, place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.heat import Heat

    Floats = NDArray[np.float32]

_TEXTS: Final = ("image_id", "key", "content_sha256", "label_set", "label")
_NUMBERS: Final = ("score", "whole", "peak", "contrast", "similarity")
SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXTS),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("label_index", "rank")),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("place", pa.string(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in _NUMBERS),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("row", "column")),
        *(pa.field(name, pa.float32(), nullable=False) for name in crops.BOX),
        pa.field("heat", pa.list_(pa.field("element", pa.float32())), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("rows", "columns")),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("label_set_sha256", pa.string(), nullable=False),
        pa.field("created_at", tables.TIME, nullable=False),
    ]
)
"""Of `places/`; `docs/where.md` says what the columns mean."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Images of a shard: names, their own embeddings, and boxes and embeddings of K windows."""

    names: pa.Table
    whole_BD: Floats
    window_BKD: Floats
    box_BK4: Floats

    @classmethod
    def read(cls, crop: Commit, source: Commit, count: int) -> Seen:
        """Return the images of a table of crops; `count` is K.

        Raises:
            NotFoundError: there is no embedding of one of them any more.
        """
        table = tables.read(crop.url)
        whole = tables.read(source.url, ["image_id", "embedding"])
        names = table.select(["image_id", "key", "content_sha256", "model_id"])
        names = names.take(pa.array(np.arange(0, table.num_rows, count)))
        at = pc.index_in(names["image_id"], value_set=whole["image_id"].combine_chunks())
        if at.null_count:
            raise NotFoundError(f"The embeddings {source.url} changed meanwhile: run again.")
        vector_RD = tables.vectors(table)
        boxes = np.stack([table[name].to_numpy() for name in crops.BOX], axis=1)
        return cls(
            names.replace_schema_metadata(None),
            tables.vectors(whole.take(at)),
            vector_RD.reshape(-1, count, vector_RD.shape[1]),
            boxes.reshape(-1, count, 4),
        )


def rows(found: Heat, seen: Seen, given: Given, grid: Grid) -> pa.Table:
    """Return the rows of the labels of a set that were found in some images."""
    count = len(found.image_R)
    image_R = pa.array(found.image_R)
    box_R4 = seen.box_BK4[found.image_R, found.best_R]
    index_R = pa.array(found.index_R)
    names = seen.names.columns
    columns = {
        **dict(zip(seen.names.column_names, [one.take(image_R) for one in names], strict=True)),
        "label": pa.array(given.label_set.names).take(index_R),
        "label_index": index_R,
        "rank": found.rank_R,
        "accepted": found.accepted_R,
        "place": [
            EVERYWHERE if is_everywhere else place(*box)
            for box, is_everywhere in zip(box_R4.tolist(), found.everywhere_R, strict=True)
        ],
        "score": found.score_R,
        "whole": found.whole_R,
        "peak": found.peak_R,
        "contrast": found.peak_R - found.whole_R,
        "similarity": found.similarity_R,
        "row": found.best_R // grid.columns,
        "column": found.best_R % grid.columns,
        **{name: box_R4[:, n] for n, name in enumerate(crops.BOX)},
        "heat": pa.FixedSizeListArray.from_arrays(pa.array(found.heat_RK.reshape(-1)), grid.count),
    }
    same = {
        "label_set": given.label_set.name,
        "label_set_sha256": given.sha256,
        "rows": grid.rows,
        "columns": grid.columns,
        "created_at": datetime.now(UTC),
    }
    columns |= {
        name: pa.repeat(pa.scalar(value, SCHEMA.field(name).type), count)
        for name, value in same.items()
    }
    return pa.table({name: columns[name] for name in SCHEMA.names}).cast(SCHEMA)


def counted(table: pa.Table) -> list[tuple[str, str, Counter[str]]]:
    """Return in how many images each label is accepted, by place: label set, label, counts."""
    accepted = table.filter(table["accepted"]).select(["label_set", "label", "place"])
    found: dict[tuple[str, str], Counter[str]] = {}
    for row in accepted.to_pylist():
        found.setdefault((row["label_set"], row["label"]), Counter())[row["place"]] += 1
    return [(*names, counted) for names, counted in found.items()]
