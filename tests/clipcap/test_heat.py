"""Where labels are seen, against plain loops over images, windows and labels."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from clipcap.labels import bank, heat, scoring
from clipcap.labels.bank import Bank
from clipcap.labels.heat import Finder
from clipcap.labels.sets import LabelSet

DIM, IMAGES, WINDOWS, LABELS = 12, 5, 4, 6


def unit(*shape: int, seed: int = 0) -> Any:  # noqa: ANN401
    found = np.random.default_rng(seed).standard_normal((*shape, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def made(labels: int = LABELS, *, background: int = 0, **choices: Any) -> Bank:  # noqa: ANN401
    names = [f"l{n}" for n in range(labels)]
    given = {"names": names, "background": [f"b{n}" for n in range(background)], **choices}
    label_set = LabelSet.model_validate(given)
    return bank.in_words(label_set, unit(labels + background, seed=1), scale=8.0)


@pytest.mark.parametrize(
    "given",
    [made(), made(background=2), made(background=1, multi_label=True), made(LABELS, threshold=0.3)],
)
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_rows_are_those_of_a_plain_loop(given: Bank, at_once: int) -> None:
    whole_BD, window_BKD = unit(IMAGES, seed=2), unit(IMAGES, WINDOWS, seed=3)
    with patch.object(heat, "_AT_ONCE", at_once):
        found = Finder(given, threshold=0.2, top_k=2).find(whole_BD, window_BKD)
    rows = zip(*(getattr(found, field.name).tolist() for field in fields(found)), strict=True)
    plain = list(_plain(given, whole_BD, window_BKD))
    for row, wanted in zip(rows, plain, strict=True):
        for mine, other in zip(row, wanted, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-5)


def _plain(given: Bank, whole_BD: Any, window_BKD: Any) -> Any:  # noqa: ANN401
    """Yield rows, their numbers in the order of the columns of `Heat`."""
    for image, (whole_D, window_KD) in enumerate(zip(whole_BD, window_BKD, strict=True)):
        (whole_C,) = scoring.whole(whole_D[None], given)[1]
        cosine_KC, score_KC = scoring.whole(window_KD, given)
        rows = []
        for n in range(given.count):
            best = int(score_KC[:, n].argmax())
            score = (whole_C[n] + score_KC[best, n]) / 2
            least = 0.2 if np.isnan(given.threshold_N[n]) else given.threshold_N[n]
            none = (
                (whole_C[given.count :].max() + score_KC[best, given.count :].max()) / 2
                if len(whole_C) > given.count
                else -1
            )
            rows.append([
                image, n, 0, score, whole_C[n], score_KC[best, n], best, score_KC[:, n],
                cosine_KC[best, n], score >= least and score > none,
                all(one >= least for one in score_KC[:, n]),
            ])  # fmt: skip
        rows.sort(key=lambda row: -row[3])
        for rank, row in enumerate(rows, 1):
            row[2] = rank
            if rank <= 2 or row[9]:
                yield row


def test_labels_that_were_asked_for_have_a_row_of_every_image_and_no_others_have() -> None:
    whole_BD, window_BKD = unit(IMAGES, seed=2), unit(IMAGES, WINDOWS, seed=3)
    all_of_them = Finder(made(), threshold=0.5, top_k=LABELS).find(whole_BD, window_BKD)
    found = Finder(made(), threshold=0.5, top_k=1, chosen=[4, 1]).find(whole_BD, window_BKD)
    assert len(found.index_R) == 2 * IMAGES
    assert set(found.index_R.tolist()) == {1, 4}
    mine = dict(zip(zip(found.image_R, found.index_R, strict=True), found.peak_R, strict=True))
    for image, n, peak in zip(
        all_of_them.image_R, all_of_them.index_R, all_of_them.peak_R, strict=True
    ):
        if n in (1, 4):
            assert mine[image, n] == pytest.approx(peak, abs=1e-6)


def test_a_set_of_one_label_is_where_the_cosine_is_highest() -> None:
    """Its softmax is 1 everywhere."""
    given = made(1)
    window_BKD = unit(IMAGES, WINDOWS, seed=3)
    found = Finder(given, threshold=0.5, top_k=1).find(unit(IMAGES, seed=2), window_BKD)
    assert found.best_R.tolist() == (window_BKD @ given.vector_CD[0]).argmax(axis=1).tolist()
    assert found.everywhere_R.all()


def test_groups_add_up_and_get_rows_where_they_are_accepted() -> None:
    names: list[Any] = ["animal", {"name": "dog", "parent": "animal"},
                        {"name": "cat", "parent": "animal"}, "tree"]  # fmt: skip
    given = made(4, names=names)
    given.vector_CD[0], given.gain_C[0], given.shift_C[0] = 0, 0, -np.inf
    found = Finder(given, threshold=0.0, top_k=1, chosen=range(4)).find(
        unit(IMAGES, seed=2), unit(IMAGES, WINDOWS, seed=3)
    )
    score = dict(zip(zip(found.image_R, found.index_R, strict=True), found.whole_R, strict=True))
    heat_of = dict(zip(zip(found.image_R, found.index_R, strict=True), found.heat_RK, strict=True))
    for image in range(IMAGES):
        assert score[image, 0] == pytest.approx(score[image, 1] + score[image, 2], abs=1e-6)
        np.testing.assert_allclose(
            heat_of[image, 0], heat_of[image, 1] + heat_of[image, 2], atol=1e-6
        )
    leaves = Finder(given, threshold=1.0, top_k=4).find(
        unit(IMAGES, seed=2), unit(IMAGES, WINDOWS, seed=3)
    )
    assert set(leaves.index_R.tolist()) == {1, 2, 3}


def test_no_image_gives_no_row() -> None:
    none = np.zeros((0, DIM), np.float32)
    found = Finder(made(), threshold=0.5, top_k=2).find(none, none.reshape(0, WINDOWS, DIM))
    assert len(found.image_R) == 0
    assert found.heat_RK.shape == (0, WINDOWS)


def test_labels_have_thresholds_of_their_own() -> None:
    given = made()
    own = replace(given, threshold_N=np.array([1.01] + [np.nan] * 5, np.float32))
    whole_BD, window_BKD = unit(IMAGES, seed=2), unit(IMAGES, WINDOWS, seed=3)
    found = Finder(own, threshold=0.0, top_k=1).find(whole_BD, window_BKD)
    accepted = dict(zip(found.index_R.tolist(), found.accepted_R.tolist(), strict=False))
    assert accepted.get(0, False) is False
    assert all(accepted[n] for n in range(1, LABELS))
