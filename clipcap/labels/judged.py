"""What a judge has seen in, the figures of a label set out, and the images behind its errors.

Top-1, top-5, recall and F1 are of the best label that is no group, whatever its score, over images
that have a label; in a set of several labels an image, recall and F1 are of the accepted ones. How
well scores are calibrated, and what is wrong at which coverage, is of the best label, over all
images: of one that is none of these it is always wrong. All other figures are of what is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from clipcap.labels import measuring
from clipcap.labels.measuring import Bin, Classes, Ranking, RiskCoverage, Share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.judging import Judge

    Flags = NDArray[np.bool_]
    Places = NDArray[np.int64]

_CONFUSIONS: Final = 12
_EXAMPLES: Final = 3
_ERRORS: Final = 24


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure; shares have an interval; `reason` says why there is no value."""

    metric: str
    value: float | None
    share: Share | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """How well labels of one generality are told apart; the last level is that of the leaves."""

    labels: int
    images: int
    """Those of which something so special is known."""
    top1: Share | None
    mean_recall: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class OfLabel:
    """The figures of one label; NaN where there is nothing to divide by."""

    index: int
    support: int
    given: int
    """Images that were given it: as the best label, of those that have one; in a set of several
    labels an image, as an accepted one. Precision, recall and F1 are of the same."""
    precision: float
    recall: float
    f1: float
    auc: float
    average_precision: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """Two labels, how often one was taken for the other, and the places of a few such images."""

    true: int
    given: int
    count: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """An image whose accepted label is wrong, by its place in the truth."""

    place: int
    given: int
    score: float


@dataclass(frozen=True, slots=True)
class Judged:
    """What a label set is worth on some images."""

    images: int
    """Images judged: named by the truth, and embedded."""
    none_of_these: int
    """Those of them that have none of the labels."""
    figures: tuple[Figure, ...]
    levels: tuple[Level, ...]
    labels: tuple[OfLabel, ...]
    reliability: tuple[Bin, ...]
    by_mass: tuple[Bin, ...]
    curve: tuple[tuple[float, float], ...]
    """Coverage and risk."""
    confusions: tuple[Confusion, ...]
    errors: tuple[Wrong, ...]
    """The surest ones first."""


def judged(judge: Judge) -> Judged:
    """Return the figures of what was seen: at least one image."""
    facts, seen_I = judge.facts, judge.seen_I
    place_I = np.flatnonzero(seen_I)
    right_I = facts.agree(place_I, judge.top_IK[place_I, 0])
    said_I = judge.score_IK[place_I, 0].astype(np.float64)
    width = measuring.reliability(said_I, right_I)
    mass = measuring.reliability(said_I, right_I, by="mass")
    curve = measuring.risk_coverage(said_I, right_I)
    levels = [_level(judge, at) for at in range(len(facts.cuts))]
    of_labels = _accepted(judge) if judge.multi_label else _best(judge, levels)
    rankings = _rankings(judge)
    numbers = {
        **_mean_figures(levels[-1][1] if not judge.multi_label else of_labels, rankings),
        "calibration_error": measuring.calibration_error(width),
        "calibration_error_by_mass": measuring.calibration_error(mass),
        "brier": measuring.brier(said_I, right_I),
        "risk_area": curve.area,
    }
    why = "" if judge.score_KI is not None else "too many images and labels to rank"
    figures = [
        *(Figure(name, None if one is None else one.value, one, "" if one else "no such image")
          for name, one in _shares(judge, curve).items()),
        *(Figure(name, None if np.isnan(value) else value,
                 reason=(why or "no such image") if np.isnan(value) else "")
          for name, value in numbers.items()),
    ]  # fmt: skip
    return Judged(
        images=len(place_I),
        none_of_these=int(facts.none_I[seen_I].sum()),
        figures=tuple(figures),
        levels=tuple(level for level, _ in levels),
        labels=tuple(_of_label(judge, n, of_labels, rankings) for n in range(facts.count)),
        reliability=tuple(width),
        by_mass=tuple(mass),
        curve=tuple(curve.points()),
        confusions=tuple(_confusions(judge)),
        errors=tuple(_errors(judge)),
    )


def _level(judge: Judge, at: int) -> tuple[Level, Classes]:
    """Return the figures of one cut of the taxonomy, by the best of its labels."""
    facts, cut_K = judge.facts, judge.facts.cuts[at]
    true = facts.at(cut_K).of(judge.seen_I)
    place_I = np.unique(true.image_T)
    given_I = judge.best_LI[at, place_I]
    right_I = true.hold(place_I, given_I)
    hits_N, given_N, support_N = (
        np.bincount(one, minlength=facts.count) for one in (given_I[right_I], given_I, true.label_T)
    )
    found = measuring.classes(hits_N, given_N, support_N)
    top1 = measuring.share(int(right_I.sum()), len(place_I))
    level = Level(len(cut_K), len(place_I), top1, found.mean_recall, found.macro_f1)
    return level, found


def _best(judge: Judge, levels: list[tuple[Level, Classes]]) -> Classes:
    """Return the figures of each label at the first level that has it."""
    facts = judge.facts
    level_N = np.array([len(facts.tree.path(n)) - 1 for n in range(facts.count)])
    level_N[facts.tree.leaves] = len(levels) - 1
    every = np.arange(facts.count)
    given, precision, recall, f1 = (
        np.stack([getattr(found, name) for _, found in levels])[level_N, every]
        for name in ("given_N", "precision_N", "recall_N", "f1_N")
    )
    return Classes(given, precision, recall, f1)


def _accepted(judge: Judge) -> Classes:
    """Return the figures of each label by where it was accepted."""
    true = judge.facts.true.of(judge.seen_I)
    support_N = np.bincount(true.label_T, minlength=judge.facts.count)
    return measuring.classes(judge.hits_N, judge.given_N, support_N)


def _rankings(judge: Judge) -> dict[int, Ranking]:
    """Return how well each label that images have ranks them."""
    if judge.score_KI is None:
        return {}
    facts, seen_I = judge.facts, judge.seen_I
    rank_I = np.cumsum(seen_I) - 1  # the place among those seen
    by_label = facts.true.of(seen_I).by_label
    found = {}
    for at, label in enumerate(judge.ranked_K.tolist()):
        if label in by_label:
            unsure = facts.unsure(label)
            score_I = np.asarray(judge.score_KI[at])[seen_I]
            unsure = rank_I[unsure[seen_I[unsure]]]
            found[label] = measuring.ranking(score_I, rank_I[by_label[label]], unsure)
    return found


def _mean_figures(found: Classes, rankings: dict[int, Ranking]) -> dict[str, float]:
    auc = [one.auc for one in rankings.values() if not np.isnan(one.auc)]
    precision = [one.average_precision for one in rankings.values()]
    return {
        "mean_recall": found.mean_recall,
        "macro_f1": found.macro_f1,
        "mean_average_precision": float(np.mean(precision)) if precision else np.nan,
        "mean_auc": float(np.mean(auc)) if auc else np.nan,
    }


def _shares(judge: Judge, curve: RiskCoverage) -> dict[str, Share | None]:
    facts, seen_I = judge.facts, judge.seen_I
    leaves = facts.at(facts.cuts[-1]).of(seen_I)
    place_I = np.unique(leaves.image_T)
    top_IK = judge.top_IK[place_I]
    hit_IK = leaves.hold(np.repeat(place_I, top_IK.shape[1]), top_IK.ravel()).reshape(top_IK.shape)
    given_I, none_I = judge.answer_I[seen_I] >= 0, facts.none_I[seen_I]
    both = int((~given_I & none_I).sum())
    accepted, hits = int(judge.given_N.sum()), int(judge.hits_N.sum())
    shares = {
        "top1": measuring.share(int(hit_IK[:, 0].sum()), len(place_I)),
        "top5": measuring.share(int(hit_IK.any(axis=1).sum()), len(place_I)),
        "precision_at_50": curve.right_at(0.5),
        "precision_at_80": curve.right_at(0.8),
        "coverage": measuring.share(int(given_I.sum()), len(given_I)),
        "precision": measuring.share(hits, accepted),
        "none_precision": measuring.share(both, int((~given_I).sum()) if none_I.any() else 0),
        "none_recall": measuring.share(both, int(none_I.sum())),
    }
    if judge.multi_label:
        shares["recall"] = measuring.share(hits, len(facts.true.of(seen_I).label_T))
    return shares


def _of_label(judge: Judge, label: int, found: Classes, rankings: dict[int, Ranking]) -> OfLabel:
    ranking = rankings.get(label)
    return OfLabel(
        index=label,
        support=int(judge.seen_I[judge.facts.true.by_label.get(label, [])].sum()),
        given=int(found.given_N[label]),
        precision=float(found.precision_N[label]),
        recall=float(found.recall_N[label]),
        f1=float(found.f1_N[label]),
        auc=ranking.auc if ranking else np.nan,
        average_precision=ranking.average_precision if ranking else np.nan,
    )


def _confusions(judge: Judge) -> list[Confusion]:
    """Return which labels, no groups, are taken for which; every true label of an image counts."""
    facts = judge.facts
    true = facts.at(facts.cuts[-1]).of(judge.seen_I)
    given_T = judge.top_IK[true.image_T, 0]
    wrong_T = ~true.hold(true.image_T, given_T)
    image_T, label_T, given_T = true.image_T[wrong_T], true.label_T[wrong_T], given_T[wrong_T]
    surest_T = np.argsort(-judge.score_IK[image_T, 0], kind="stable")
    found = []
    for label, given, count in measuring.confusions(label_T, given_T, _CONFUSIONS):
        of_both = surest_T[(label_T == label)[surest_T] & (given_T == given)[surest_T]]
        places = image_T[of_both[:_EXAMPLES]].tolist()
        found.append(Confusion(label, given, count, tuple(places)))
    return found


def _errors(judge: Judge) -> list[Wrong]:
    """Return the images whose accepted labels are most surely wrong."""
    place_I = np.flatnonzero(judge.wrong_I >= 0)
    score_I = judge.wrong_score_I[place_I]
    order = np.argsort(-score_I, kind="stable")[:_ERRORS]
    return [
        Wrong(int(place_I[at]), int(judge.wrong_I[place_I[at]]), float(score_I[at]))
        for at in order.tolist()
    ]
