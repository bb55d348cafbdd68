"""What a judge of labels sees: figures equal to those worked out plainly, trees, several labels."""

from __future__ import annotations

import time
from collections import Counter
from unittest.mock import patch

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from clipcap.errors import StorageError
from clipcap.labels import bank, judged, judging
from clipcap.labels.bank import Bank
from clipcap.labels.facts import Facts
from clipcap.labels.judged import Judged
from clipcap.labels.judging import Judge
from clipcap.labels.sets import Label, LabelSet
from clipcap.labels.tree import Tree
from clipcap.labels.truth import Truth

KINDS = LabelSet(
    name="kinds",
    labels=(
        Label(name="animal"),
        Label(name="cat", parent="animal"),
        Label(name="dog", parent="animal"),
        Label(name="vehicle"),
        Label(name="car", parent="vehicle"),
        Label(name="house"),
    ),
)
ANIMAL, CAT, DOG, VEHICLE, CAR, HOUSE = range(6)


def truth(labels: list[set[int]]) -> Truth:
    names = tuple(f"{n:08x}" for n in range(len(labels)))
    return Truth(names, tuple(frozenset(one) for one in labels), Counter())


def plain(label_set: LabelSet, width: int, seed: int = 0) -> Bank:
    """Return a bank of random unit vectors; those of groups are zero."""
    rng = np.random.default_rng(seed)
    count = len(label_set.labels) + len(label_set.background)
    vector_CD = rng.normal(size=(count, width)).astype(np.float32)
    vector_CD /= np.linalg.norm(vector_CD, axis=1, keepdims=True)
    for n, one in enumerate(label_set.labels):
        if one.name in label_set.groups:
            vector_CD[n] = 0
    return bank.in_words(label_set, vector_CD, scale=10.0)


def units(
    count: int, width: int, seed: int = 1
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    drawn = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    unit: np.ndarray[tuple[int, int], np.dtype[np.float32]] = drawn / np.linalg.norm(
        drawn, axis=1, keepdims=True
    )
    return unit


def flat(count: int, **more: object) -> LabelSet:
    return LabelSet.model_validate(
        {"name": "flat", "names": [f"l{n}" for n in range(count)], **more}
    )


def figures(found: Judged) -> dict[str, float | None]:
    return {one.metric: one.value for one in found.figures}


def look(judge: Judge, embedding_BD: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Judged:
    judge.look(np.arange(len(embedding_BD)), embedding_BD)
    return judged.judged(judge)


def test_figures_of_exclusive_labels_are_those_of_scikit_learn() -> None:
    """Every fourth image is none of these; labels 0 to 6 of 8 are true of some."""
    rng = np.random.default_rng(2)
    label_set, images = flat(8, background=["none"]), 400
    made, embedding_BD = plain(label_set, 16), units(400, 16)
    score_BC = torch.from_numpy(embedding_BD @ made.vector_CD.T * 10).softmax(1).numpy()
    best_I = score_BC[:, :8].argmax(1)
    true_I = np.where(rng.random(images) < 0.6, best_I, rng.integers(0, 7, images)).clip(max=6)
    none_I = np.arange(images) % 4 == 0
    judge = Judge(made, truth([set() if none_I[n] else {int(true_I[n])} for n in range(images)]),
                  threshold=0.4)  # fmt: skip
    found = look(judge, embedding_BD)
    told = figures(found)
    is_true, given = true_I[~none_I], best_I[~none_I]
    assert told["top1"] == pytest.approx(sk.accuracy_score(is_true, given))
    among = score_BC[~none_I, :8]
    expected = sk.top_k_accuracy_score(is_true, among, k=5, labels=range(8))
    assert told["top5"] == pytest.approx(expected)
    assert told["macro_f1"] == pytest.approx(
        sk.f1_score(is_true, given, average="macro", labels=np.union1d(is_true, given))
    )
    right_I = (best_I == true_I) & ~none_I
    said_I = score_BC[np.arange(images), best_I]
    assert told["brier"] == pytest.approx(sk.brier_score_loss(right_I, said_I), abs=1e-6)
    accepted_I = (said_I >= 0.4) & (said_I > score_BC[:, 8])
    assert told["coverage"] == pytest.approx(accepted_I.mean())
    assert told["precision"] == pytest.approx(right_I[accepted_I].mean())
    assert told["none_precision"] == pytest.approx(none_I[~accepted_I].mean())
    assert told["none_recall"] == pytest.approx((~accepted_I)[none_I].mean())
    has_IN = (true_I[:, None] == np.arange(7)) & ~none_I[:, None]
    auc = sk.roc_auc_score(has_IN, score_BC[:, :7], average=None)
    assert [one.auc for one in found.labels[:7]] == pytest.approx(auc, abs=1e-6)
    assert np.isnan(found.labels[7].auc)
    expected = sk.average_precision_score(has_IN, score_BC[:, :7], average="macro")
    assert told["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    assert found.none_of_these == 100
    matrix = sk.confusion_matrix(is_true, given, labels=range(8))
    for one in found.confusions:
        assert one.count == matrix[one.true, one.given]
    assert [one.given for one in found.labels] == matrix.sum(axis=0).tolist()
    precision = matrix.diagonal() / matrix.sum(axis=0)
    assert [one.precision for one in found.labels] == pytest.approx(precision, nan_ok=True)
    np.fill_diagonal(matrix, 0)
    assert found.confusions[0].count == matrix.max()
    sure = [one.score for one in found.errors]
    assert sure == sorted(sure, reverse=True)
    assert all(accepted_I[one.place] and not right_I[one.place] for one in found.errors)


def test_several_labels_an_image_are_judged_by_what_is_accepted() -> None:
    rng = np.random.default_rng(3)
    label_set = flat(6, background=["none"], multi_label=True)
    made, embedding_BD = plain(label_set, 12), units(300, 12)
    said = [set(np.flatnonzero(row).tolist()) for row in rng.random((300, 6)) < 0.3]
    judge = Judge(made, truth(said), threshold=0.6)
    told = figures(look(judge, embedding_BD))
    logit_BC = embedding_BD @ made.vector_CD.T * 10
    score_BN = 1 / (1 + np.exp(logit_BC[:, 6:] - logit_BC[:, :6]))
    given_BN = (score_BN >= 0.6) & (score_BN > 1 - score_BN.max(1, keepdims=True))
    true_BN = np.zeros((300, 6), bool)
    for place, labels in enumerate(said):
        true_BN[place, list(labels)] = True
    assert told["precision"] == pytest.approx(given_BN[true_BN].sum() / given_BN.sum())
    assert told["recall"] == pytest.approx(given_BN[true_BN].sum() / true_BN.sum())
    assert told["macro_f1"] == pytest.approx(sk.f1_score(true_BN, given_BN, average="macro"))
    expected = sk.average_precision_score(true_BN, score_BN, average="macro")
    assert told["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
    assert told["top1"] == pytest.approx(
        true_BN[np.arange(300), score_BN.argmax(1)][true_BN.any(1)].mean()
    )


def test_what_is_true_of_a_kind_is_true_of_what_it_is_a_kind_of() -> None:
    facts = Facts(truth([{CAT}, {ANIMAL}, {CAR, CAT}, set(), {HOUSE}]), Tree(KINDS.labels))
    assert [cut.tolist() for cut in facts.cuts] == [
        [ANIMAL, VEHICLE, HOUSE], [CAT, DOG, CAR, HOUSE]
    ]  # fmt: skip
    image, label = (
        np.array([0, 0, 0, 1, 1, 3, 2]),
        np.array([ANIMAL, CAT, DOG, DOG, CAR, CAT, VEHICLE]),
    )
    assert facts.true.hold(image, label).tolist() == [1, 1, 0, 0, 0, 0, 1]
    assert facts.agree(image, label).tolist() == [1, 1, 0, 1, 0, 0, 1]
    assert facts.unsure(DOG).tolist() == [1]
    assert facts.unsure(HOUSE).tolist() == []
    assert facts.none_I.tolist() == [0, 0, 0, 1, 0]
    leaves = facts.at(facts.cuts[1])
    assert list(zip(leaves.image_T.tolist(), leaves.label_T.tolist(), strict=True)) == [
        (0, CAT), (2, CAT), (2, CAR), (4, HOUSE)
    ]  # fmt: skip


def test_a_taxonomy_is_judged_at_every_level_and_a_parent_wins_by_its_sum() -> None:
    """The second image is a bit of cat and a bit of dog: more of an animal than of a car."""
    made = plain(KINDS, 6)
    vector_CD = np.zeros((6, 6), np.float32)
    for n in (CAT, DOG, CAR, HOUSE):
        vector_CD[n, n] = 1
    made.vector_CD[:] = vector_CD
    picture_BD = np.zeros((4, 6), np.float32)
    picture_BD[0, CAT] = 1
    picture_BD[1, [CAT, DOG, CAR]] = 0.57, 0.55, 0.6
    picture_BD[2, DOG] = 1  # but it is a cat
    picture_BD[3, HOUSE] = 1
    said = truth([{CAT}, {ANIMAL}, {CAT}, {HOUSE}])
    found = look(Judge(made, said, threshold=0.5), picture_BD)
    top, leaves = found.levels
    assert top.top1 is not None
    assert (top.labels, top.images, top.top1.hits) == (3, 4, 4)
    assert leaves.top1 is not None
    assert (leaves.labels, leaves.images, leaves.top1.hits) == (4, 3, 2)
    told = figures(found)
    assert told["coverage"] == 1  # the second is backed off to animal
    assert told["precision"] == 0.75
    by_index = {one.index: one for one in found.labels}
    assert (by_index[ANIMAL].support, by_index[ANIMAL].recall) == (3, 1)
    assert (by_index[CAT].support, by_index[CAT].recall) == (2, 0.5)
    assert [(one.true, one.given) for one in found.confusions] == [(CAT, DOG)]
    assert [one.place for one in found.errors] == [2]


def test_one_label_and_a_truth_of_none_have_figures() -> None:
    one = flat(1, background=["none"])
    found = look(Judge(plain(one, 4), truth([{0}, set()]), threshold=0.5), units(2, 4))
    assert figures(found)["top1"] == 1
    nothing = look(Judge(plain(one, 4), truth([set(), set()]), threshold=0.5), units(2, 4))
    by_name = {figure.metric: figure for figure in nothing.figures}
    assert (by_name["top1"].value, by_name["top1"].reason) == (None, "no such image")
    assert by_name["mean_auc"].value is None
    assert by_name["none_recall"].value is not None


def test_images_that_are_not_embedded_do_not_count() -> None:
    label_set = flat(3)
    made, embedding_BD = plain(label_set, 5), units(6, 5)
    said = [{n % 3} for n in range(6)]
    part = Judge(made, truth(said), threshold=0.2)
    part.look(np.array([4, 0, 5]), embedding_BD[[4, 0, 5]])
    alone = Judge(made, truth([said[0], said[4], said[5]]), threshold=0.2)
    assert figures(judged.judged(part)) == figures(look(alone, embedding_BD[[0, 4, 5]]))


def test_scores_that_do_not_fit_in_memory_lie_in_a_file_or_are_not_ranked() -> None:
    made, said = plain(flat(4), 5), [{n % 4} for n in range(40)]
    embedding_BD = units(40, 5)
    in_memory = look(Judge(made, truth(said), threshold=0.2), embedding_BD)
    with patch.object(judging, "IN_MEMORY", 0):
        in_file = look(Judge(made, truth(said), threshold=0.2), embedding_BD)
        assert figures(in_file) == figures(in_memory)
        with (
            patch("os.posix_fallocate", side_effect=OSError(28, "No space left on device")),
            pytest.raises(StorageError, match="Set TMPDIR to a folder with room"),
        ):
            Judge(made, truth(said), threshold=0.2)
    with patch.object(judging, "MOST_BYTES", 0):
        unranked = look(Judge(made, truth(said), threshold=0.2), embedding_BD)
    one = next(one for one in unranked.figures if one.metric == "mean_auc")
    assert (one.value, one.reason) == (None, "too many images and labels to rank")
    assert figures(unranked)["top1"] == figures(in_memory)["top1"]


def test_a_block_is_as_good_as_any_other() -> None:
    made, said = plain(flat(4), 5), [{n % 4} for n in range(40)]
    embedding_BD = units(40, 5)
    whole = look(Judge(made, truth(said), threshold=0.2), embedding_BD)
    with patch.object(judging, "_AT_ONCE", 12):
        assert look(Judge(made, truth(said), threshold=0.2), embedding_BD) == whole


def test_many_images_are_judged_in_seconds() -> None:
    """100,000 images and 1,000 labels take about ten seconds; this is a hundredth of it."""
    made, rng = plain(flat(1_000), 64), np.random.default_rng(0)
    said = truth([{int(n)} for n in rng.integers(0, 1_000, 10_000)])
    embedding_BD = units(10_000, 64)
    begun = time.process_time()
    look(Judge(made, said, threshold=0.5), embedding_BD)
    assert time.process_time() - begun < 10
