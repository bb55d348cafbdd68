"""The COCO metrics: published figures, pycocoevalcap's numbers, the plain formulas."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import clipcap
from clipcap import metrics
from clipcap.errors import SettingsError
from clipcap.metrics import clipscore, rouge
from clipcap.metrics.tokenizer import tokenize

DATA = Path(__file__).parents[3] / "shared" / "data" / "metrics"
CAPTIONS = [
    "a dog runs on the grass",
    "",
    "two cats sleep on a red sofa in the room room",
    "the the the the",
]
REFERENCES = [
    ["a brown dog runs over grass", "dog running on the grass ."],
    ["a boy jumps"],
    ["two cats asleep on the sofa", "cats on a couch", "a red sofa with two cats"],
    ["the man walks the dog", "a man"],
]
# what pycocoevalcap 1.2 says of them
FIGURES = {
    "bleu_1": 0.7142857142517007,
    "bleu_2": 0.527046276667541,
    "bleu_3": 0.3333333333144622,
    "bleu_4": 4.191444765344494e-05,
    "rouge_l": 0.42439804128776293,
    "cider_d": 1.0136337679499603,
}
CIDER = [2.6451559364859314, 0.0, 1.2450080375033068, 0.16437109781060294]
ROUGE = [0.7393939393939394, 0.0, 0.5224839400428266, 0.43571428571428567]
BLEU_4 = [8.408964149138525e-05, 0.0, 4.336189089885767e-05, 2.3530495236003196e-12]


def test_small_corpus_has_the_numbers_of_pycocoevalcap() -> None:
    found = metrics.score(CAPTIONS, REFERENCES)
    assert {name: found.figures[name] for name in FIGURES} == pytest.approx(FIGURES, abs=1e-12)
    assert found.cider_N == pytest.approx(CIDER, abs=1e-12)
    assert found.rouge_N == pytest.approx(ROUGE, abs=1e-12)
    assert found.bleu_NK[:, 3] == pytest.approx(BLEU_4, abs=1e-12)


def published() -> tuple[list[str], list[list[str]]]:
    """Return the hypotheses and references of nlg-eval."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data/metrics, which is not here")
    names = ("hyp.txt", "ref1.txt", "ref2.txt")
    hypotheses, *lists = ((DATA / "nlg_eval" / name).read_text().splitlines() for name in names)
    return hypotheses, [list(texts) for texts in zip(*lists, strict=True)]


def test_nlg_eval_figures_as_published() -> None:
    found = metrics.score(*published()).figures
    told = [found[name] for name in (*metrics.BLEU, "rouge_l", "cider_d")]
    assert told == pytest.approx(
        [0.550000, 0.428174, 0.284043, 0.201143, 0.522104, 1.242192], abs=5e-7
    )


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("good", [0.6667, 0.4899, 0.3469, 0.0000, 0.4280, 0.5637]),
        ("bad", [0.4815, 0.2404, 0.1359, 0.0000, 0.3121, 0.2790]),
    ],
)
def test_clipscore_repository_figures_as_published(kind: str, figures: list[float]) -> None:
    published()
    folder = DATA / "clipscore"
    references = json.loads((folder / "refs.json").read_text())
    captions = json.loads((folder / f"{kind}_captions.json").read_text())
    found = metrics.score([captions[name] for name in references], list(references.values()))
    told = [found.figures[name] for name in (*metrics.BLEU, "rouge_l", "cider_d")]
    assert told == pytest.approx(figures, abs=5.1e-5)


def made_up(seed: int, images: int) -> tuple[list[str], list[list[str]]]:
    """Return random captions, some of them empty, and one to four references of each."""
    rng = random.Random(seed)
    words = "a the dog cat runs sleeps on in red big grass sofa two".split()  # noqa: SIM905

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(0, most)))

    captions = [text(12) for _ in range(images)]
    return captions, [[text(9) or "dog" for _ in range(rng.randint(1, 4))] for _ in captions]


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_the_formulas_written_plainly(seed: int) -> None:
    captions, references = made_up(seed, 2 + seed * 5)
    found = metrics.score(captions, references)
    words = [tokenize(text) for text in captions]
    theirs = [[tokenize(text) for text in texts] for texts in references]
    assert found.cider_N == pytest.approx(plain_cider(words, theirs), abs=1e-10)
    assert [found.figures[name] for name in metrics.BLEU] == pytest.approx(
        plain_bleu(words, theirs), abs=1e-12
    )
    common = [
        [plain_common(one, other) for other in texts]
        for one, texts in zip(words, theirs, strict=True)
    ]
    assert [rouge.common_words(*pair) for pair in zip(words, theirs, strict=True)] == common


def grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Return how often each n-gram is in a sentence."""
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def plain_cider(words: list[list[str]], theirs: list[list[list[str]]]) -> list[float]:
    """Return CIDEr-D of each caption, after its paper and the clipping of its authors' code."""
    scores = []
    seen = {
        order: Counter(
            gram for texts in theirs for gram in {g for one in texts for g in grams(one, order)}
        )
        for order in range(1, 5)
    }

    def weights(one: list[str], order: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (math.log(len(words)) - math.log(max(1, seen[order][gram])))
            for gram, count in grams(one, order).items()
        }

    for one, texts in zip(words, theirs, strict=True):
        total = 0.0
        for other in texts:
            delta = max(len(one) - 1, 0) - max(len(other) - 1, 0)
            for order in range(1, 5):
                left, right = weights(one, order), weights(other, order)
                dot = sum(min(left.get(g, 0.0), value) * value for g, value in right.items())
                norm = math.hypot(*left.values()) * math.hypot(*right.values())
                total += dot / norm * math.exp(-(delta**2) / 72) if norm else 0.0
        scores.append(10 * total / 4 / len(texts))
    return scores


def plain_bleu(words: list[list[str]], theirs: list[list[list[str]]]) -> list[float]:
    """Return BLEU-1 to 4 of all captions as one text, against the reference closest in length."""
    length = sum(map(len, words))
    closest = sum(
        min((abs(len(other) - len(one)), len(other)) for other in texts)[1]
        for one, texts in zip(words, theirs, strict=True)
    )
    product, made = 1.0, []
    for order in range(1, 5):
        matched = guessed = 0
        for one, texts in zip(words, theirs, strict=True):
            for gram, count in grams(one, order).items():
                guessed += count
                matched += min(count, max(grams(other, order)[gram] for other in texts))
        product *= (matched + 1e-15) / (guessed + 1e-9)
        ratio = (length + 1e-15) / (closest + 1e-9)
        made.append(product ** (1 / order) * math.exp(min(0.0, 1 - 1 / ratio)))
    return made


def plain_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the table."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, theirs in enumerate(other, start=1):
            kept = row[at]
            row[at] = before + 1 if word == theirs else max(row[at], row[at - 1])
            before = kept
    return row[-1]


def test_distinct_counts_different_words_among_all() -> None:
    found = metrics.score(["a dog runs", "a dog sleeps"], [["x"], ["y"]]).figures
    assert found["distinct_1"] == pytest.approx(4 / 6)
    assert found["distinct_2"] == pytest.approx(3 / 4)


def test_captions_equal_to_their_references_have_full_marks() -> None:
    texts = ["a dog runs over the grass", "two cats sleep on a sofa"]
    found = metrics.score(texts, [[text] for text in texts]).figures
    assert [found[name] for name in (*metrics.BLEU, "rouge_l")] == pytest.approx([1] * 5)
    assert found["cider_d"] == pytest.approx(10)


def test_only_empty_captions_have_nothing() -> None:
    found = metrics.score(["", "."], [["a dog"], ["a cat"]]).figures
    assert found == dict.fromkeys(metrics.TEXT_METRICS, 0.0)


def test_cider_of_one_image_is_not_computed_and_the_others_are() -> None:
    found = metrics.score(["a dog runs"], [["a dog runs"]])
    assert found.figures["cider_d"] is None
    assert found.figures["bleu_3"] == pytest.approx(1)
    assert found.figures["rouge_l"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("captions", "references", "words"),
    [
        ([], [], "at least one caption"),
        (["a", "b"], [["a"], []], "the one at 1 has none"),
        (["a", "b"], [["a"]], "there are 1 lists"),
    ],
)
def test_what_cannot_be_judged_is_said(
    captions: list[str], references: list[list[str]], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        metrics.score(captions, references)


def test_other_images_in_the_set_change_nothing_but_word_weights() -> None:
    captions, references = made_up(3, 20)
    whole, part = metrics.score(captions, references), metrics.score(captions[:5], references[:5])
    assert whole.rouge_N[:5] == pytest.approx(part.rouge_N)
    assert whole.bleu_NK[:5] == pytest.approx(part.bleu_NK)


def test_a_signature_changes_with_the_references_and_names_the_tokenizer() -> None:
    one = metrics.score(CAPTIONS, REFERENCES)
    other = metrics.score(CAPTIONS, [*REFERENCES[:3], ["another"]])
    again = metrics.score(["x"] * 4, REFERENCES)
    assert one.signature("cider_d") == again.signature("cider_d") != other.signature("cider_d")
    told = one.signature("bleu_4")
    assert told.startswith("bleu_4|images:4|references:")
    assert told.endswith(f"|tokenizer:ptb-3.4.1/1|clipcap:{clipcap.__version__}")


def test_clip_score_is_two_and_a_half_cosines_and_never_below_zero() -> None:
    image_ND = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    text_ND = np.array([[1.0, 1.0], [0.0, -2.0], [2.0, 0.0], [1.0, 0.0]])
    expected = [2.5 / math.sqrt(2), 0, 2.5, 0]
    assert clipscore.clip_score(image_ND, text_ND) == pytest.approx(expected)


def test_ref_clip_score_is_the_harmonic_mean_with_the_closest_reference() -> None:
    text_ND = np.array([[1.0, 0.0], [1.0, 0.0]])
    references = [np.array([[0.6, 0.8], [4.0, 3.0]]), np.array([[-1.0, 0.0]])]
    found = clipscore.ref_clip_score(np.array([0.8, 0.9]), text_ND, references)
    assert found == pytest.approx([0.8, 0])


def test_embeddings_that_do_not_fit_or_are_no_numbers_are_refused() -> None:
    good = np.ones((2, 3))
    with pytest.raises(SettingsError, match="one shape"):
        clipscore.clip_score(good, np.ones((2, 4)))
    with pytest.raises(SettingsError, match="finite"):
        clipscore.clip_score(good, np.array([[1, 2, np.nan], [1, 1, 1]]))
    with pytest.raises(SettingsError, match="references"):
        clipscore.ref_clip_score(np.ones(2), good, [good, np.zeros((0, 3))])
