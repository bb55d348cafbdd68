"""Real photographs in, how often labels are right before and after a fit to the collection out.

    python -m bench.zero_shot ../shared/data

831 photographs of Flickr8k by OpenAI's ViT-B-32, against the texts "a {name}" of COCO's 80 and
LVIS's 1,203 names. The truth is what five captions name (`bench/coco_words.py`): a label is right
where three or more name it, or, leniently, where one does. The answer to a photograph is its best
label, so where several are right any of them will do; where none is, every answer is wrong. The
surest half of the answers is coverage 50 %. No fit sees a caption; intervals are of photographs
drawn anew, with the fit as it is.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.coco_words import BIKES, MEANS_OTHER, NAMES
from clipcap.labels import bank, fitting, measuring, scoring
from clipcap.labels.bank import Bank
from clipcap.labels.fits import FitSettings
from clipcap.labels.sets import LabelSet

Array = np.ndarray[Any, np.dtype[Any]]
NAMED: Final = ("dog", "horse", "bicycle", "skateboard", "surfboard", "snowboard", "frisbee")
DOGS: Final = ("shepherd_dog", "puppy", "bulldog", "dalmatian", "pug-dog")
COVERAGES: Final = (0.5, 0.8, 1.0)
SCALE: Final = 100.0  # of OpenAI's model
DRAWS: Final = 2_000
ENOUGH: Final = 3  # captions of five


@dataclass(frozen=True)
class Photographs:
    """Photographs, a label set for them, and how many captions of each name each label."""

    embedding_ND: Array
    bank: Bank
    named_NC: Array

    def without(self, name: str) -> Photographs:
        """Return the same with one label less."""
        kept = [n for n, one in enumerate(self.bank.label_set.names) if one != name]
        names = [self.bank.label_set.names[n] for n in kept]
        return Photographs(
            self.embedding_ND, in_words(names, self.bank.vector_CD[kept]), self.named_NC[:, kept]
        )

    def not_of(self, name: str) -> Photographs:
        """Return the photographs that nobody names a label of."""
        kept_N = self.named_NC[:, self.bank.label_set.names.index(name)] == 0
        return Photographs(self.embedding_ND[kept_N], self.bank, self.named_NC[kept_N])

    def with_dogs(self) -> Photographs:
        """Return the same with every kind of dog named where dogs are."""
        named_NC, names = self.named_NC.copy(), self.bank.label_set.names
        dogs_N = named_NC[:, names.index("dog")]
        for kind in DOGS:
            column = names.index(kind)
            named_NC[:, column] = np.maximum(named_NC[:, column], dogs_N)
        return Photographs(self.embedding_ND, self.bank, named_NC)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    coco, lvis = coco_80(data), lvis_1203(data)
    told = ", ".join(f"{name} {auc:.3f} ({count})" for name, auc, count in aucs(coco))
    print(f"AUC of cosines (photographs of it): {told}\n")
    print("| label set | rule | 50 % | 80 % | all | 50 %, lenient | 50 %, times the first |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, held in {
        "COCO's 80": coco,
        "the same without `person`": coco.without("person"),
        "COCO's 80, photographs without a dog": coco.not_of("dog"),
        "LVIS's 1,203, by the words of each name": lvis,
        "the same, any dog right for a dog": lvis.with_dogs(),
    }.items():
        found = rules(held)
        for rule, score_NC in found.items():
            print(f"| {name} | {rule} | {row(held, score_NC, found['best softmax'])} |")


def in_words(names: list[str], vector_CD: Array) -> Bank:
    """Return the bank of some names."""
    label_set = LabelSet.model_validate({"name": "names", "names": names})
    return bank.in_words(label_set, vector_CD.astype(np.float32), scale=SCALE)


def coco_80(data: Path) -> Photographs:
    """Return the photographs with COCO's names."""
    words = {name: re.compile(rf"\b(?:{found})\b") for name, found in NAMES.items()}
    others = {name: re.compile(rf"\b(?:{found})\b") for name, found in MEANS_OTHER.items()}
    bikes, order = re.compile(rf"\b(?:{BIKES})\b"), list(NAMES)
    named = []
    for texts in captions(data / "flickr8k"):
        count = dict.fromkeys(order, 0)
        has_motor = any(words["motorcycle"].search(text) for text in texts)
        for text in texts:
            for name in order:
                left = others[name].sub(" ", text) if name in others else text
                if has_motor and name == "bicycle":
                    left = bikes.sub(" ", left)
                is_bike = has_motor and name == "motorcycle" and bool(bikes.search(text))
                count[name] += is_bike or bool(words[name].search(left))
        named.append([count[name] for name in order])
    return Photographs(images(data), texts_of(data, "coco80", order), np.array(named))


def lvis_1203(data: Path) -> Photographs:
    """Return the photographs with LVIS's names: named by the words of the name alone."""
    raw = (data / "clip_text" / "lvis1203.txt").read_text().splitlines()
    plain = [re.sub(r"\(.*\)", "", name).replace("_", " ").strip().lower() for name in raw]
    words = [re.compile(rf"\b{re.escape(name)}(?:s|es)?\b") for name in plain]
    said = captions(data / "flickr8k")
    named = [[sum(bool(one.search(text)) for text in texts) for one in words] for texts in said]
    return Photographs(images(data), texts_of(data, "lvis1203", raw), np.array(named))


def images(data: Path) -> Array:
    """Return the unit embeddings of the photographs."""
    found = np.load(data / "flickr8k" / "clip_vit_b32_openai.npy").astype(np.float32)
    unit: Array = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def texts_of(data: Path, name: str, names: list[str]) -> Bank:
    """Return the bank of a file of text embeddings, which are of any length."""
    found = np.load(data / "clip_text" / f"{name}_vit_b32_openai.npy").astype(np.float32)
    return in_words(names, found / np.linalg.norm(found, axis=1, keepdims=True))


def captions(folder: Path) -> list[list[str]]:
    """Return the captions of each photograph, in the order of the embeddings."""
    found = defaultdict(list)
    with (folder / "captions.tsv").open(newline="") as lines:
        for one in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            found[one["file"]].append(one["caption"].lower())
    return [found[name] for name in (folder / "order.txt").read_text().split()]


def aucs(held: Photographs) -> list[tuple[str, float, int]]:
    """Return how well the cosine of some labels tells photographs of them from others."""
    cosine_NC = held.embedding_ND @ held.bank.vector_CD.T
    found = []
    for name in NAMED:
        c = held.bank.label_set.names.index(name)
        has, unsure = (held.named_NC[:, c] >= ENOUGH, held.named_NC[:, c] > 0)
        unsure = unsure & ~has
        ranked = measuring.ranking(cosine_NC[:, c], np.flatnonzero(has), np.flatnonzero(unsure))
        found.append((name, ranked.auc, ranked.positives))
    return found


def rules(held: Photographs) -> dict[str, Array]:
    """Return the scores of each photograph and label by rules that do not see the truth."""
    embedding_ND = held.embedding_ND
    whole, _ = fitting.to_collection(held.bank, embedding_ND, FitSettings())
    plain_NC = scoring.whole(embedding_ND, held.bank)[1]
    half_NC = np.empty_like(plain_NC)
    second_N = np.random.default_rng(0).permutation(len(embedding_ND)) % 2 == 1
    for own_N in (second_N, ~second_N):
        other, _ = fitting.to_collection(held.bank, embedding_ND[~own_N], FitSettings())
        half_NC[own_N] = scoring.whole(embedding_ND[own_N], other)[1]
    return {
        "best cosine": embedding_ND @ held.bank.vector_CD.T,
        "best softmax": plain_NC,
        "`labels fit`": scoring.whole(embedding_ND, whole)[1],
        "`labels fit` to the other half": half_NC,
    }


def answers(held: Photographs, score_NC: Array) -> tuple[Array, Array]:
    """Return how sure the best label of each photograph is, and how many captions name it."""
    best_N = score_NC.argmax(axis=1)
    return score_NC.max(axis=1), held.named_NC[np.arange(len(best_N)), best_N]


def precision(sure_N: Array, named_N: Array, coverage: float, *, captions: int = ENOUGH) -> float:
    """Return the share of right ones among the surest answers."""
    order_N = np.argsort(-sure_N, kind="stable")[: round(coverage * len(sure_N))]
    return float((named_N[order_N] >= captions).mean())


def row(held: Photographs, score_NC: Array, first_NC: Array) -> str:
    """Return the cells of a rule."""
    rng, count = np.random.default_rng(0), len(score_NC)
    own, first = answers(held, score_NC), answers(held, first_NC)

    def figures(at: Array) -> list[float]:
        found = [precision(own[0][at], own[1][at], coverage) for coverage in COVERAGES]
        return [*found, found[0] / precision(first[0][at], first[1][at], 0.5)]

    drawn = [figures(rng.integers(0, count, count)) for _ in range(DRAWS)]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    values = zip(figures(np.arange(count)), low, high, strict=True)
    cells = [f"{value:.2f} ({a:.2f} to {b:.2f})" for value, a, b in values]
    cells.insert(3, f"{precision(*own, 0.5, captions=1):.2f}")
    return " | ".join(cells)


if __name__ == "__main__":
    main()
