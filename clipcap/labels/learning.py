"""A handful of labelled embeddings in; a vector and an affine rule per label out.

Prototypes: the mean embedding of a label's images, compared by cosine; works from one image on.
Probe: logistic regression on embeddings, the usual linear probe (arXiv:2103.00020, section 3.2).
How sure either is gets measured on images that it was not made from: the scale of its logits is
fitted to them, and the report is of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from clipcap.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.float64]
    Flags = NDArray[np.bool_]

Method = Literal["probe", "prototypes"]
FOLDS: Final = 5
_STRENGTHS: Final = (0.1, 1.0, 10.0, 100.0, 1_000.0)
"""Of the probe's C, on embeddings times sqrt(D); the best on images left out is taken."""
_STEPS: Final = np.geomspace(0.03, 30.0, 61)
"""Of the usual scale, that are tried; a few images move it less far than many."""
_USUAL: Final = 30.0  # times the cosine of two images


@dataclass(frozen=True, slots=True)
class Examples:
    """N labelled images; C labels, the last of them "none of these" where it was given."""

    embedding_ND: Floats
    """Unit vectors."""
    has_NC: Flags
    """Which labels each image has."""
    exclusive: bool
    """An image has one label only."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """`logit = cosine * gain + shift`, and what it does with images it was not made from."""

    method: Method
    vector_CD: Floats
    """Unit vectors."""
    gain_C: Floats
    shift_C: Floats
    strength: float | None
    """Of the probe: the inverse of the regularisation."""
    accuracy: float
    """Share of images left out whose best label is right (of several labels: mean of labels).
    NaN where a label has one image, which cannot be left out."""
    loss: float
    """Of images left out, in nats."""


def learn(examples: Examples, method: Method | Literal["auto"], *, seed: int) -> Learnt:
    """Return the rule of a method; `auto`: of the one that does better on images left out.

    Raises:
        SettingsError: too few images to learn from, or to tell how good it is.
    """
    _require_enough(examples)
    least = int(examples.has_NC.sum(axis=0).min())
    if method == "probe" and least < 2:
        raise SettingsError(
            f"A probe must have 2 images of each label, so that one can be left out, but one label "
            f"has {least}. Take prototypes, or label more."
        )
    methods: list[Method] = ["prototypes", "probe"] if least >= 2 else ["prototypes"]
    found = [
        _prototypes(examples) if one == "prototypes" else _probe(examples, seed)
        for one in (methods if method == "auto" else [method])
    ]
    return min(found, key=lambda one: one.loss)


def _require_enough(examples: Examples) -> None:
    count_C = examples.has_NC.sum(axis=0)
    if not np.isfinite(examples.embedding_ND).all():
        raise SettingsError("Every embedding must be of numbers, but some are not. Embed again.")
    if len(count_C) < 1 + examples.exclusive:
        raise SettingsError(
            "There must be two labels at least, or one and images of none of it (an empty label), "
            f"but there are {len(count_C)}."
        )
    if count_C.min() == 0:
        raise SettingsError(
            f"Every label must have an image, but label {count_C.argmin()} has none."
        )
    if count_C.max() == len(examples.has_NC):
        raise SettingsError("Some images must not have a label, but one label is on all of them.")


def _prototypes(examples: Examples) -> Learnt:
    """Return the means of labels; each image is judged by means that it is no part of."""
    embedding_ND, has_NC = examples.embedding_ND.astype(np.float64), examples.has_NC
    count_C = has_NC.sum(axis=0)
    total_CD = has_NC.T.astype(np.float64) @ embedding_ND
    squared_C = (total_CD * total_CD).sum(axis=1)
    dot_NC = embedding_ND @ total_CD.T
    # Without image n the total is total - x: its dot product and its length follow from these.
    out_NC = np.where(has_NC, dot_NC - 1, dot_NC)
    length_NC = np.sqrt(np.maximum(np.where(has_NC, squared_C - 2 * dot_NC + 1, squared_C), 1e-12))
    cosine_NC, exclusive = out_NC / length_NC, examples.exclusive
    shift = _no_shifts if exclusive else _shifts
    if count_C.min() > 1:
        scale, shift_C, loss = _scaled(cosine_NC, has_NC, _USUAL, shift, exclusive=exclusive)
        accuracy = _accuracy(cosine_NC * scale + shift_C, has_NC, exclusive=exclusive)
    else:  # nothing can be left out
        scale, accuracy, loss = _USUAL, np.nan, np.nan
        shift_C = shift(dot_NC / np.sqrt(squared_C) * scale, has_NC)
    return Learnt(
        method="prototypes",
        vector_CD=(total_CD / np.sqrt(squared_C)[:, None]).astype(np.float32),
        gain_C=np.full(len(count_C), scale, np.float32),
        shift_C=shift_C.astype(np.float32),
        strength=None,
        accuracy=accuracy,
        loss=loss,
    )


def _probe(examples: Examples, seed: int) -> Learnt:
    """Return logistic regression of the strength that does best on images left out."""
    has_NC, exclusive = examples.has_NC, examples.exclusive
    fold_N = _folds(has_NC, seed)
    tried = []
    for strength in _STRENGTHS:
        logit_NC = np.full(has_NC.shape, np.nan)
        for fold in np.unique(fold_N):
            out_N = fold_N == fold
            weight_CD, bias_C = _regressed(examples, ~out_N, strength)
            logit_NC[out_N] = examples.embedding_ND[out_N] @ weight_CD.T + bias_C
        scale, _, loss = _scaled(logit_NC, has_NC, 1.0, _no_shifts, exclusive=exclusive)
        tried.append((loss, strength, scale, logit_NC))
    loss, strength, scale, logit_NC = min(tried, key=lambda one: one[0])
    weight_CD, bias_C = _regressed(examples, np.ones(len(has_NC), dtype=bool), strength)
    length_C = np.maximum(np.linalg.norm(weight_CD, axis=1), 1e-12)
    return Learnt(
        method="probe",
        vector_CD=(weight_CD / length_C[:, None]).astype(np.float32),
        gain_C=(length_C * scale).astype(np.float32),
        shift_C=(bias_C * scale).astype(np.float32),
        strength=strength,
        accuracy=_accuracy(logit_NC, has_NC, exclusive=exclusive),
        loss=loss,
    )


def _regressed(examples: Examples, among_N: Flags, strength: float) -> tuple[Numbers, Numbers]:
    """Return weights [C, D] and biases [C] for unit vectors."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - a second

    root = np.sqrt(examples.embedding_ND.shape[1])  # numbers near 1, as regularisation expects
    x_ND = examples.embedding_ND[among_N].astype(np.float64) * root
    has_NC = examples.has_NC[among_N]
    model = LogisticRegression(C=strength / len(x_ND), max_iter=5_000)
    weight_CD, bias_C = np.zeros((has_NC.shape[1], x_ND.shape[1])), np.zeros(has_NC.shape[1])
    if not examples.exclusive:
        for c, has_N in enumerate(has_NC.T):
            if has_N.any() and not has_N.all():
                model.fit(x_ND, has_N)
                weight_CD[c], bias_C[c] = model.coef_[0], model.intercept_[0]
        return weight_CD * root, bias_C
    model.fit(x_ND, has_NC.argmax(axis=1))
    if len(bias_C) == 2:  # one row stands for the difference of both
        weight_CD[:] = np.concatenate([-model.coef_ / 2, model.coef_ / 2])
        bias_C[:] = np.concatenate([-model.intercept_ / 2, model.intercept_ / 2])
        return weight_CD * root, bias_C
    return model.coef_ * root, model.intercept_


def _folds(has_NC: Flags, seed: int) -> NDArray[np.intp]:
    """Return the fold of each image: each label's are dealt out, the rarest label's first."""
    rng = np.random.default_rng(seed)
    fold_N = np.full(len(has_NC), -1)
    at = 0
    for c in np.argsort(has_NC.sum(axis=0), kind="stable"):
        some = rng.permutation(np.nonzero(has_NC[:, c] & (fold_N < 0))[0])
        fold_N[some] = (at + np.arange(len(some))) % FOLDS
        at += len(some)
    rest = np.nonzero(fold_N < 0)[0]
    fold_N[rest] = (at + np.arange(len(rest))) % FOLDS
    return fold_N


def _scaled(
    score_NC: Numbers,
    has_NC: Flags,
    usual: float,
    shift: Callable[[Numbers, Flags], Numbers],
    *,
    exclusive: bool = True,
) -> tuple[float, Numbers, float]:
    """Return the most probable scale and its shifts, and the loss with them.

    Before any image is seen the scale is within a factor e of the usual one by two to one.
    """
    tried = []
    for step in _STEPS:
        logit_NC = score_NC * usual * step
        shift_C = shift(logit_NC, has_NC)
        loss = _loss(logit_NC + shift_C, has_NC, exclusive=exclusive)
        unlikely = loss * len(has_NC) + np.log(step) ** 2 / 2
        tried.append((float(unlikely), float(usual * step), shift_C, loss))
    _, scale, shift_C, loss = min(tried, key=lambda one: one[0])
    return scale, shift_C, loss


def _no_shifts(logit_NC: Numbers, _has_NC: Flags) -> Numbers:
    return np.zeros(logit_NC.shape[1])


def _shifts(logit_NC: Numbers, has_NC: Flags) -> Numbers:
    """Return the shift that makes each label's mean probability its share of the images."""
    low_C, high_C = np.full(logit_NC.shape[1], -1e3), np.full(logit_NC.shape[1], 1e3)
    share_C = (has_NC.sum(axis=0) + 0.5) / (len(has_NC) + 1)
    for _ in range(60):
        middle_C = (low_C + high_C) / 2
        mean_C = (1 / (1 + np.exp(-np.clip(logit_NC + middle_C, -60, 60)))).mean(axis=0)
        is_high_C = mean_C > share_C
        low_C, high_C = np.where(is_high_C, low_C, middle_C), np.where(is_high_C, middle_C, high_C)
    middle: Numbers = (low_C + high_C) / 2
    return middle


def _loss(logit_NC: Numbers, has_NC: Flags, *, exclusive: bool) -> float:
    if exclusive:
        total_N = np.logaddexp.reduce(logit_NC, axis=1)
        return float((total_N - logit_NC[np.arange(len(has_NC)), has_NC.argmax(axis=1)]).mean())
    return float(np.logaddexp(0, np.where(has_NC, -logit_NC, logit_NC)).sum(axis=1).mean())


def _accuracy(logit_NC: Numbers, has_NC: Flags, *, exclusive: bool) -> float:
    if exclusive:
        return float(has_NC[np.arange(len(has_NC)), logit_NC.argmax(axis=1)].mean())
    return float(((logit_NC > 0) == has_NC).mean())
