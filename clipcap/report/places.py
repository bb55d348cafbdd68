"""Tables of places in, one HTML page of images with a heat map for each of the best labels out.

As the report: everything a label or a file name can say is escaped, and the page loads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from clipcap import storage, tables
from clipcap.report import templates
from clipcap.report.cards import Card, cards, find
from clipcap.windows import EVERYWHERE, Grid

SECTIONS: Final = 12
"""Labels of a page, those that most images have somewhere, where nobody asked for some."""
_PAGE: Final = "places.html"
_STRONGEST: Final = 0.6  # opacity of a score of 1
_ORDER: Final = [
    ("accepted", "descending"),
    ("is_everywhere", "ascending"),
    ("score", "descending"),
    ("image_id", "ascending"),
]

Label = tuple[str, str]
"""Label set and label."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A cell of a heat map in shares of the picture; `heat` is its opacity."""

    x: float
    y: float
    width: float
    height: float
    heat: float = 0.0


@dataclass(frozen=True, slots=True)
class Shown:
    """One image with the heat map of one label, and the window in which it is seen best."""

    card: Card
    row: Mapping[str, Any]
    patches: Sequence[Patch]
    best: Patch


@dataclass(frozen=True, slots=True)
class Section:
    """One label."""

    title: str
    told: str
    shown: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a page shows: where the tables lie, by which grid they were made, how many images."""

    folder: str
    grid: Grid
    seen: Mapping[Label, Counter[str]]
    """In how many images each label is accepted, by place."""
    top: int
    """Images of each label."""
    labels: Sequence[str] = ()
    """What was asked for by name."""


def render(out: str, asked: Asked) -> str:
    """Return the page; at most `top` images of each label are read.

    `out` is the canonical URL of the output that holds the pictures.

    Raises:
        TransientStorageError: the store said "later" while a picture was read.
    """
    best = _best(asked)
    seen = find(out, {row["image_id"]: {} for rows in best.values() for row in rows})
    drawn = dict(zip(seen, cards(out, list(seen.values())), strict=True))
    sections = [
        Section(
            f"{label} ({label_set})",
            _told(asked.seen.get((label_set, label), Counter())),
            [
                _shown(row, drawn[row["image_id"]], asked.grid)
                for row in rows
                if row["image_id"] in drawn
            ],
        )
        for (label_set, label), rows in best.items()
    ]
    return templates.template(_PAGE).render(
        policy=templates.POLICY, grid=asked.grid, sections=sections
    )


def _best(asked: Asked) -> dict[Label, list[dict[str, Any]]]:
    """Return the best rows of each label that is shown; no more of them are held at a time."""
    usual = sorted(asked.seen, key=lambda label: (-_somewhere(asked.seen[label]), label))[:SECTIONS]
    found: dict[Label, pa.Table] = {}
    for info in storage.listed(f"{asked.folder}/places"):
        table = tables.read(info.url)
        names = asked.labels or [label for _, label in usual]
        table = table.filter(pc.is_in(table["label"], value_set=pa.array(names, pa.string())))
        is_everywhere = pc.equal(table["place"], EVERYWHERE)
        table = table.append_column("is_everywhere", is_everywhere)
        for label_set, label in _labels(table):
            is_it = pc.and_(
                pc.equal(table["label_set"], label_set), pc.equal(table["label"], label)
            )
            rows = [table.filter(is_it)]
            if (label_set, label) in found:
                rows.append(found[label_set, label])
            ordered = pa.concat_tables(rows).sort_by(_ORDER)
            found[label_set, label] = ordered.slice(0, asked.top)
    wanted = usual if not asked.labels else sorted(found, key=lambda one: one[::-1])
    return {label: _of_use(found[label].to_pylist()) for label in wanted if label in found}


def _somewhere(places: Counter[str]) -> int:
    return places.total() - places[EVERYWHERE]


def _labels(table: pa.Table) -> list[Label]:
    both = table.select(["label_set", "label"]).group_by(["label_set", "label"]).aggregate([])
    return [(row["label_set"], row["label"]) for row in both.to_pylist()]


def _of_use(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the accepted rows, or all where there is none."""
    return [row for row in rows if row["accepted"]] or rows


def _told(places: Counter[str]) -> str:
    if not places:
        return "Accepted in no image; where it would be likeliest:"
    parts = ", ".join(f"{place} {count:,}" for place, count in places.most_common())
    return f"Accepted in {places.total():,} images: {parts}."


def _shown(row: Mapping[str, Any], card: Card, grid: Grid) -> Shown:
    downs, acrosses = grid.borders
    patches = [
        Patch(left, top, right - left, bottom - top, _STRONGEST * heat)
        for n, (top, bottom) in enumerate(pairwise(downs))
        for (left, right), heat in zip(
            pairwise(acrosses),
            row["heat"][n * grid.columns : (n + 1) * grid.columns],
            strict=True,
        )
    ]
    x0, y0, x1, y1 = (row[name] for name in ("x0", "y0", "x1", "y1"))
    return Shown(card, row, patches, Patch(x0, y0, x1 - x0, y1 - y0))
