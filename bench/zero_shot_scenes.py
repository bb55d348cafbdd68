"""Held-out scenes in, how far scores of labels can be trusted before and after a fit out.

    python -m bench.zero_shot_scenes

The bundled model. A label set has 8 of the 12 kinds of things, and a third of the scenes shows only
the others, each four of them in turn; fitted on some scenes, judged on others.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipcap import bundled
from clipcap.bundled import evaluation
from clipcap.labels import bank, fitting, measuring, scoring, sets
from clipcap.labels.bank import Bank
from clipcap.labels.fits import FitSettings
from clipcap.labels.fitted import Labelled
from clipcap.labels.sets import LabelSet

Array = np.ndarray[Any, np.dtype[Any]]
FIT: Final = 101
JUDGED: Final = 102
"""Seeds of scenes: other ones than those of any other figure."""


@dataclass(frozen=True)
class Drawn:
    """Held-out scenes: their embeddings, the kinds of things in each, and the place."""

    embedding_ND: Array
    things_N: list[frozenset[str]]
    place_N: list[str]


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1500)
    count = parser.parse_args().scenes
    folder = Path(bundled.__file__).parent / "encoder"
    learnt, judged = (drawn(folder, count, seed) for seed in (FIT, JUDGED))
    print("| labels | scenes | error before | error after | none: precision | none: recall |")
    print("| --- | --- | --- | --- | --- | --- |")
    places = sets.load("scene_places")
    whole = embedded(places, folder)
    truths = [
        [frozenset([places.names.index(one)]) for one in part.place_N] for part in (learnt, judged)
    ]
    told("7 places", whole, (learnt.embedding_ND, truths[0]), (judged.embedding_ND, truths[1]))
    things = sets.load("scene_things")
    for at in range(0, 12, 4):
        out = frozenset(things.names[at : at + 4])
        inside = tuple(one for one in things.labels if one.name not in out)
        for name, more, most in (
            ("softmax, one kind", {}, 1),
            ("softmax, one or two", {}, 2),
            ("`multi_label`, one or two", {"scores": "sigmoid", "multi_label": True}, 2),
        ):
            some = things.model_copy(update={"labels": inside, **more})
            parts = [with_none(part, some, out, most) for part in (learnt, judged)]
            told(f"8 things, {name}; not {', '.join(sorted(out))}", embedded(some, folder), *parts)


def drawn(folder: Path, count: int, seed: int) -> Drawn:
    """Draw and embed held-out scenes."""
    pairs = evaluation.held_out_images(count, seed)
    embedding_ND = evaluation.embed(folder, [image for _, image in pairs]).numpy()
    things = [frozenset(scene.things) for scene, _ in pairs]
    return Drawn(embedding_ND, things, [scene.place for scene, _ in pairs])


def embedded(label_set: LabelSet, folder: Path) -> Bank:
    """Return the bank of a label set for the bundled model, as it comes."""
    encoder = evaluation.encoder(folder)
    bias = -encoder.logit_scale / 4  # somewhere; the model has none
    vector_CD = bank.encoded(label_set, encoder)
    return bank.in_words(label_set, vector_CD, scale=encoder.logit_scale, bias=bias
                         if label_set.scores == "sigmoid" else None)  # fmt: skip


def with_none(
    part: Drawn, label_set: LabelSet, out: frozenset[str], most: int
) -> tuple[Array, list[frozenset[int]]]:
    """Return scenes of which a third shows only what is outside, with the labels of each."""
    place = {name: n for n, name in enumerate(label_set.names)}
    few = [n for n, kinds in enumerate(part.things_N) if len(kinds) <= most]
    inside = [n for n in few if not part.things_N[n] & out]
    outside = [n for n in few if part.things_N[n] <= out]
    count = min(len(outside), len(inside) // 2)
    kept = [*inside[: 2 * count], *outside[:count]]
    labels = [frozenset(place[one] for one in part.things_N[n] - out) for n in kept]
    return part.embedding_ND[kept], labels


def told(
    name: str,
    came: Bank,
    learnt: tuple[Array, list[frozenset[int]]],
    judged: tuple[Array, list[frozenset[int]]],
) -> None:
    """Fit, judge, and print a row."""
    made, _ = fitting.to_truth(came, learnt[0], Labelled(*learnt), FitSettings())
    is_none_N = np.array([not one for one in judged[1]])
    before, after = (error(one, judged) for one in (came, made))
    first = f"{before:.3f}" if came.activation == "softmax" else ""  # the bias was made up
    cells = [f"{len(is_none_N):,}", first, f"{after:.3f}"]
    if is_none_N.any():
        scorer = scoring.Scorer(made, top_k=1, threshold=0.5)
        best = scorer.best(judged[0])
        has_N = np.zeros(len(is_none_N), bool)
        has_N[best.image_R[best.accepted_R]] = True
        hits = (is_none_N & ~has_N).sum()
        cells += [f"{hits / max((~has_N).sum(), 1):.3f}", f"{hits / is_none_N.sum():.3f}"]
    else:
        cells += ["", ""]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def error(one: Bank, judged: tuple[Array, list[frozenset[int]]]) -> float:
    """Return the calibration error of best answers; of every label where each stands alone."""
    score_NC = scoring.whole(judged[0], one)[1]
    true_NC = np.zeros(score_NC.shape, bool)
    for n, held in enumerate(judged[1]):
        true_NC[n, sorted(held)] = True
        true_NC[n, one.count :] = not held
    if one.activation == "softmax":
        rows = np.arange(len(score_NC)), score_NC.argmax(axis=1)
        return measuring.calibration_error(measuring.reliability(score_NC[rows], true_NC[rows]))
    scores, true = score_NC[:, : one.count].ravel(), true_NC[:, : one.count].ravel()
    return measuring.calibration_error(measuring.reliability(scores, true))


if __name__ == "__main__":
    main()
