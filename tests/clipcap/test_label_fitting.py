"""Fits of label sets: to a collection, to labelled images; what they are worth, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import zero_shot
from clipcap import layout, manifest, storage, tables
from clipcap.embedding import Speed
from clipcap.errors import SettingsError
from clipcap.labels import anchors, bank, calibrating, fitting, normalising, scoring
from clipcap.labels.bank import Bank
from clipcap.labels.fits import FitSettings
from clipcap.labels.fitted import Labelled
from clipcap.labels.sets import LabelSet
from clipcap.labels.working import begin
from clipcap.layout import Run
from clipcap.planning import PackSettings
from clipcap.stages import embed, fit_labels, label, shard
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings
from clipcap.thresholds import ThresholdSettings
from tests.command import clipcap
from tests.nights import Tiny, draw, make_tiny

DATA = Path(__file__).parents[2].parent / "shared" / "data"
DIM, SCALE = 128, 40.0
QUICK = FitSettings(thresholds=ThresholdSettings(min_each=5, min_flagged=5, draws=100))


def words(count: int = 4, **more: object) -> Bank:
    """Return a bank of labels, the first of which is near to everything."""
    label_set = LabelSet.model_validate({"names": [f"label {n}" for n in range(count)], **more})
    rng = np.random.default_rng(0)
    vector_CD = rng.normal(size=(count + len(label_set.background), DIM)).astype(np.float32)
    vector_CD[0] += 3
    vector_CD /= np.linalg.norm(vector_CD, axis=1, keepdims=True)
    bias = -SCALE / 4 if label_set.multi_label and not label_set.background else None
    return bank.in_words(label_set, vector_CD, scale=SCALE, bias=bias)


def images(
    came: Bank, shown: Sequence[Sequence[int]], seed: int = 1, noise: float = 0.08
) -> np.ndarray:
    """Return embeddings of images that show some labels each, or something else."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(len(shown), DIM)) * noise + 0.12
    for n, labels in enumerate(shown):
        other_D = rng.normal(size=DIM)
        found[n] += (
            came.vector_CD[list(labels)].sum(axis=0)
            if labels
            else other_D / np.linalg.norm(other_D)
        )
    unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit.astype(np.float32)


def labelled(
    came: Bank, shown: Sequence[Sequence[int]], seed: int = 1, noise: float = 0.08
) -> Labelled:
    return Labelled(images(came, shown, seed, noise), [frozenset(one) for one in shown])


def right(made: Bank, held: Labelled) -> float:
    best_N = scoring.whole(held.embedding_ND, made)[1].argmax(axis=1)
    pairs = zip(best_N.tolist(), held.labels_N, strict=True)
    return float(np.mean([best in one if one else best >= made.count for best, one in pairs]))


ONE = [[n % 4] for n in range(400)]
WITH_NONE = [[n % 4] if n % 3 else [] for n in range(600)]
SEVERAL = [sorted({n % 4, n * 7 // 5 % 4}) if n % 5 else [] for n in range(600)]


# --- to a collection ------------------------------------------------------------------------------


def test_a_label_that_is_near_to_everything_no_longer_takes_all() -> None:
    came = words()
    held = labelled(came, ONE, noise=0.1)
    made, fit = fitting.to_collection(came, held.embedding_ND, QUICK)
    assert right(came, held) < 0.6
    assert right(made, held) > 0.9
    assert fit.temperature == pytest.approx(1 / SCALE, rel=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.6, 0.9])
def test_a_label_that_most_images_show_keeps_its_level(share: float) -> None:
    came = words()
    shown = [[1] if n < share * 400 else [n % 4] for n in range(400)]
    held = labelled(came, shown)
    made, _ = fitting.to_collection(came, held.embedding_ND, QUICK)
    assert right(made, held) > 0.9


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7])
def test_the_share_asked_for_gets_no_label(rate: float) -> None:
    came = words()
    embedding_ND = images(came, ONE, noise=0.15)
    settings = QUICK.model_copy(update={"none_rate": rate})
    made, _ = fitting.to_collection(came, embedding_ND, settings)
    best = scoring.Scorer(made, top_k=1, threshold=0.5).best(embedding_ND)
    assert 1 - best.accepted_R.sum() / len(embedding_ND) == pytest.approx(rate, abs=0.01)
    assert len(best.image_R) < 2 * len(embedding_ND)  # no row for every label


TAXONOMY = [
    "group",
    {"name": "label 0", "parent": "group"},
    {"name": "label 1", "parent": "group"},
    {"name": "label 2", "parent": "group"},
    "label 3",
]


def taxonomy(**more: object) -> tuple[Bank, Bank]:
    """Return `words()`, and the same with three of the four labels of one group."""
    flat = words()
    label_set = LabelSet.model_validate({"names": TAXONOMY, **more})
    vector_CD = np.concatenate([np.zeros((1, DIM), np.float32), flat.vector_CD])
    return flat, bank.in_words(label_set, vector_CD, scale=SCALE)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7])
def test_the_share_asked_for_gets_no_label_in_a_taxonomy(rate: float) -> None:
    flat, came = taxonomy()
    embedding_ND = images(flat, ONE, noise=0.25)
    settings = QUICK.model_copy(update={"none_rate": rate})
    made, fit = fitting.to_collection(came, embedding_ND, settings)
    given = scoring.Scorer(made, top_k=1, threshold=0.5).best(embedding_ND).accepted_R.sum()
    assert 1 - given / len(embedding_ND) == pytest.approx(rate, abs=0.01)
    assert fit.accepting.coverage == pytest.approx(given / len(embedding_ND), abs=0.005)


@pytest.mark.parametrize("precision", [None, 0.9])
def test_what_is_told_of_a_taxonomy_is_what_the_label_stage_does(precision: float | None) -> None:
    flat, came = taxonomy()
    shown = labelled(flat, WITH_NONE, noise=0.22)
    held = replace(shown, labels_N=[frozenset(n + 1 for n in one) for one in shown.labels_N])
    settings = QUICK.model_copy(update={"precision": precision})
    made, fit = fitting.to_truth(came, held.embedding_ND, held, settings)
    best = scoring.Scorer(made, top_k=1, threshold=0.5).best(held.embedding_ND)
    has_label = np.isin(np.arange(len(held.labels_N)), best.image_R[best.accepted_R])
    shows_none = np.array([not one for one in held.labels_N])
    assert fit.accepting.coverage == pytest.approx(has_label.mean(), abs=0.01)
    found = (~has_label & shows_none).sum() / shows_none.sum()
    assert fit.accepting.none_recall == pytest.approx(found, abs=0.03)


@pytest.mark.parametrize("multi_label", [False, True])
def test_only_the_best_of_labels_that_exclude_each_other_is_accepted(*, multi_label: bool) -> None:
    """As the label stage does: it is under its own threshold, another one is over its."""
    names = ["yes", "no"]
    label_set = LabelSet.model_validate({"names": names, "multi_label": multi_label})
    came = bank.in_words(label_set, words(2).vector_CD, scale=SCALE, bias=-1.0)
    score_NC, threshold_N = np.array([[0.6, 0.3], [0.8, 0.1]]), np.array([0.7, 0.2])
    found_N = begin(came).labelled(score_NC.astype(np.float32), threshold_N.astype(np.float32))
    assert found_N.tolist() == [multi_label, True]


def test_scores_of_labels_alone_are_percentiles() -> None:
    came = words(multi_label=True)
    made, fit = fitting.to_collection(came, images(came, [[]] * 2000), QUICK)
    score_NC = scoring.whole(images(came, [[]] * 2000, seed=2), made)[1]
    share_C = (score_NC < 0.9).mean(axis=0)
    assert made.activation == "sigmoid"
    assert np.allclose(share_C, 0.9, atol=0.06), share_C
    assert fit.temperature is None


def test_one_label_alone_is_a_yes_or_no() -> None:
    came = words(1)
    assert scoring.whole(images(came, [[0], []]), came)[1].tolist() == [[1.0], [1.0]]
    made, _ = fitting.to_collection(came, images(came, [[0]] * 30 + [[]] * 90), QUICK)
    yes_N1, no_N1 = (scoring.whole(images(came, [one] * 50, seed=3), made)[1] for one in ([0], []))
    assert yes_N1.mean() > 0.9
    assert no_N1.mean() < 0.6


# --- to labelled images ---------------------------------------------------------------------------


def test_scores_say_how_often_they_are_right() -> None:
    came = words()
    learnt, judged = labelled(came, ONE, noise=0.15), labelled(came, ONE, seed=9, noise=0.15)
    made, fit = fitting.to_truth(came, learnt.embedding_ND, learnt, QUICK)
    assert fit.error_before
    assert fit.error_after
    assert fit.right_before
    assert fit.right_after
    assert fit.error_after.value < fit.error_before.value / 2
    assert fit.error_after.low < fit.error_after.value < fit.error_after.high
    assert fit.right_after >= fit.right_before
    assert right(made, judged) == pytest.approx(fit.right_after, abs=0.05)
    assert fit.accepting.rule == "own"


def test_scores_that_a_fit_would_make_worse_stay_as_they_came() -> None:
    held = labelled(words(), ONE[:60], noise=0.05)
    came, _ = fitting.to_collection(words(), images(words(), ONE, noise=0.05), QUICK)
    made, fit = fitting.to_truth(came, held.embedding_ND, held, QUICK)
    assert fit.error_before
    assert fit.error_after
    assert fit.error_dropped
    assert fit.error_after == fit.error_before
    assert fit.error_dropped.value > fit.error_before.value
    assert fit.right_after == fit.right_before
    same = scoring.whole(held.embedding_ND, came)[1]
    assert np.allclose(scoring.whole(held.embedding_ND, made)[1], same)
    again = replace(made, fit=fit.model_copy(update={"truth_sha256": "abc"}).model_dump_json())
    assert fitting.to_truth(again, held.embedding_ND, held, QUICK)[1].error_dropped


def test_a_fit_to_the_images_that_a_set_was_learnt_from_is_not_dropped() -> None:
    held = labelled(words(), ONE[:60], noise=0.05)
    came, _ = fitting.to_collection(words(), images(words(), ONE, noise=0.05), QUICK)
    learnt = replace(came, fit='{"truth_sha256":"abc"}')
    _, fit = fitting.to_truth(learnt, held.embedding_ND, held, QUICK)
    assert fit.error_dropped is None


def test_what_is_none_of_these_is_found_without_a_background() -> None:
    came = words(8)
    shown = [[n % 8] if n % 3 else [] for n in range(600)]
    learnt, judged = labelled(came, shown), labelled(came, shown, seed=9)
    made, fit = fitting.to_truth(came, learnt.embedding_ND, learnt, QUICK)
    assert made.label_set.background == (anchors.NONE,)
    assert fit.none == 200
    best = scoring.Scorer(made, top_k=1, threshold=0.5).best(judged.embedding_ND)
    is_none = np.array([not one for one in shown])
    assert (best.accepted_R != is_none).mean() > 0.9
    assert fit.accepting.none_recall
    assert fit.accepting.none_recall > 0.85
    assert fit.error_after
    assert fit.error_after.value < 0.06


def test_a_precision_that_is_asked_for_is_kept() -> None:
    came = words()
    learnt, judged = (
        labelled(came, WITH_NONE, noise=0.15),
        labelled(came, WITH_NONE, seed=7, noise=0.15),
    )
    settings = QUICK.model_copy(update={"precision": 0.9})
    made, fit = fitting.to_truth(came, learnt.embedding_ND, learnt, settings)
    best = scoring.Scorer(made, top_k=1, threshold=0.5).best(judged.embedding_ND)
    pairs = zip(best.index_R.tolist(), judged.labels_N, strict=True)
    hits = np.array([index in one for index, one in pairs])
    assert hits[best.accepted_R].mean() > 0.84
    assert hits.mean() < 0.8
    assert fit.accepting.precision
    assert fit.accepting.precision.value >= 0.9


def test_labels_that_stand_alone_get_probabilities() -> None:
    came = words(multi_label=True, background=["thing"])
    learnt, judged = labelled(came, SEVERAL), labelled(came, SEVERAL, seed=9)
    made, fit = fitting.to_truth(came, learnt.embedding_ND, learnt, QUICK)
    score_NC = scoring.whole(judged.embedding_ND, made)[1]
    true_NC = np.array([[c in one for c in range(4)] for one in judged.labels_N])
    error = calibrating.error_interval(score_NC, true_NC, QUICK.thresholds)
    assert made.label_set.background == ()
    assert score_NC.shape == (600, 4)
    assert error.value < 0.05
    assert fit.error_after
    assert fit.error_before
    assert fit.error_after.value < min(0.05, fit.error_before.value)


def test_a_label_that_nobody_showed_has_the_scale_of_the_others() -> None:
    logit_NC = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    true_NC = logit_NC + 0.5 * np.random.default_rng(1).normal(size=(300, 3)) > 1
    true_NC[:, 2] = False
    found = calibrating.platt(logit_NC, true_NC)
    assert found.factor_C[2] > 0.3 * found.factor_C[0]
    assert found.offset_C[2] < found.offset_C[:2].min()  # nobody showed it: less likely


def test_groups_of_a_taxonomy_stay_groups() -> None:
    names = [{"name": "a"}, {"name": "a1", "parent": "a"}, {"name": "a2", "parent": "a"}, "b"]
    came = words()
    vector_CD = came.vector_CD.copy()
    vector_CD[0] = 0
    label_set = LabelSet.model_validate({"names": names})
    came = bank.in_words(label_set, vector_CD, scale=SCALE)
    shown = [[1 + n % 3] for n in range(300)]
    held = Labelled(
        images(came, shown), [frozenset([0] if one[0] < 3 and n % 2 else one)
                              for n, one in enumerate(shown)]
    )  # fmt: skip
    made, fit = fitting.to_truth(came, held.embedding_ND, held, QUICK)
    score_NC = scoring.whole(held.embedding_ND, made)[1]
    assert made.gain_C[0] == 0
    assert made.shift_C[0] == -np.inf
    assert np.allclose(score_NC[:, 0], score_NC[:, 1] + score_NC[:, 2], atol=1e-5)
    assert fit.right_after
    assert fit.right_after > 0.9


def test_a_fit_can_be_fitted_again() -> None:
    came = words()
    held = labelled(came, WITH_NONE)
    once, _ = fitting.to_collection(came, held.embedding_ND, QUICK)
    twice, fit = fitting.to_truth(once, held.embedding_ND, held, QUICK)
    assert fit.right_after
    assert fit.right_after > 0.9
    assert right(twice, held) > 0.9


# --- what is refused ------------------------------------------------------------------------------


def few(came: Bank) -> tuple[np.ndarray, Labelled]:
    return images(came, ONE), labelled(came, ONE[:12])


def alike(came: Bank) -> tuple[np.ndarray, Labelled]:
    return images(came, ONE), labelled(came, [[1]] * 40)


def only_none(came: Bank) -> tuple[np.ndarray, Labelled]:
    return images(came, ONE), labelled(came, [[]] * 40)


def no_number(came: Bank) -> tuple[np.ndarray, Labelled]:
    held = labelled(came, ONE[:40])
    held.embedding_ND[3, 0] = np.nan
    return images(came, ONE), held


def constant(came: Bank) -> tuple[np.ndarray, Labelled]:
    held = labelled(came, ONE[:40])
    return images(came, ONE), replace(held, embedding_ND=held.embedding_ND[:1].repeat(40, 0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (few, "there must be 30 images or more, but there are 12"),
        (alike, "must show different labels, but all 40 show the same: label 1"),
        (only_none, "must show different labels, but all 40 show the same"),
        (no_number, "must be a number, but 1 of 40 images"),
        (constant, "must differ between images, but that of 4 of 4 labels"),
    ],
)
def test_what_cannot_be_fitted_to_is_refused(
    make: Callable[[Bank], tuple[np.ndarray, Labelled]], says: str
) -> None:
    came = words()
    sample, held = make(came)
    with pytest.raises(SettingsError, match=says):
        fitting.to_truth(came, sample, held, QUICK)


def test_a_collection_that_says_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be 50 images or more, but there are 49"):
        fitting.to_collection(words(), images(words(), ONE[:49]), QUICK)


def test_a_precision_that_nothing_has_is_refused() -> None:
    came = words()
    rng = np.random.default_rng(0)
    held = labelled(came, ONE)
    wrong = [held.labels_N[n] for n in rng.permutation(len(ONE))]
    settings = QUICK.model_copy(update={"precision": 0.95})
    with pytest.raises(SettingsError, match="95% of the labels over a threshold must be right"):
        fitting.to_truth(came, held.embedding_ND, replace(held, labels_N=wrong), settings)


def test_levels_of_many_labels_are_finite() -> None:
    rng = np.random.default_rng(0)
    logit_NC = rng.normal(size=(60, 500)).astype(np.float32) * 5
    found = normalising.levels(logit_NC)
    assert np.isfinite(found.offset_C).all()


# --- an output ------------------------------------------------------------------------------------

IMAGES = 60


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tiny]:
    """An output of some drawings that are embedded, and the models."""
    folder = tmp_path_factory.mktemp("fits")
    tiny = make_tiny(folder / "models")
    for n in range(IMAGES):
        draw(folder / "in" / f"{n}.png", n)
    run = Run("run-1", storage.canonical(str(folder / "out")), "2026-11-20")
    settings = ShardSettings(pack=PackSettings(max_images=40))
    for part in shard.plan(str(folder / "in"), run=run, settings=settings).planned:
        shard.shard(part.shard, run=run, settings=settings)
        embed.embed([part.shard], run=run, settings=tiny.encoder, speed=Speed(batch_size=20))
    return folder / "out", tiny


def fit(embedded: tuple[Path, Tiny], to: Path, *more: object) -> dict[str, object]:
    out, tiny = embedded
    model = ["--model", tiny.encoder.model]
    ended = clipcap("labels", "fit", out, tiny.label_set, "--to", to, *model, *more, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, object] = json.loads(ended.out)
    return found


def test_an_output_is_labelled_with_what_was_fitted_to_it(
    embedded: tuple[Path, Tiny], tmp_path: Path
) -> None:
    out, tiny = embedded
    told = fit(embedded, tmp_path / "mine.parquet", "--none-rate", "0.5")
    given = bank.load(str(tmp_path / "mine.parquet"))
    assert (told["method"], told["images"], given.label_set.name) == ("collection", IMAGES, "mine")
    run = Run("run-2", storage.canonical(str(out)), "2026-11-20")
    accepted = 0
    for one in manifest.shards(run.out):
        label.label(one, [given], run=run, settings=LabelSettings(), encoder=tiny.encoder)
        table = tables.read(layout.labels(run.out, one, label_set="mine"))
        accepted += sum(table["accepted"].to_pylist())
        footer = tables.metadata(table)
        assert json.loads(footer["fit"])["method"] == "collection"
        assert float(footer["temperature"]) == pytest.approx(told["temperature"], rel=1e-5)
    assert accepted == pytest.approx(IMAGES / 2, abs=2)


def test_a_truth_file_is_joined_with_the_images(
    embedded: tuple[Path, Tiny], tmp_path: Path
) -> None:
    lines = [f"{n}.png,{('cat', 'dog', 'house', '')[n % 4]}" for n in range(40)]
    (tmp_path / "truth.csv").write_text("\n".join(["image,label", *lines, "not-there.png,cat"]))
    told = fit(embedded, tmp_path / "mine.parquet", "--truth", tmp_path / "truth.csv")
    assert (told["labelled"], told["none"], told["missing_images"]) == (40, 10, 1)
    assert told["truth_sha256"]
    assert told["error_after"]


def test_the_command_tells_what_it_found(embedded: tuple[Path, Tiny], tmp_path: Path) -> None:
    out, tiny = embedded
    words = ("labels", "fit", out, tiny.label_set, "--model", tiny.encoder.model, "--to")
    ended = clipcap(*words, tmp_path / "mine.parquet")
    assert "fitted to 60 images of the collection" in ended.out
    assert f"clipcap label {out} --label-set {tmp_path / 'mine.parquet'}" in ended.out
    refused = clipcap(*words, tmp_path / "mine.toml")
    assert refused.code == 2
    assert "must end in .parquet" in refused.err


def test_the_sample_is_bounded_and_always_the_same(embedded: tuple[Path, Tiny]) -> None:
    out, tiny = embedded
    settings = FitSettings(sample=50)
    found = [
        fit_labels.fit(
            storage.canonical(str(out)), tiny.label_set, settings=settings, encoder=tiny.encoder
        )
        for _ in range(2)
    ]
    assert found[0].told.images == 50
    assert np.array_equal(found[0].bank.shift_C, found[1].bank.shift_C)


# --- real photographs -----------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
def test_real_photographs_are_labelled_better_without_any_truth() -> None:
    held = zero_shot.coco_80(DATA)
    assert all(auc > 0.96 for _, auc, _ in zero_shot.aucs(held))
    found = {name: zero_shot.answers(held, one) for name, one in zero_shot.rules(held).items()}
    half = {name: zero_shot.precision(*one, 0.5) for name, one in found.items()}
    for rule in ("`labels fit`", "`labels fit` to the other half"):
        assert half[rule] > 1.7 * max(half["best cosine"], half["best softmax"])
