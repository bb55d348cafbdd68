"""Prototypes and probes from a few labelled embeddings: right, honest of themselves, refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipcap.errors import SettingsError
from clipcap.labels import learning
from clipcap.labels.learning import Examples

DIM = 24


def drawn(
    per_label: int, *, labels: int = 4, spread: float = 0.25, seed: int = 0
) -> tuple[Any, Any]:
    """Return unit embeddings around one centre per label, and which label each has."""
    rng = np.random.default_rng(seed)
    centre_CD = np.random.default_rng(99).standard_normal((labels, DIM))
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    index_N = np.repeat(np.arange(labels), per_label)
    found = centre_CD[index_N] + spread * rng.standard_normal((len(index_N), DIM))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), np.eye(labels, dtype=bool)[index_N]


def examples(per_label: int, **choices: Any) -> Examples:  # noqa: ANN401
    """Return labelled images that have one label each."""
    return Examples(*drawn(per_label, **choices), exclusive=True)


def logits(found: learning.Learnt, embedding_ND: Any) -> Any:  # noqa: ANN401
    """Return what a bank of these numbers makes of embeddings."""
    return embedding_ND @ found.vector_CD.T * found.gain_C + found.shift_C


@pytest.mark.parametrize("method", ["probe", "prototypes"])
def test_what_was_learnt_holds_for_new_images(method: learning.Method) -> None:
    found = learning.learn(examples(8), method, seed=0)
    new_ND, has_NC = drawn(200, seed=1)
    right = (logits(found, new_ND).argmax(axis=1) == has_NC.argmax(axis=1)).mean()
    assert right > 0.9
    assert found.accuracy == pytest.approx(right, abs=0.12)
    np.testing.assert_allclose(np.linalg.norm(found.vector_CD, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["probe", "prototypes"])
def test_its_probabilities_mean_something(method: learning.Method) -> None:
    """Where labels run into each other, the mean confidence is the share that is right."""
    found = learning.learn(examples(20, spread=0.6), method, seed=0)
    new_ND, has_NC = drawn(500, spread=0.6, seed=1)
    logit_NC = logits(found, new_ND)
    power_NC = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    sure_N = (power_NC / power_NC.sum(axis=1, keepdims=True)).max(axis=1)
    right = (logit_NC.argmax(axis=1) == has_NC.argmax(axis=1)).mean()
    assert 0.5 < right < 0.9
    assert sure_N.mean() == pytest.approx(right, abs=0.07)


def test_an_image_is_judged_by_prototypes_it_is_no_part_of() -> None:
    embedding_ND, has_NC = drawn(3, spread=0.9)
    found = learning.learn(Examples(embedding_ND, has_NC, exclusive=True), "prototypes", seed=0)
    right = 0
    for n, image_D in enumerate(embedding_ND):
        others = np.arange(len(embedding_ND)) != n
        means = [embedding_ND[others & has_NC[:, c]].sum(axis=0) for c in range(4)]
        cosines = [image_D @ mean / np.linalg.norm(mean) for mean in means]
        right += has_NC[n, int(np.argmax(cosines))]
    assert found.accuracy == pytest.approx(right / len(embedding_ND))
    assert found.accuracy < (logits(found, embedding_ND).argmax(1) == has_NC.argmax(1)).mean()


def test_one_image_of_each_label_is_enough_for_prototypes() -> None:
    found = learning.learn(examples(1), "auto", seed=0)
    assert found.method == "prototypes"
    assert np.isnan(found.accuracy)
    with pytest.raises(SettingsError, match="must have 2 images of each label"):
        learning.learn(examples(1), "probe", seed=0)


def test_several_labels_of_an_image_are_learnt_one_by_one() -> None:
    first_ND, has_NC = drawn(40, labels=3)
    rng = np.random.default_rng(5)
    both_ND = first_ND + first_ND[rng.permutation(len(first_ND))]
    both_ND /= np.linalg.norm(both_ND, axis=1, keepdims=True)
    both_NC = has_NC | has_NC[np.random.default_rng(5).permutation(len(has_NC))]
    given = Examples(both_ND, both_NC, exclusive=False)
    for method in ("probe", "prototypes"):
        found = learning.learn(given, method, seed=0)
        score_NC = 1 / (1 + np.exp(-logits(found, both_ND)))
        assert found.accuracy > 0.8
        np.testing.assert_allclose(score_NC.mean(axis=0), both_NC.mean(axis=0), atol=0.1)


def test_two_labels_are_learnt_as_two() -> None:
    found = learning.learn(examples(10, labels=2), "probe", seed=0)
    new_ND, has_NC = drawn(100, labels=2, seed=1)
    assert (logits(found, new_ND).argmax(axis=1) == has_NC.argmax(axis=1)).mean() > 0.95


def test_the_same_images_give_the_same_numbers() -> None:
    one, other = (learning.learn(examples(6), "probe", seed=0) for _ in range(2))
    np.testing.assert_array_equal(one.vector_CD, other.vector_CD)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    embedding_ND, has_NC = drawn(4)
    cases = {
        "two labels at least": (embedding_ND, has_NC[:, :1]),
        "label 3 has none": (embedding_ND[:12], has_NC[:12]),
        "one label is on all": (embedding_ND, np.concatenate([has_NC, has_NC[:, :1] | True], 1)),
        "must be of numbers": (np.full_like(embedding_ND, np.nan), has_NC),
    }
    for words, (given_ND, given_NC) in cases.items():
        given = Examples(given_ND, given_NC, exclusive=given_NC.shape[1] == 1)
        with pytest.raises(SettingsError, match=words):
            learning.learn(given, "auto", seed=0)
