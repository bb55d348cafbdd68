"""Figures of labels: those of scikit-learn, or worked by hand; ties, absent labels, no numbers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from clipcap.labels import measuring


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_auc_and_average_precision_are_those_of_scikit_learn(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    score_I = rng.random(300).round(decimals).astype(np.float32)
    positive_I = rng.random(300) < 0.2 + 0.5 * score_I
    found = measuring.ranking(score_I, np.flatnonzero(positive_I))
    assert found.auc == pytest.approx(sk.roc_auc_score(positive_I, score_I), abs=1e-12)
    expected = sk.average_precision_score(positive_I, score_I)
    assert found.average_precision == pytest.approx(expected, abs=1e-12)
    unsure_U = np.flatnonzero(~positive_I)[::3]
    kept_I = np.setdiff1d(np.arange(300), unsure_U)
    found = measuring.ranking(score_I, np.flatnonzero(positive_I), unsure_U)
    expected = sk.roc_auc_score(positive_I[kept_I], score_I[kept_I])
    assert found.auc == pytest.approx(expected, abs=1e-12)


def test_a_ranking_without_two_kinds_says_nothing() -> None:
    score_I, nobody = np.array([0.1, 0.5]), np.array([], np.int64)
    none = measuring.ranking(score_I, nobody)
    assert np.isnan([none.auc, none.average_precision]).all()
    every = measuring.ranking(score_I, np.array([0, 1]))
    assert np.isnan(every.auc)
    assert every.average_precision == 1
    assert measuring.ranking(np.zeros(4), np.array([0])).auc == 0.5


@pytest.mark.parametrize("name", ["brier", "reliability", "risk_coverage"])
def test_what_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="every score must be a number"):
        getattr(measuring, name)(np.array([0.5, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="every score must be a number"):
        measuring.ranking(np.array([0.5, np.nan]), np.array([0]))


def test_calibration_error_by_hand() -> None:
    """Bins of a fifth: (0.2, 0.4] has 0.3 twice, one right; (0.8, 1] has 0.9 and 1, both right."""
    said, right = np.array([0.3, 0.3, 0.9, 1.0]), np.array([True, False, True, True])
    bins = measuring.reliability(said, right, bins=5)
    assert [(round(b.low, 9), b.count, b.right) for b in bins] == [(0.2, 2, 0.5), (0.8, 2, 1.0)]
    assert measuring.calibration_error(bins) == pytest.approx(0.5 * 0.2 + 0.5 * 0.05)
    assert measuring.brier(said, right) == pytest.approx((0.49 + 0.09 + 0.01 + 0) / 4)
    assert measuring.brier(said, right) == pytest.approx(sk.brier_score_loss(right, said))


def test_bins_hold_their_upper_edge_and_the_first_holds_nought() -> None:
    said = np.array([0.0, 0.2, 0.2 + 1e-9, 1.0])
    bins = measuring.reliability(said, np.ones(4, bool), bins=5)
    assert [one.count for one in bins] == [2, 1, 1]


def test_bins_of_equal_mass_keep_equal_confidences_together() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(3_000)
    bins = measuring.reliability(said, said > 0.5, by="mass")
    assert {one.count for one in bins} == {200}
    tied = np.concatenate([np.full(900, 0.7), rng.random(100)])
    order = rng.permutation(1_000)
    right = rng.random(1_000) < 0.6
    one, other = (
        measuring.reliability(tied[at], right[at], by="mass") for at in (order, np.arange(1_000))
    )
    assert [part.count for part in one] == [part.count for part in other]
    assert [part.right for part in one] == pytest.approx([part.right for part in other])
    assert max(part.count for part in one) >= 900
    assert measuring.reliability(np.array([]), np.array([], bool)) == []


def test_a_calibrated_sample_has_an_error_near_nought() -> None:
    rng = np.random.default_rng(1)
    said = rng.random(200_000)
    right = rng.random(200_000) < said
    for bins in (measuring.reliability(said, right), measuring.reliability(said, right, by="mass")):
        assert measuring.calibration_error(bins) < 0.005


def test_risk_and_coverage_by_hand() -> None:
    """Sorted: right, wrong and right of equal confidence, wrong: 0, 0.5 / 2, 1 / 3, 2 / 4."""
    said = np.array([0.5, 0.9, 0.1, 0.5])
    right = np.array([False, True, False, True])
    found = measuring.risk_coverage(said, right)
    again = measuring.risk_coverage(said[[3, 1, 0, 2]], right[[3, 1, 0, 2]])
    for one in (found, again):
        assert one.risk_I.tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5])
        assert one.area == pytest.approx((0.25 + 1 / 3 + 0.5) / 4)
    at_once = found.right_at(0.25)
    assert at_once is not None
    assert (at_once.value, at_once.among) == (1.0, 1)
    whole = found.right_at(1.0)
    assert whole is not None
    assert (whole.hits, whole.among) == (2, 4)
    assert found.points() == [(0.25, 0.0), (0.5, 0.25), (0.75, pytest.approx(1 / 3)), (1.0, 0.5)]
    assert len(measuring.risk_coverage(np.arange(9_999.0), np.ones(9_999, bool)).points()) == 200
    with pytest.raises(ValueError, match="an answer to judge"):
        measuring.risk_coverage(np.array([]), np.array([], bool))


def test_an_interval_is_wilsons() -> None:
    """Ten of ten: 1 / (1 + 1.96² / 10) = 0.722; 50 of 100: 0.5 -+ 0.096."""
    assert measuring.share(0, 0) is None
    ten, half, none = measuring.share(10, 10), measuring.share(50, 100), measuring.share(0, 5)
    assert ten is not None
    assert half is not None
    assert none is not None
    assert (ten.value, ten.high) == (1, 1)
    assert ten.low == pytest.approx(0.7225, abs=1e-4)
    assert half.low == pytest.approx(0.4038, abs=1e-4)
    assert half.high == pytest.approx(0.5962, abs=1e-4)
    assert (none.value, none.low) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_figures_of_labels_are_those_of_scikit_learn(seed: int) -> None:
    """Label 7 is never true, label 6 never given, label 8 neither."""
    rng = np.random.default_rng(seed)
    true_I = rng.integers(0, 7, 500)
    given_I = np.where(rng.random(500) < 0.6, true_I, rng.integers(0, 8, 500))
    given_I[given_I == 6] = 7
    hits_N = np.bincount(true_I[true_I == given_I], minlength=9)
    given_N, support_N = np.bincount(given_I, minlength=9), np.bincount(true_I, minlength=9)
    found = measuring.classes(hits_N, given_N, support_N)
    expected = sk.recall_score(true_I, given_I, average="macro", labels=range(7))
    assert found.mean_recall == pytest.approx(expected)
    assert found.macro_f1 == pytest.approx(sk.f1_score(true_I, given_I, average="macro"))
    expected = sk.precision_recall_fscore_support(true_I, given_I, labels=range(8), zero_division=0)
    for ours_N, theirs_N in zip((found.precision_N, found.recall_N, found.f1_N), expected[:3],
                                strict=True):  # fmt: skip
        assert np.nan_to_num(ours_N[:8]) == pytest.approx(theirs_N)
    assert np.isnan([found.f1_N[8], found.precision_N[6], found.recall_N[7]]).all()


def test_one_label_and_no_label_have_figures() -> None:
    one = measuring.classes(np.array([3]), np.array([4]), np.array([3]))
    assert one.mean_recall == 1
    assert one.macro_f1 == pytest.approx(6 / 7)
    none = measuring.classes(np.array([0]), np.array([0]), np.array([0]))
    assert np.isnan([none.mean_recall, none.macro_f1]).all()


def test_confusions_come_most_frequent_first() -> None:
    true_T, given_T = np.array([2, 2, 0, 1, 2]), np.array([0, 0, 1, 2, 1])
    assert measuring.confusions(true_T, given_T, most=3)[0] == (2, 0, 2)
    assert len(measuring.confusions(true_T, given_T, most=3)) == 3
    assert measuring.confusions(np.array([], np.int64), np.array([], np.int64), most=3) == []


def test_a_hundred_thousand_images_are_ranked_fast() -> None:
    """A thousand labels in seconds: about 4 ms each on one core; the limit is far above."""
    rng = np.random.default_rng(0)
    score_I = rng.random(100_000, dtype=np.float32)
    positive_P = np.arange(0, 100_000, 1_000)
    begun = time.process_time()
    for _ in range(20):
        measuring.ranking(score_I, positive_P)
    assert (time.process_time() - begun) / 20 < 0.03
