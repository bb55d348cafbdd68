"""A score file in, one HTML page of the best and the worst captions out, with their pictures.

As the report: everything a caption or a file name can say is escaped, and the page loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from clipcap.report import templates
from clipcap.report.cards import Card, cards, find

SHOWN: Final = 12
"""Images of each section."""
_PAGE: Final = "judged.html"
_TOLD: Final = ("caption", "clip_score", "reference_captions")
_METRICS: Final = ("cider_d", "rouge_l", "bleu_4", "clip_score", "ref_clip_score")


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of the page: its card, what its caption is worth, and the caption before."""

    card: Card
    scores: Sequence[tuple[str, str]]
    before: str | None


@dataclass(frozen=True, slots=True)
class Section:
    """Images that have something in common."""

    title: str
    shown: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class _Picked:
    title: str
    rows: Sequence[Mapping[str, Any]]


def render(
    out: str,
    table: pa.Table,
    *,
    title: str,
    told: Sequence[str] = (),
    before: pa.Table | None = None,
) -> str:
    """Return the page; at most 48 images of the output are read.

    Args:
        out: the canonical URL of the output that holds the pictures.
        table: a score file (`clipcap.metrics.scorefile`).
        title: what the page is of.
        told: what else a reader must know, such as what was left out; a paragraph each.
        before: a score file of the same images: what changed since it is shown first.

    Raises:
        TransientStorageError: the store said "later" while a picture was read.
    """
    rank = "cider_d" if table["cider_d"].null_count < table.num_rows else "rouge_l"
    old = {row["image_id"]: row for row in before.to_pylist()} if before is not None else {}
    picked = _picked(table.to_pylist(), old, rank)
    told_of = {
        row["image_id"]: {name: row[name] for name in _TOLD} for part in picked for row in part.rows
    }
    seen = find(out, told_of)
    drawn = dict(zip(seen, cards(out, list(seen.values())), strict=True))
    sections = [
        Section(
            part.title,
            [
                _shown(row, drawn[row["image_id"]], old.get(row["image_id"]))
                for row in part.rows
                if row["image_id"] in drawn
            ],
        )
        for part in picked
    ]
    return templates.template(_PAGE).render(
        policy=templates.POLICY,
        title=title,
        told=told,
        rank=rank,
        count=table.num_rows,
        sections=sections,
    )


def _picked(
    rows: Sequence[Mapping[str, Any]], old: Mapping[str, Mapping[str, Any]], rank: str
) -> list[_Picked]:
    """Return the sections: most improved and most worsened where there is a before, best, worst."""
    ordered = sorted(rows, key=lambda row: (-(row[rank] or 0.0), row["image_id"]))
    made = []
    if old:
        both = [row for row in rows if row["image_id"] in old]
        gains = {row["image_id"]: _gain(row, old[row["image_id"]], rank) for row in both}
        by_gain = sorted(both, key=lambda row: (-gains[row["image_id"]], row["image_id"]))
        better = [row for row in by_gain if gains[row["image_id"]] > 0][:SHOWN]
        worse = [row for row in reversed(by_gain) if gains[row["image_id"]] < 0][:SHOWN]
        made += [_Picked("Most improved", better), _Picked("Most worsened", worse)]
    best = ordered[:SHOWN]
    worst = ordered[max(len(best), len(ordered) - SHOWN) :][::-1]
    return [*made, _Picked("Best", best), _Picked("Worst", worst)]


def _gain(row: Mapping[str, Any], old: Mapping[str, Any], rank: str) -> float:
    return float((row[rank] or 0.0) - (old[rank] or 0.0))


def _shown(row: Mapping[str, Any], card: Card, old: Mapping[str, Any] | None) -> Shown:
    scores = []
    for name in _METRICS:
        if row[name] is None:
            continue
        was = "" if old is None or old[name] is None else f"{old[name]:.3f} to "
        scores.append((name, f"{was}{row[name]:.3f}"))
    return Shown(card, scores, None if old is None else old["caption"] or "")
