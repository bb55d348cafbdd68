"""Stored embeddings and what people say is on some images in, a label set learnt from them out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from clipcap import commits, embedding
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError
from clipcap.labels import anchors, fitted, sets, truth
from clipcap.labels.bank import Bank
from clipcap.labels.fitted import Fitted, Labelled
from clipcap.labels.sets import LabelSet
from clipcap.settings import Settings, canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipcap.commits import Commit
    from clipcap.labels.learning import Examples, Learnt
    from clipcap.labels.truth import Named


class LearnSettings(Settings):
    """What labels are learnt from, and how."""

    truth: str = ""
    """File of what people say is on images (an empty label: none of these), or `folder`."""
    method: Literal["auto", "probe", "prototypes"] = "auto"
    """`prototypes`: mean embeddings, from one image of each label on; `probe`: logistic regression;
    `auto`: what does better on images left out."""
    label_set: str = ""
    """Label set of words whose labels, taxonomy and thresholds are kept; empty: the labels of the
    file."""
    multi_label: bool | None = None
    """Whether an image may have several labels; not given: whether one of the file has."""
    min_images: int = Field(default=1, ge=1)
    """Labels with fewer images are left out."""
    seed: int = 0
    """Of what is left out in turns."""


class Learning(Settings):
    """What a label set was learnt from, and what that was worth: JSON in its file."""

    method: Literal["probe", "prototypes"]
    """How."""
    images: int
    """That people said something of."""
    none: int
    """Those of them that show none of these."""
    fewest: int
    """Images of the label with the fewest."""
    left_out: tuple[str, ...] = ()
    """Labels with too few images."""
    strength: float | None = None
    """Of the probe, chosen on images left out: the inverse of its regularisation."""
    accuracy: float | None
    """On images left out; null: a label has one image only."""
    loss: float | None
    """The same, in nats."""
    seed: int
    """Of what was left out."""
    learnt_on: str
    """The day."""
    producer: str
    """The version that did it."""
    truth_sha256: str
    """Of what people said."""


def learn(
    out: str, name: str, *, settings: LearnSettings, encoder: EmbedSettings
) -> Fitted[Learning]:
    """Learn labels from the embeddings of labelled images; reads no image and writes nothing.

    Args:
        out: the canonical URL of the output.
        name: of the label set.
        settings: from what, and how.
        encoder: whose embeddings.

    Raises:
        SettingsError: no image or no label is known, or there are too few to learn from.
        NotFoundError: a shard is not embedded, or there is no truth file.
    """
    if not settings.truth:
        raise SettingsError("There must be labelled images to learn from: give --truth FILE.")
    commits_S = list(embedding.of_output(out, embedding.reference(encoder)).values())
    named = truth.named(settings.truth, out)
    wanted = _wanted(named, settings)
    said = truth.of(named, wanted, origin=settings.truth)
    images = fitted.labelled(commits_S, said.image_ids, _special(said.labels_N, wanted))
    label_set, left_out = _with_images(wanted, images, settings.min_images)
    label_set = label_set.model_copy(update={"name": name})
    examples, columns = _examples(images, wanted, label_set)
    from clipcap.labels import learning

    found = learning.learn(examples, settings.method, seed=settings.seed)
    told = Learning(
        method=found.method,
        images=len(examples.has_NC),
        none=sum(not one for one in images.labels_N),
        fewest=int(examples.has_NC.sum(axis=0).min()),
        left_out=left_out,
        strength=found.strength,
        accuracy=None if np.isnan(found.accuracy) else round(found.accuracy, 4),
        loss=None if np.isnan(found.loss) else round(found.loss, 4),
        seed=settings.seed,
        learnt_on=datetime.now(UTC).date().isoformat(),
        producer=commits.PRODUCER,
        truth_sha256=said.sha256,
    )
    made = _bank(found, label_set, columns, commits_S[0])
    unused = len(images.labels_N) - len(examples.has_NC)
    return Fitted(
        replace(made, fit=told.model_dump_json()),
        told,
        missing_images=said.missing_images + images.missing + unused,
        unknown_labels=len(said.unknown_labels),
    )


def _wanted(named: Named, settings: LearnSettings) -> LabelSet:
    """Return the labels that there may be: those of the given set, else all of the file."""
    several = any(len(words) > 1 for words in named.labels.values())
    chosen = settings.multi_label
    if settings.label_set:
        given = sets.load(settings.label_set)
        several = given.multi_label if chosen is None else chosen
        return given.model_copy(update={"multi_label": several, "background": ()})
    words = sorted({word for words in named.labels.values() for word in words})
    if not words:
        raise SettingsError(
            f"The labels in {settings.truth} must name something to learn, but all are empty."
        )
    several = several if chosen is None else chosen
    try:
        made = sets.of_fitted(canonical_json({"names": words, "multi_label": several}))
    except ValueError as error:
        raise SettingsError(
            f"The labels in {settings.truth} must be names of a label set, but: {error}. Mend the "
            "file."
        ) from error
    if anchors.NONE in words:
        raise SettingsError(
            f"The label {anchors.NONE!r} in {settings.truth} must be left empty: that says none of "
            "these."
        )
    return made


def _special(labels_N: Sequence[frozenset[int]], wanted: LabelSet) -> list[frozenset[int]]:
    """Return the labels of images less those that another is a kind of."""
    from clipcap.labels.tree import Tree

    tree = Tree(wanted.labels)
    return [
        held - {above for n in held for above in tree.path(n)[1:]} if len(held) > 1 else held
        for held in labels_N
    ]


def _with_images(
    wanted: LabelSet, images: Labelled, least: int
) -> tuple[LabelSet, tuple[str, ...]]:
    """Return the set without labels that too few images show, and what is left out.

    Raises:
        SettingsError: an image has several labels of a set whose labels exclude each other.
    """
    most = max(images.labels_N, key=len)
    if len(most) > 1 and not wanted.multi_label:
        names = " and ".join(repr(wanted.names[n]) for n in sorted(most)[:2])
        raise SettingsError(
            f"An image must have one label, but one has {names}. Say --multi-label yes, or mend it."
        )
    counted = Counter(n for held in images.labels_N for n in held)
    groups = wanted.groups
    kept = {
        label.name
        for n, label in enumerate(wanted.labels)
        if label.name not in groups and counted[n] >= least
    }
    parent = {label.name: label.parent for label in wanted.labels}
    for name in list(kept):
        while name := parent[name]:
            kept.add(name)
    labels = tuple(label for label in wanted.labels if label.name in kept)
    left_out = tuple(name for name in wanted.names if name not in kept)
    if not labels:
        raise SettingsError(
            f"A label must have {least} images to be learnt, but none has. Label more."
        )
    return wanted.model_copy(update={"labels": labels}), left_out


def _examples(
    images: Labelled, wanted: LabelSet, label_set: LabelSet
) -> tuple[Examples, tuple[str, ...]]:
    """Return what is learnt from, and the names of its columns; an unknown label's images are out.

    Where labels exclude each other, none of these is one more.
    """
    from clipcap.labels.learning import Examples

    groups = label_set.groups
    names = [name for name in label_set.names if name not in groups]
    place = {wanted.names.index(name): c for c, name in enumerate(names)}
    used = [n for n, held in enumerate(images.labels_N) if not held or held & place.keys()]
    has_none = not label_set.multi_label and any(not images.labels_N[n] for n in used)
    has_NC = np.zeros((len(used), len(names) + has_none), dtype=bool)
    for row, n in enumerate(used):
        held = images.labels_N[n]
        for at in held & place.keys():
            has_NC[row, place[at]] = True
        if has_none and not held:
            has_NC[row, -1] = True
    columns = (*names, *((anchors.NONE,) if has_none else ()))
    exclusive = not label_set.multi_label
    return Examples(images.embedding_ND[used], has_NC, exclusive=exclusive), columns


def _bank(found: Learnt, label_set: LabelSet, columns: Sequence[str], source: Commit) -> Bank:
    """Return what was learnt as a bank; groups have no vector of their own."""
    background = tuple(name for name in columns if name not in label_set.names)
    whole = (*label_set.names, *background)
    at_C = [whole.index(name) for name in columns]
    vector_CD = np.zeros((len(whole), found.vector_CD.shape[1]), np.float32)
    gain_C, shift_C = np.zeros(len(whole), np.float32), np.full(len(whole), -np.inf, np.float32)
    vector_CD[at_C], gain_C[at_C], shift_C[at_C] = found.vector_CD, found.gain_C, found.shift_C
    thresholds = [label_set.threshold if one.threshold is None else one.threshold
                  for one in label_set.labels]  # fmt: skip
    return Bank(
        label_set=label_set.model_copy(update={"background": background}),
        vector_CD=vector_CD,
        gain_C=gain_C,
        shift_C=shift_C,
        threshold_N=np.array(thresholds, dtype=np.float32),
        activation="sigmoid" if label_set.multi_label else "softmax",
        model_id=source.metadata["model_id"],
        model_sha256=source.metadata["model_sha256"],
    )
