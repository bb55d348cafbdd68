"""The figures of a label set in, one HTML page of them out, with pictures of what is mistaken.

As the report: everything a label or a file name can say is escaped, and the page loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from clipcap.report import curves, templates
from clipcap.report.cards import Card, cards, find
from clipcap.report.curves import Chart

if TYPE_CHECKING:
    from clipcap.labels.judged import Figure, Judged, OfLabel

_PAGE: Final = "labelled.html"
_LABELS: Final = 1_000
_MEANS: Final = {
    "top1": "the best label is right",
    "top5": "one of the best five is right",
    "precision_at_50": "right ones among the surest half of all images",
    "precision_at_80": "right ones among the surest 80 % of all images",
    "coverage": "images with an accepted label",
    "precision": "right ones among the accepted labels",
    "recall": "accepted ones among the true labels",
    "none_precision": "images that are none of these, among those without an accepted label",
    "none_recall": "images without an accepted label, among those that are none of these",
    "mean_recall": "recall, the mean over labels",
    "macro_f1": "F1, the mean over labels",
    "mean_average_precision": "average precision of the images ranked by a label, the mean",
    "mean_auc": "an image with a label has a higher score of it than one without, the mean",
    "calibration_error": "how far scores are from the share that is right; 0 is best",
    "calibration_error_by_mass": "the same, as many images in each bin",
    "brier": "squared distance of score and right or wrong; 0 is best",
    "risk_area": "share of wrong ones, the mean over all coverages; 0 is best",
}


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the page is of."""

    title: str
    told: Sequence[str]
    """What else a reader must know; a paragraph each."""
    signature: str
    names: Sequence[str]
    """Of the labels, by index."""
    judged: Judged
    table: pa.Table
    """A row for each image: `image_id`, `truth`, `label`, `score` and the like."""
    rows: Mapping[int, int]
    """The row of each image by its place in the truth, as `judged` names it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture, and what is said under it."""

    card: Card
    given: str
    score: float
    truth: str


def render(out: str, found: Labelled) -> str:
    """Return the page; at most 60 images of the output are read.

    Raises:
        TransientStorageError: the store said "later" while a picture was read.
    """
    judged = found.judged
    shown = _pictures(out, found)
    labels = sorted((one for one in judged.labels if one.support or one.given), key=_worst_first)
    return templates.template(_PAGE).render(
        policy=templates.POLICY,
        title=found.title,
        told=found.told,
        signature=found.signature,
        figures=[_cells(one) for one in judged.figures],
        levels=judged.levels if len(judged.levels) > 1 else (),
        charts=list(_charts(judged)),
        bins=judged.reliability,
        size=curves,
        labels=[(found.names[one.index], one) for one in labels[:_LABELS]],
        more_labels=max(0, len(labels) - _LABELS),
        confusions=[
            (found.names[one.true], found.names[one.given], one.count,
             [shown[place] for place in one.places if place in shown])
            for one in judged.confusions
        ],
        errors=[
            (shown[one.place], found.names[one.given], one.score)
            for one in judged.errors
            if one.place in shown
        ],
        several=any(one.metric == "recall" for one in judged.figures),
        number=_number,
    )  # fmt: skip


def _pictures(out: str, found: Labelled) -> dict[int, Shown]:
    """Return the images behind the errors, by their places in the truth."""
    judged = found.judged
    places = [one.place for one in judged.errors]
    places += [place for one in judged.confusions for place in one.places]
    unique = list(dict.fromkeys(places))
    rows: list[dict[str, Any]] = found.table.take(
        pa.array([found.rows[at] for at in unique], pa.int64())
    ).to_pylist()
    told = {row["image_id"]: {"caption": _truth(row)} for row in rows}
    seen = find(out, told)
    drawn = dict(zip(seen, cards(out, list(seen.values())), strict=True))
    return {
        place: Shown(drawn[row["image_id"]], row["label"], row["score"], _truth(row))
        for place, row in zip(unique, rows, strict=True)
        if row["image_id"] in drawn
    }


def _truth(row: Mapping[str, Any]) -> str:
    return ", ".join(row["truth"]) or "none of these"


def _cells(one: Figure) -> tuple[str, str, str, str, str]:
    name, means = one.metric.replace("_", " "), _MEANS[one.metric]
    if one.value is None:
        return name, "-", one.reason, "", means
    if one.share is None:
        return name, f"{one.value:.3f}", "", "", means
    interval = f"{one.share.low:.3f} to {one.share.high:.3f}"
    return name, f"{one.value:.3f}", interval, f"{one.share.hits:,} of {one.share.among:,}", means


def _charts(judged: Judged) -> Iterator[Chart]:
    said = {
        "in bins of equal width": [(100 * b.confidence, 100 * b.right) for b in judged.reliability],
        "as it should be": [(0.0, 0.0), (100.0, 100.0)],
    }
    yield curves.chart("Right, in percent, by score in percent", said, {}, over="percent")
    risk = [(100 * coverage, 100 * risk) for coverage, risk in judged.curve]
    marks = {"half": 50, "80 %": 80}
    title = "Wrong, in percent, among the surest percent of the images"
    yield curves.chart(title, {"wrong": risk}, marks, over="percent")


def _worst_first(one: OfLabel) -> tuple[bool, float, int]:
    return math.isnan(one.f1), one.f1 if not math.isnan(one.f1) else 0.0, one.index


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
