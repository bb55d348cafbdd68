"""Thresholds are what the sample says, and where it says nothing there is an error, no number."""

from __future__ import annotations

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcap import thresholds
from clipcap.errors import SettingsError
from clipcap.metrics import clipscore
from clipcap.thresholds import ThresholdSettings

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
FEW = ThresholdSettings(draws=200)


def labelled(count: int, *, apart: float, seed: int = 0) -> tuple[Floats, Flags]:
    """Return scores and labels; a third is bad, with scores that are `apart` deviations lower."""
    rng = np.random.default_rng(seed)
    bad_N = rng.random(count) < 1 / 3
    return rng.normal(size=count) - apart * bad_N, bad_N


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [1, 6], ids=["ties", "no ties"])
def test_a_threshold_by_labels_has_the_most_recall_that_the_precision_allows(
    seed: int, digits: int
) -> None:
    score_N, bad_N = labelled(300, apart=3.0, seed=seed)
    score_N = score_N.round(digits)
    found = thresholds.of_labels("clip_score", score_N, bad_N, FEW)
    tried = [
        (float(bad_N[below_N].sum() / bad_N.sum()), float(bad_N[below_N].mean()))
        for cut in np.unique(score_N)[1:]
        for below_N in [score_N < cut]
        if below_N.sum() >= FEW.min_flagged and bad_N[below_N].mean() >= FEW.precision
    ]
    below_N = score_N < found.threshold.value
    assert found.recall is not None
    assert found.precision is not None
    assert found.recall.value == pytest.approx(max(tried)[0])
    assert found.precision.value == pytest.approx(bad_N[below_N].mean())
    assert found.precision.value >= FEW.precision
    assert found.flagged == pytest.approx(below_N.mean())
    assert (found.captions, found.wrong) == (300, bad_N.sum())
    assert found.threshold.low <= found.threshold.value <= found.threshold.high


def test_the_intervals_hold_for_captions_that_nobody_labelled() -> None:
    """Of many samples nearly all have the true precision in the interval; and it is no wide one."""
    far_N, far_bad_N = labelled(200_000, apart=3.0, seed=99)
    inside, widths = 0, []
    for seed in range(60):
        found = thresholds.of_labels("logprob", *labelled(200, apart=3.0, seed=seed), FEW)
        assert found.precision is not None
        true = far_bad_N[far_N < found.threshold.value].mean()
        inside += found.precision.low <= true <= found.precision.high
        widths.append(found.precision.high - found.precision.low)
    assert inside >= 57  # judged by the captions that chose it: 53
    assert np.mean(widths) < 0.4


@pytest.mark.parametrize(
    ("count", "apart", "message"),
    [
        (50, 3.0, "20 good and 20 bad captions"),
        (400, 0.0, "must be bad"),
        (400, -3.0, "must be bad"),
    ],
    ids=["too few", "nothing tells them apart", "the wrong way round"],
)
def test_labels_that_show_nothing_are_refused(count: int, apart: float, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        thresholds.of_labels("logprob", *labelled(count, apart=apart), FEW)


def test_a_lucky_handful_is_no_threshold() -> None:
    """Ten bad ones happen to be the lowest of captions whose scores say nothing otherwise."""
    score_N, bad_N = labelled(400, apart=0.0)
    score_N[np.flatnonzero(bad_N)[:10]] = -9.0 + 0.01 * np.arange(10)
    settings = FEW.model_copy(update={"precision": 0.9})
    with pytest.raises(SettingsError, match="more than chance"):
        thresholds.of_labels("logprob", score_N, bad_N, settings)


def test_scores_that_are_all_the_same_have_no_threshold() -> None:
    bad_N = np.arange(100) < 70
    with pytest.raises(SettingsError, match="must be bad"):
        thresholds.of_labels("margin", np.zeros(100), bad_N, FEW)


# --- without labels -------------------------------------------------------------------------------


def test_a_quantile_puts_the_share_that_was_asked_for_under_it() -> None:
    score_N = np.random.default_rng(0).normal(size=1_000)
    found = thresholds.quantile("logprob", score_N, FEW)
    assert found.flagged == pytest.approx(0.05, abs=1e-3)
    assert found.threshold.low < found.threshold.value < found.threshold.high
    assert found.threshold.low < -1.645 < found.threshold.high
    assert (found.method, found.asked, found.captions) == ("quantile", 0.05, 1_000)


def test_a_quantile_of_too_few_or_of_equal_scores_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"there must be 200 different captions.*there are 199"):
        thresholds.quantile("logprob", np.arange(199.0), FEW)
    with pytest.raises(SettingsError, match="are all 0"):
        thresholds.quantile("logprob", np.zeros(500), FEW)


def of_others(count: int, *, apart: float) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    return rng.normal(size=count) + apart, rng.normal(size=(count, 8))


def test_few_captions_of_other_images_reach_the_threshold() -> None:
    own_N, other_NS = of_others(1_000, apart=2.0)
    other_NS[::3, 2] = np.nan
    found = thresholds.of_other_images(own_N, other_NS, FEW)
    wrong = other_NS[np.isfinite(other_NS)]
    assert (wrong >= found.threshold.value).mean() == pytest.approx(0.05, abs=1e-3)
    assert found.flagged == pytest.approx((own_N < found.threshold.value).mean())
    assert found.wrong == len(wrong)
    assert found.auc == pytest.approx(0.921, abs=0.01)  # of normals two deviations apart
    assert found.threshold.low < 1.645 < found.threshold.high


@pytest.mark.parametrize("apart", [0.0, -2.0])
def test_captions_that_fit_other_images_as_well_are_refused(apart: float) -> None:
    with pytest.raises(SettingsError, match="no CLIPScore tells good ones from wrong ones"):
        thresholds.of_other_images(*of_others(1_000, apart=apart), FEW)


def test_images_are_scored_by_captions_of_others_that_say_something_else() -> None:
    rng = np.random.default_rng(0)
    image_ND, text_ND = rng.normal(size=(2, 12, 8))
    said = ["a cat", "a dog", *(f"a {n}" for n in range(9)), "a cat"]
    content = [str(n // 2) for n in range(12)]  # two images each are the same
    score_NS = clipscore.of_other_images(image_ND, text_ND, (said, content), count=20, seed=0)
    cosine_NN = image_ND @ text_ND.T
    cosine_NN /= np.linalg.norm(image_ND, axis=1)[:, None] * np.linalg.norm(text_ND, axis=1)
    wanted = [
        sorted(
            2.5 * max(cosine_NN[n, m], 0)
            for m in range(12)
            if said[n] != said[m] and content[n] != content[m]
        )
        for n in range(12)
    ]
    assert score_NS.shape == (12, 11)
    for row_S, found in zip(np.sort(score_NS, 1), wanted, strict=True):
        assert row_S[np.isfinite(row_S)] == pytest.approx(found)
    few_NS = clipscore.of_other_images(image_ND, text_ND, (said,), count=3, seed=0)
    assert few_NS.shape == (12, 3)


def test_too_few_captions_that_differ_are_refused() -> None:
    own_N, other_NS = of_others(1_000, apart=2.0)
    other_NS[100:] = np.nan
    with pytest.raises(SettingsError, match=r"there must be 200 different captions.*there are 100"):
        thresholds.of_other_images(own_N, other_NS, FEW)


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused(strange: float) -> None:
    score_N, bad_N = labelled(400, apart=3.0)
    score_N[7] = strange
    none = "1 of 400 have none"
    with pytest.raises(SettingsError, match=none):
        thresholds.quantile("logprob", score_N, FEW)
    with pytest.raises(SettingsError, match=none):
        thresholds.of_labels("logprob", score_N, bad_N, FEW)
    with pytest.raises(SettingsError, match=none):
        thresholds.of_other_images(score_N, np.zeros((400, 2)), FEW)


def test_the_same_sample_gives_the_same_numbers_within_seconds() -> None:
    score_N, bad_N = labelled(5_000, apart=3.0)
    began = time.process_time()
    once = [
        thresholds.of_labels("logprob", score_N, bad_N, FEW),
        thresholds.quantile("logprob", score_N, FEW),
        thresholds.of_other_images(*of_others(5_000, apart=3.0), FEW),
    ]
    assert time.process_time() - began < 10
    assert once[0] == thresholds.of_labels("logprob", score_N, bad_N, FEW)
    assert once[1] == thresholds.quantile("logprob", score_N, FEW)
