"""A bank, a collection's embeddings and perhaps labelled images in, a bank whose scores hold out.

Without labelled images unequal labels are made comparable, and a share of the images gets none.
With some, a score says how often it is right, and thresholds keep a wanted precision. All that is
said of a fit is measured on images that had no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from clipcap.errors import SettingsError
from clipcap.labels import accepting, anchors, calibrating, normalising, scoring
from clipcap.labels.accepting import Scored
from clipcap.labels.fits import Fit, FitSettings
from clipcap.labels.normalising import Affine
from clipcap.labels.tree import Tree
from clipcap.labels.working import Work, begin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.labels.accepting import Accepting
    from clipcap.labels.bank import Bank
    from clipcap.labels.fitted import Labelled
    from clipcap.thresholds import Interval

    Floats = NDArray[np.float32]
    Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Done:
    """A change of logits, and the scores of images by a fit to others."""

    change: Affine
    score_NC: Floats
    right: float
    error: Interval
    """Of the fit, also where its scores are not taken."""
    is_fitted: bool = False
    is_normalised: bool = False


def to_collection(bank: Bank, sample_MD: Floats, settings: FitSettings) -> tuple[Bank, Fit]:
    """Return a bank fitted to images of a collection of which nobody says what they show.

    Args:
        bank: any, of words or fitted before.
        sample_MD: unit embeddings, 50 or more.
        settings: the share of images without a label.

    Raises:
        SettingsError: too few images, a similarity that is no number or always the same.
    """
    work = begin(bank)
    logit_MC = work.logits(sample_MD)
    change = _by_collection(logit_MC, work)
    top_MT = work.tops(work.scores(change(logit_MC)))
    found = accepting.by_share(top_MT, settings.none_rate, background=work.background or 0)
    fit = Fit(method="collection", images=len(sample_MD), accepting=found)
    value = found.threshold.value if found.threshold else 0.0
    return _made(work, change, np.full(bank.count, value, np.float32), fit)


def to_truth(
    bank: Bank, sample_MD: Floats, labelled: Labelled, settings: FitSettings
) -> tuple[Bank, Fit]:
    """Return a bank fitted to labelled images, and to others of the same collection.

    Args:
        bank: any, of words or fitted before.
        sample_MD: unit embeddings of images of the collection; fewer than 50 say nothing.
        labelled: images that people said something of.
        settings: the precision, and how much there must be.

    Raises:
        SettingsError: too few labelled images, all alike, a similarity that is no number or always
            the same, or a precision that no threshold has.
    """
    none = sum(not one for one in labelled.labels_N)
    work = begin(anchors.anchored(bank) if none >= settings.thresholds.min_each else bank)
    logit_NC = work.logits(labelled.embedding_ND)
    normalising.require_usable(logit_NC, settings.min_labelled)
    true_NC = _true(labelled.labels_N, work)
    _require_unlike(true_NC, work)
    before_NC = _before(bank, labelled, work)
    before = _error(before_NC, true_NC, work, settings) if _has_scores(bank) else None
    done = _changed(work, sample_MD, (logit_NC, true_NC), settings)
    right = _right(before_NC, true_NC)
    if before and before.value < done.error.value and _may_stay(bank, work) and done.right <= right:
        work = replace(work, bank=bank)
        done = _Done(normalising.same(len(work.at_C)), before_NC, done.right, done.error)
    found, threshold_N = _accepted(bank, work, done, (true_NC, settings))
    fit = Fit(
        method="truth",
        images=len(sample_MD),
        labelled=len(true_NC),
        none=none,
        labels_seen=len(frozenset[int]().union(*labelled.labels_N)),
        is_normalised=done.is_normalised,
        right_before=right,
        right_after=_right(done.score_NC, true_NC),
        error_before=before,
        error_after=_error(done.score_NC, true_NC, work, settings),
        error_dropped=None if done.is_fitted else done.error,
        accepting=found,
        seed=settings.thresholds.seed,
    )
    return _made(work, done.change, threshold_N, fit)


def _accepted(
    bank: Bank, work: Work, done: _Done, known: tuple[Flags, FitSettings]
) -> tuple[Accepting, Floats]:
    """Return what is said of thresholds, and that of each label."""
    true_NC, settings = known
    scored = Scored(done.score_NC, work.tops(done.score_NC), true_NC, work.background)
    found, own_C = accepting.by_truth(scored, settings.precision, settings.thresholds)
    threshold_N = _thresholds(bank, work, found, own_C)
    if own_C is not None:
        has_N = work.labelled(done.score_NC, threshold_N)
        found = accepting.judged(found, has_N, scored.is_none_N)
    return found, threshold_N


def _changed(
    work: Work, sample_MD: Floats, known: tuple[Floats, Flags], settings: FitSettings
) -> _Done:
    """Return what makes scores mean what they say, with levels where more is right with them."""
    logit_NC, true_NC = known
    tried = [
        (work.held_out(logit_NC, true_NC, one, settings), one)
        for one in _changes(work, sample_MD, logit_NC)
    ]
    score_NC, change = max(tried, key=lambda one: _right(one[0], true_NC))
    return _Done(
        change.then(work.calibrated(change(logit_NC), true_NC)),
        score_NC,
        _right(score_NC, true_NC),
        _error(score_NC, true_NC, work, settings),
        is_fitted=True,
        is_normalised=bool(np.any(change.offset_C)),
    )


def _may_stay(bank: Bank, work: Work) -> bool:
    """Whether scores may stay as they came: the fit has the same columns and the same kind.

    Not where they were made from a truth, perhaps this one: they are better there than elsewhere.
    """
    said = json.loads(bank.fit or "{}")
    if said.get("truth_sha256") and not said.get("error_dropped"):
        return False
    kind = "sigmoid" if work.background is None else "softmax"
    return bank.activation == kind and len(bank.vector_CD) == len(work.bank.vector_CD)


def _true(labels_N: Sequence[frozenset[int]], work: Work) -> Flags:
    """Return which columns are right for each image; a group's are those of all its kinds."""
    bank = work.bank
    tree = Tree(bank.label_set.labels)
    true_NC = np.zeros((len(labels_N), len(bank.vector_CD)), bool)
    for n, held in enumerate(labels_N):
        true_NC[n, sorted(held)] = True
        true_NC[n, bank.count :] = not held
    paths = [tree.path(n) if n < bank.count else [n] for n in work.at_C.tolist()]
    return np.stack([true_NC[:, path].any(axis=1) for path in paths], axis=1)


def _require_unlike(true_NC: Flags, work: Work) -> None:
    if not np.any(true_NC != true_NC[0]):
        only = int(true_NC[0].argmax())
        names = [*work.bank.label_set.names, *work.bank.label_set.background]
        what = names[work.at_C[only]] if true_NC[0].any() else "none of these"
        raise SettingsError(
            f"The labelled images must show different labels, but all {len(true_NC):,} show the "
            f"same: {what}. Label some that do not."
        )


def _changes(work: Work, sample_MD: Floats, logit_NC: Floats) -> list[Affine]:
    """Return what may be done before scores are made to mean what they say."""
    enough = len(sample_MD) >= normalising.FEWEST
    if work.background is None:
        return [normalising.percentiles(work.logits(sample_MD) if enough else logit_NC, fewest=1)]
    plain = normalising.same(logit_NC.shape[1])
    return [plain, normalising.levels(work.logits(sample_MD))] if enough else [plain]


def _by_collection(logit_MC: Floats, work: Work) -> Affine:
    if work.background is None:
        return normalising.percentiles(logit_MC)
    return normalising.levels(logit_MC)


def _before(bank: Bank, labelled: Labelled, work: Work) -> Floats:
    """Return the scores as the bank came; 0 of a background that it did not have."""
    score_NC = scoring.whole(labelled.embedding_ND, bank)[1]
    added = max(0, len(work.bank.vector_CD) - score_NC.shape[1])
    whole_NC: Floats = np.pad(score_NC, ((0, 0), (0, added)))[:, work.at_C]
    return whole_NC


def _has_scores(bank: Bank) -> bool:
    """Whether it could score as it came: a sigmoid needs a bias."""
    return bank.activation != "sigmoid" or bool(np.any(bank.shift_C[np.isfinite(bank.shift_C)]))


def _right(score_NC: Floats, true_NC: Flags) -> float:
    return float(true_NC[np.arange(len(true_NC)), score_NC.argmax(axis=1)].mean())


def _error(score_NC: Floats, true_NC: Flags, work: Work, settings: FitSettings) -> Interval:
    """Return the calibration error of best answers, or of every image and label."""
    if work.background is not None:
        best_N1 = score_NC.argmax(axis=1)[:, None]
        score_NC = np.take_along_axis(score_NC, best_N1, axis=1)
        true_NC = np.take_along_axis(true_NC, best_N1, axis=1)
    return calibrating.error_interval(score_NC, true_NC, settings.thresholds)


def _thresholds(bank: Bank, work: Work, found: Accepting, own_C: Floats | None) -> Floats:
    """Return the threshold of each label; groups have that of all."""
    if own_C is None:
        return bank.threshold_N
    shared = found.threshold.value if found.threshold else 0.0
    threshold_N = np.full(bank.count, shared, np.float32)
    label_C = work.at_C[work.at_C < bank.count]
    threshold_N[label_C] = own_C
    return threshold_N


def _made(work: Work, change: Affine, threshold_N: Floats, fit: Fit) -> tuple[Bank, Fit]:
    """Return the bank whose logits are changed, and what is said of it."""
    bank, at_C = work.bank, work.at_C
    gain_C = np.zeros_like(bank.gain_C)
    shift_C = np.full_like(bank.shift_C, -np.inf)
    gain_C[at_C] = bank.gain_C[at_C] * change.factor_C
    shift_C[at_C] = bank.shift_C[at_C] * change.factor_C + change.offset_C
    if work.background is not None:
        fit = fit.model_copy(update={"temperature": float(1 / np.median(gain_C[at_C]))})
    made = replace(
        bank,
        gain_C=gain_C,
        shift_C=shift_C,
        threshold_N=threshold_N,
        activation="sigmoid" if work.background is None else "softmax",
    )
    return made, fit
