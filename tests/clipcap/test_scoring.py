"""Scores and rows against a plain loop over images and labels; a taxonomy adds up and backs off."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from clipcap.errors import SettingsError
from clipcap.labels import bank, scoring
from clipcap.labels.bank import Bank
from clipcap.labels.sets import LabelSet

DIM = 16
ANIMALS: list[str | dict[str, str]] = [
    "animal",
    {"name": "dog", "parent": "animal"},
    {"name": "cat", "parent": "animal"},
    {"name": "vehicle"},
    {"name": "car", "parent": "vehicle"},
    {"name": "tree"},
    {"name": "terrier", "parent": "dog"},
    {"name": "poodle", "parent": "dog"},
]
GROUPS = (0, 1, 3)


def unit(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random unit vectors."""
    found = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def made(count: int = 9, background: int = 2, *, scale: float = 6.0, **choices: Any) -> Bank:  # noqa: ANN401
    """Return the bank of a flat set with random vectors."""
    given = {"names": [f"l{n}" for n in range(count)], **choices}
    given["background"] = [f"b{n}" for n in range(background)]
    label_set = LabelSet.model_validate(given)
    return bank.in_words(label_set, unit(count + background, 1), scale=scale, bias=None)


def tree(**choices: Any) -> Bank:  # noqa: ANN401
    """Return the bank of a taxonomy: groups have no vector and no share of their own."""
    label_set = LabelSet.model_validate({"names": ANIMALS, "background": ["thing"], **choices})
    found = bank.in_words(label_set, unit(len(ANIMALS) + 1, 2), scale=6.0, bias=None)
    found.vector_CD[list(GROUPS)], found.gain_C[list(GROUPS)] = 0, 0
    found.shift_C[list(GROUPS)] = -np.inf
    return found


def plain(embedding_D: Any, given: Bank, top_k: int, threshold: float) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Return the rows of one image, one label after another: (index, rank, score, cosine, ...)."""
    cosines = [float(embedding_D @ vector_D) for vector_D in given.vector_CD]
    logits = [
        cosine * gain + shift
        for cosine, gain, shift in zip(cosines, given.gain_C, given.shift_C, strict=True)
    ]
    if given.activation == "softmax":
        total = sum(np.exp(logit) for logit in logits)
        scores = [np.exp(logit) / total for logit in logits]
    else:
        none = 0.0
        if given.activation == "contrast":
            none = np.log(sum(np.exp(logit) for logit in logits[given.count :]))
        scores = [1 / (1 + np.exp(none - logit)) for logit in logits]
        if given.activation == "contrast":
            scores[given.count :] = [1 - max(scores[: given.count])]
    nothing = max(scores[given.count :], default=0.0)
    order = sorted(range(given.count), key=lambda n: -logits[n])
    found = []
    for rank, n in enumerate(order, start=1):
        own = given.threshold_N[n]
        least = threshold if np.isnan(own) else own
        if rank > top_k and scores[n] < least:
            continue
        after = scores[order[rank]] if rank < len(order) else nothing
        may = given.label_set.multi_label or rank == 1
        holds = may and scores[n] >= least and scores[n] > nothing
        found.append((n, rank, scores[n], cosines[n], scores[n] - after, holds))
    return found


OWN = [{"name": "a", "threshold": 0.02}, "b", {"name": "c", "threshold": 0.9}, "d", "e", "f", "g"]
FLAT = {
    "softmax": made(),
    "softmax, no background": made(background=0),
    "more labels over a low threshold than top k": made(threshold=0.01),
    "thresholds of their own": made(7, names=OWN),
    "several labels": made(multi_label=True, threshold=0.4),
    "softmax of several labels": made(multi_label=True, scores="softmax", threshold=0.05),
    "one label": made(1),
    "as many as top k": made(3),
    "two": made(2, 0),
}


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_the_rows_are_those_of_a_plain_loop(name: str, block: int) -> None:
    given, embedding_BD = FLAT[name], unit(50, 3)
    with patch.object(scoring, "_AT_ONCE", block):
        best = scoring.Scorer(given, top_k=3, threshold=0.3).best(embedding_BD)
    wanted = [
        (b, *row) for b, image_D in enumerate(embedding_BD) for row in plain(image_D, given, 3, 0.3)
    ]
    columns = (best.image_R, best.index_R, best.rank_R, best.accepted_R)
    found = list(zip(*(column.tolist() for column in columns), strict=True))
    assert found == [(b, n, rank, bool(holds)) for b, n, rank, *_, holds in wanted]
    numbers = np.array([row[3:6] for row in wanted])
    ours = np.stack([best.score_R, best.similarity_R, best.margin_R], axis=1)
    np.testing.assert_allclose(ours, numbers, atol=2e-6)


def test_some_set_accepts_and_another_abstains() -> None:
    """Without this the comparison above might say nothing of `accepted`."""
    for name in ("softmax", "several labels", "thresholds of their own"):
        best = scoring.Scorer(FLAT[name], top_k=3, threshold=0.3).best(unit(50, 3))
        assert 0 < best.accepted_R.sum() < len(best.accepted_R)


def test_a_siglip_label_is_scored_for_itself() -> None:
    label_set = LabelSet.model_validate({"names": ["a", "b"]})
    given = bank.in_words(label_set, unit(2, 1), scale=10.0, bias=-3.0)
    similarity_BC, score_BC = scoring.whole(unit(20, 3), given)
    np.testing.assert_allclose(score_BC, 1 / (1 + np.exp(3 - 10 * similarity_BC)), atol=1e-6)
    np.testing.assert_allclose(similarity_BC, unit(20, 3) @ unit(2, 1).T, atol=1e-6)


def test_labels_that_nothing_is_compared_with_are_refused() -> None:
    label_set = LabelSet.model_validate({"names": ["a", "b"], "multi_label": True})
    with pytest.raises(SettingsError, match="`background` names to compare with"):
        bank.in_words(label_set, unit(2, 1), scale=10.0, bias=None)


def test_scores_add_up_along_a_taxonomy() -> None:
    _, score_BC = scoring.whole(unit(50, 3), tree())
    animal, dog, cat, vehicle, car, plant, terrier, poodle, background = score_BC.T
    np.testing.assert_allclose(terrier + poodle, dog, atol=1e-6)
    np.testing.assert_allclose(dog + cat, animal, atol=1e-6)
    np.testing.assert_allclose(car, vehicle, atol=1e-6)
    np.testing.assert_allclose(animal + vehicle + plant + background, 1, atol=1e-6)
    assert score_BC.min() > 0


def test_an_unsure_child_backs_off_to_its_parent() -> None:
    given, embedding_BD = tree(), unit(200, 3)
    _, score_BC = scoring.whole(embedding_BD, given)
    best = scoring.Scorer(given, top_k=2, threshold=0.5).best(embedding_BD)
    answers: dict[int, int] = {}
    for b, index, rank, holds in zip(
        best.image_R, best.index_R, best.rank_R, best.accepted_R, strict=True
    ):
        if rank == 1:
            answers[b] = index if holds else -1
        else:
            assert not holds, "one answer for each image"
    for b, score_C in enumerate(score_BC):
        sure = [n for n in range(len(ANIMALS)) if score_C[n] >= 0.5]
        deepest = max(sure, key=lambda n: (len(path(n)), score_C[n]), default=-1)
        assert answers[b] == deepest, "above a half, what is sure lies on one path"
    assert {0, 1, 6, -1} <= set(answers.values()), "each depth is answered, and so is nothing"


def path(n: int) -> list[str]:
    """Return the names from a label of `ANIMALS` up."""
    parents = {one["name"]: one.get("parent", "") for one in ANIMALS if isinstance(one, dict)}
    entry = ANIMALS[n]
    name = entry if isinstance(entry, str) else entry["name"]
    found = []
    while name:
        found.append(name)
        name = parents.get(name, "")
    return found


def test_groups_are_accepted_beside_labels_that_do_not_exclude_each_other() -> None:
    given = tree(multi_label=True, threshold=0.3)
    _, score_BC = scoring.whole(unit(50, 3), given)
    np.testing.assert_allclose(score_BC[:, [6, 7]].max(axis=1), score_BC[:, 1])
    best = scoring.Scorer(given, top_k=1, threshold=0.5).best(unit(50, 3))
    pairs = zip(best.image_R.tolist(), best.index_R.tolist(), strict=True)
    held = {pair for pair, holds in zip(pairs, best.accepted_R, strict=True) if holds}
    assert any((b, 6) in held and (b, 1) in held and (b, 0) in held for b in range(50))


def test_ranks_of_a_taxonomy_count_up_and_its_margins_are_to_the_next_sibling() -> None:
    given, embedding_BD = tree(), unit(50, 3)
    _, score_BC = scoring.whole(embedding_BD, given)
    best = scoring.Scorer(given, top_k=3, threshold=0.5).best(embedding_BD)
    for b in range(50):
        rows = best.image_R == b
        assert best.rank_R[rows].tolist() == list(range(1, rows.sum() + 1))
        assert all(one >= other for one, other in pairwise(best.score_R[rows][1:]))
        for index, margin in zip(best.index_R[rows], best.margin_R[rows], strict=True):
            if index == 6:
                assert margin == pytest.approx(score_BC[b, 6] - score_BC[b, 7], abs=1e-6)
            if index == 0:
                assert margin == pytest.approx(
                    score_BC[b, 0] - score_BC[b, [3, 5, 8]].max(), abs=1e-6
                )


def test_a_learnt_label_set_is_read_back_as_it_was_written(tmp_path: Any) -> None:  # noqa: ANN401
    from dataclasses import replace

    given = replace(made(4, 1), model_id="m", model_sha256="abc", fit='{"method":"labels"}')
    path = tmp_path / "mine.parquet"
    path.write_bytes(bank.to_bytes(given))
    found = bank.load(str(path))
    assert found.fitted is not None
    for name in ("vector_CD", "gain_C", "shift_C", "threshold_N"):
        assert np.array_equal(getattr(found.fitted, name), getattr(given, name), equal_nan=True)
    assert (found.fitted.fit, found.fitted.activation) == (given.fit, given.activation)
    assert found.label_set == given.label_set
    assert bank.load(str(path)).sha256 == found.sha256
    given.gain_C[0] += 1
    path.write_bytes(bank.to_bytes(given))
    assert bank.load(str(path)).sha256 != found.sha256, "other numbers make other labels"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("given", [*FLAT.values(), tree(), tree(multi_label=True, threshold=0.3)])
def test_a_gpu_finds_the_same_rows(given: Bank) -> None:
    wanted = scoring.Scorer(given, top_k=3, threshold=0.3).best(unit(500, 3))
    found = scoring.Scorer(given, top_k=3, threshold=0.3, device="cuda").best(unit(500, 3))
    np.testing.assert_array_equal(found.index_R, wanted.index_R)
    np.testing.assert_allclose(found.score_R, wanted.score_R, atol=1e-5)
    np.testing.assert_allclose(found.margin_R, wanted.margin_R, atol=1e-5)
