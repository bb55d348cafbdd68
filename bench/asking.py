"""The bundled model and held-out scenes in; how often questions are answered rightly out.

    python -m bench.asking --scenes 1000

Every scene is asked every question. Each row is of a kind of question over all things (`a red
car`, `a blue cat`, ...): `right` is the share of the first answers that are, among images that show
the thing; `most frequent` what the best constant answer has. Of the calibrated scores by CLIP
follow the share of images with the thing that get an answer, how many of those are right, the share
of images without the thing that get one all the same, and the expected calibration error of the
best answers over all scenes. Levels are taken from 256 of the scenes, which nobody labelled. The
last rows are what CLIP is bad at: statements that differ in `no`, or in which of two things has
which colour or side.

With a folder of photographs (`../shared/data`) the same rule for `is there a ...?` is measured on
real CLIP embeddings, with the mean of 1,203 names for what is true of any image.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcap import asking, captioner, models
from clipcap.asking import Answered, Asker
from clipcap.bundled import evaluation
from clipcap.bundled.scenes import PLURALS, Scene, phrase
from clipcap.bundled.shapes import COLOURS, PLACES, THINGS
from clipcap.choosing import ByClip, ByLikelihood, Images
from clipcap.encoders import openclip
from clipcap.questions import understood

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipcap.encoders import Encoder
    from clipcap.statements import Question

TYPICAL = 256
THRESHOLD = 0.5
AS_IT_CAME = "clip_score as it came"
WAYS = ("clip_score", "logprob", "both")
COLUMNS = (
    "question", "images", "most frequent", "CLIP as it came", "CLIP", "captioner", "both",
    "answered", "right of these", "answered without it", "calibration error", "as it came",
)  # fmt: skip
PHOTOGRAPHED = ("dog", "horse", "bicycle", "skateboard", "surfboard", "snowboard", "frisbee")

Truth = Callable[[Scene], str | None]
"""The right answer for a scene, None where it does not show the thing."""


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--photographs", type=Path, help="the folder `shared/data`")
    chosen = parser.parse_args()
    folder = models.bundled_folder("encoder") if hasattr(models, "bundled_folder") else None
    root = Path(evaluation.__file__).parent
    encoder = openclip.load(openclip.Settings(model=str(folder or root / "encoder"), device="cpu"))
    pairs = evaluation.held_out_images(chosen.scenes, chosen.seed)
    embedding_ND = evaluation.embed(root / "encoder", [image for _, image in pairs]).numpy()
    images = Images(embedding_ND, np.ones(len(pairs), np.float32))
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    measure([scene for scene, _ in pairs], images, encoder, str(root / "captioner"))
    if chosen.photographs:
        photographs(chosen.photographs)


def of_things() -> dict[str, list[tuple[Question, Truth]]]:
    """Return questions about each thing, and what is right."""
    found: dict[str, list[tuple[Question, Truth]]] = {}
    for thing in THINGS:
        for text, answers, truth in (
            ("what colour is the {}?", tuple(COLOURS), _colour),
            ("where is the {}?", tuple(PLACES), lambda scene, at: scene.place),
            ("how many {s} are there?", ("1", "2", "3"), lambda scene, at: str(scene.counts[at])),
            ("is the {} red?", (), lambda scene, at: ("no", "yes")[scene.colours[at] == "red"]),
        ):
            asked = text.replace("{s}", PLURALS[thing]).replace("{}", thing)
            question = understood(asked, answers)
            found.setdefault(text, []).append((question, _where(thing, truth)))
        presence = understood(f"is there a {thing}?")
        found.setdefault("is there a {}?", []).append((presence, _presence(thing)))
    return found


def _colour(scene: Scene, at: int) -> str:
    return scene.colours[at]


def _where(thing: str, truth: Callable[[Scene, int], str]) -> Truth:
    return lambda scene: truth(scene, scene.things.index(thing)) if thing in scene.things else None


def _presence(thing: str) -> Truth:
    return lambda scene: "yes" if thing in scene.things else "no"


def measure(scenes: Sequence[Scene], images: Images, encoder: Encoder, captions: str) -> None:
    """Print a row for each kind of question."""
    kinds = of_things()
    kinds["where is this?"] = [(understood("where is this?", tuple(PLACES)), lambda s: s.place)]
    some = tuple(PLACES)[:4]
    kinds["where is this? (4 of 7 places)"] = [
        (understood("where is this?", some), lambda s: s.place if s.place in some else None)
    ]
    for kind, asked in kinds.items():
        questions = [question for question, _ in asked]
        found: dict[str, list[Answered]] = {}
        for way in (AS_IT_CAME, *WAYS):
            by = way.split(" ")[0]
            asker = _asker(questions, encoder, captions, by)
            if way == by:
                asker.learn(_some(images))
            found[way] = asker.answered(images)
        _row(kind, asked, scenes, found)
    for kind, pairs in hard(scenes).items():
        right = [_is_first(pair, images, n, encoder) for n, pair in pairs]
        print(
            f"| {kind} | {len(right):,} | 50 % | {_share(right)} |{' |' * (len(COLUMNS) - 4)}",
            flush=True,
        )


def _some(images: Images) -> Images:
    at = np.arange(TYPICAL) * len(images) // TYPICAL
    return Images(images.embedding_BD[at], images.norm_B[at])


def _asker(questions: Sequence[Question], encoder: Encoder, captions: str, by: str) -> Asker:
    language, texts = None, asking.spoken(questions)
    if by != "clip_score" and texts:
        language = ByLikelihood(captioner.load(captions), texts, None, ends=False)
    return Asker(questions, ByClip(encoder, encoder.logit_scale), language, by=by)


def _row(
    kind: str,
    asked: Sequence[tuple[Question, Truth]],
    scenes: Sequence[Scene],
    found: dict[str, list[Answered]],
) -> None:
    right: dict[str, list[bool]] = {way: [] for way in found}
    answered, sure, wrongly = [], [], []
    scored: dict[str, list[tuple[float, bool]]] = {way: [] for way in found}
    seen: Counter[str] = Counter()
    for q, (question, truth) in enumerate(asked):
        truths = [truth(scene) for scene in scenes]
        shown_B = np.array([one is not None for one in truths])
        seen.update(one for one in truths if one is not None)
        place_B = np.array([-1 if one is None else question.answers.index(one) for one in truths])
        for way, answers in found.items():
            score_BA = answers[q].score_BA
            is_right_B = score_BA.argmax(axis=1) == place_B
            right[way] += is_right_B[shown_B].tolist()
            scored[way] += zip(score_BA.max(axis=1).tolist(), is_right_B.tolist(), strict=True)
        score_BA = found["clip_score"][q].score_BA
        best_B = score_BA.max(axis=1)
        said_B = (best_B >= THRESHOLD) & (best_B > 1 - score_BA.sum(axis=1))
        answered += said_B[shown_B].tolist()
        sure += (score_BA.argmax(axis=1) == place_B)[shown_B & said_B].tolist()
        wrongly += said_B[~shown_B].tolist()
    frequent = seen.most_common(1)[0][1]
    shares = " | ".join(_share(right[way]) for way in found)
    rest = " | ".join(map(_share, (answered, sure, wrongly)))
    error = " | ".join(f"{_error(scored[way]):.3f}" for way in ("clip_score", AS_IT_CAME))
    most = _share([True] * frequent + [False] * (seen.total() - frequent))
    print(f"| {kind} | {seen.total():,} | {most} | {shares} | {rest} | {error} |", flush=True)


def _error(scored: Sequence[tuple[float, bool]]) -> float:
    """Return the expected calibration error of best answers, in ten bins of the score."""
    score_N, right_N = (np.array(one, dtype=np.float64) for one in zip(*scored, strict=True))
    bin_N = np.minimum(score_N * 10, 9).astype(int)
    bins = [bin_N == n for n in range(10)]
    return sum(abs(float((score_N - right_N)[at].sum())) for at in bins) / len(scored)


def _share(right: Sequence[bool]) -> str:
    return f"{np.mean(right):.1%}".replace("%", " %") if right else ""


def hard(scenes: Sequence[Scene]) -> dict[str, list[tuple[int, tuple[str, str]]]]:
    """Return pairs of statements on images, the true one first, that differ in one respect."""
    found: dict[str, list[tuple[int, tuple[str, str]]]] = {
        "there is a cat, there is no cat": [],
        "a red cat and a blue car, a blue cat and a red car": [],
        "a cat left of a car, a car left of a cat": [],
    }
    for n, scene in enumerate(scenes):
        thing = list(THINGS)[n % len(THINGS)]
        yes, no = f"there is a {thing} here", f"there is no {thing} here"
        pair = (yes, no) if thing in scene.things else (no, yes)
        found["there is a cat, there is no cat"].append((n, pair))
        if len(scene.things) == 1:
            continue
        (one, two), (of_one, of_two) = scene.things, scene.colours
        if of_one != of_two:
            whole = f"{phrase(one, of_one, 1)} and {phrase(two, of_two, 1)}"
            other = f"{phrase(one, of_two, 1)} and {phrase(two, of_one, 1)}"
            found["a red cat and a blue car, a blue cat and a red car"].append((n, (whole, other)))
        sides = (f"a {one} left of a {two}", f"a {two} left of a {one}")
        found["a cat left of a car, a car left of a cat"].append((n, sides))
    return found


def _is_first(pair: tuple[str, str], images: Images, n: int, encoder: Encoder) -> bool:
    text_TD = encoder.encode_texts([f"{text}." for text in pair]).numpy()
    text_TD /= np.linalg.norm(text_TD, axis=1, keepdims=True)
    true, false = text_TD @ images.embedding_BD[n]
    return bool(true > false)


def photographs(folder: Path) -> None:
    """Print how `is there a ...?` is answered on real embeddings, by levels of 256 of them."""
    names, name_ND = _names(folder, "coco80")
    neutral_D = _names(folder, "lvis1203")[1].mean(axis=0)
    neutral_D /= np.linalg.norm(neutral_D)
    order = (folder / "flickr8k" / "order.txt").read_text().split()
    embedding_ND = np.load(folder / "flickr8k" / "clip_vit_b32_openai.npy").astype(np.float32)
    said: dict[str, list[str]] = {}
    with (folder / "flickr8k" / "captions.tsv").open() as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            said.setdefault(row[0], []).append(row[2].lower())
    print("| thing | photographs with it | apart | right | found | right of these |")
    for name in PHOTOGRAPHED:
        word = re.compile(rf"\b{name}s?\b")
        count_N = np.array([sum(bool(word.search(text)) for text in said[one]) for one in order])
        sure_N, true_N = (count_N == 0) | (count_N >= 3), count_N >= 3
        clear_N = 100 * embedding_ND @ (name_ND[names.index(name)] - neutral_D)
        some_N = clear_N[np.arange(TYPICAL) * len(clear_N) // TYPICAL].astype(np.float64)
        gain, shift, apart = asking.split(some_N, np.ones(TYPICAL))
        yes_N = gain * clear_N + shift > 0
        figures = (yes_N[sure_N] == true_N[sure_N], yes_N[true_N], true_N[yes_N & sure_N])
        shares = " | ".join(_share(one.tolist()) for one in figures)
        print(f"| {name} | {true_N.sum()} | {apart:.1f} | {shares} |", flush=True)


def _names(folder: Path, name: str) -> tuple[list[str], NDArray[Any]]:
    names = (folder / "clip_text" / f"{name}.txt").read_text().splitlines()
    vector_ND = np.load(folder / "clip_text" / f"{name}_vit_b32_openai.npy").astype(np.float32)
    return names, vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
