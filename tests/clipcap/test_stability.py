"""A measure says how far apart two nights are, and stays silent where chance explains it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from clipcap import stability
from clipcap.stability import NONE, DriftSettings, Limit
from clipcap.stages.drift import embeddings
from clipcap.summaries import Cloud
from tests.clouds import cloud

SETTINGS = DriftSettings()


def test_the_index_is_that_of_a_hand_worked_example() -> None:
    """(p - q) ln(p / q) of shares 0.6 and 0.4 against 0.5 and 0.5, half an image added to each."""
    p, q = (60.5 / 101, 40.5 / 101), (50.5 / 101, 50.5 / 101)
    wanted = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert stability.psi([(60, 50), (40, 50)]) == pytest.approx(wanted)
    assert wanted == pytest.approx(0.0397, abs=1e-4)
    assert stability.psi([(30, 300), (70, 700)]) == pytest.approx(0, abs=1e-3)


def test_a_label_that_is_new_does_not_make_the_index_infinite() -> None:
    assert 1 < stability.psi([(100, 0), (0, 100)]) < 20


@pytest.mark.parametrize("labels", [2, 5, 20, 200])
def test_by_chance_is_the_quantile_of_the_known_distribution(labels: int) -> None:
    """Of a chi-square of k - 1 degrees: 10.83, 18.47, 43.82 and 266.4 are in every table."""
    quantile = {2: 10.83, 5: 18.47, 20: 43.82, 200: 266.4}[labels]
    found = stability.psi_by_chance(labels, 100, 400)
    assert found == pytest.approx(quantile * (1 / 100 + 1 / 400), rel=0.04)


@pytest.mark.parametrize(
    ("labels", "images", "before"),
    [(5, 60, 2_000), (12, 1_000, 30_000), (100, 200, 6_000), (1_000, 500, 500)],
)
def test_equal_nights_are_not_told(labels: int, images: int, before: int) -> None:
    """Of 200 nights none; and what chance gives is exceeded by about one in a thousand."""
    rng = np.random.default_rng(labels)
    over = 0
    for _ in range(200):
        share = rng.dirichlet(np.full(labels, 0.5))
        mix, unknown = stability.label_mix(
            "things", drawn(rng, share, images), drawn(rng, share, before), SETTINGS
        )
        assert (mix.level, unknown.level) == ("ok", "ok")
        over += mix.value > mix.chance
    assert over <= 3


def drawn(rng: np.random.Generator, share: np.ndarray, images: int) -> Counter[str]:
    """Return the labels of so many images; the first stands for none of them."""
    counts = rng.multinomial(images, share)
    return Counter({str(n) if n else NONE: int(count) for n, count in enumerate(counts) if count})


def test_the_mean_of_the_index_of_equal_nights_is_the_known_one() -> None:
    """(k - 1)(1 / n + 1 / m)."""
    rng = np.random.default_rng(3)
    share = np.full(8, 1 / 8)
    found = []
    for _ in range(400):
        now, before = drawn(rng, share, 400), drawn(rng, share, 4_000)
        found.append(stability.psi([(now[name], before[name]) for name in now | before]))
    assert np.mean(found) == pytest.approx(7 * (1 / 400 + 1 / 4_000), rel=0.1)


@pytest.mark.parametrize("labels", [8, 1_000])
def test_another_mix_is_told_with_what_changed(labels: int) -> None:
    rng = np.random.default_rng(1)
    share = np.full(labels, 1 / labels)
    before = drawn(rng, share, 3_000)
    now = drawn(rng, share, 60) + Counter({"screenshot": 60})
    mix = stability.label_mix("things", now, before, SETTINGS)[0]
    assert mix.level == "warn"
    assert mix.parts[0].name == "screenshot"
    assert mix.parts[0].now == 0.5


def test_labels_too_rare_to_compare_are_counted_together() -> None:
    found = stability.bucketed(Counter(a=50, b=1), Counter(a=1_000, c=9, d=8))
    assert found == {"a": (50, 1_000), "(rare labels)": (1, 17)}
    assert sum(now for now, _ in found.values()) == 51


def test_a_limit_is_reached_by_size_and_beyond_chance_only() -> None:
    limit = Limit(warn=0.1, stop=0.3)
    assert [stability.level(value, limit) for value in (0.09, 0.1, 0.3)] == ["ok", "warn", "stop"]
    assert stability.level(0.5, limit, chance=0.6) == "ok"
    assert stability.level(9.0, Limit()) == "ok"


def test_only_a_rise_of_rejects_and_of_the_unknown_is_told() -> None:
    many, few, limit = Counter(truncated=300), Counter(truncated=10), Limit(warn=0.05)
    risen = stability.reject_rate(many, few, (700, 990), limit)
    assert (risen.level, risen.now, risen.before) == ("warn", 0.3, 0.01)
    assert stability.reject_rate(few, many, (990, 700), limit).level == "ok"
    unknown, known = Counter({NONE: 60, "a": 40}), Counter({NONE: 100, "a": 900})
    assert stability.label_mix("things", unknown, known, SETTINGS)[1].level == "warn"
    assert stability.label_mix("things", known, unknown, SETTINGS)[1].level == "ok"


def test_a_few_rejects_of_a_small_night_are_chance() -> None:
    few = stability.reject_rate(
        Counter(truncated=4), Counter(truncated=20), (46, 980), Limit(warn=0.05)
    )
    assert few.value == pytest.approx(0.06)
    assert few.level == "ok"


@pytest.mark.parametrize("width", [2, 16])
def test_embeddings_of_equal_nights_are_not_told_and_those_that_went_are(width: int) -> None:
    rng = np.random.default_rng(width)
    centre = np.full(width, 3.0)
    before, over = cloud(rng.normal(size=(3_000, width)) + centre), 0
    for _ in range(200):
        now = cloud(rng.normal(size=(50, width)) + centre)
        over += any(one.value > one.chance for one in embeddings("clip", now, before, SETTINGS))
    assert over <= 3
    before = cloud(rng.normal(size=(1_500, width)) + centre)
    far = cloud(rng.normal(size=(50, width)) - centre)
    assert next(iter(embeddings("clip", far, before, SETTINGS))).level == "warn"
    wide = cloud(rng.normal(size=(50, width)) * 4 + centre)
    told = {one.name for one in embeddings("clip", wide, before, SETTINGS) if one.level == "warn"}
    assert {"embedding spread", "embedding norm"} <= told


def test_two_clouds_together_are_the_cloud_of_all() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(30, 4)), rng.normal(size=(70, 4)) + 1
    both = cloud(one) + cloud(other)
    whole = cloud(np.concatenate([one, other]))
    assert both.images == 100
    np.testing.assert_allclose(both.mean, whole.mean, atol=1e-6)
    for name in ("square", "norm", "norm_square", "spread", "norm_deviation"):
        assert getattr(both, name) == pytest.approx(getattr(whole, name), rel=1e-5)
    assert cloud(one) + Cloud() == Cloud() + cloud(one) == cloud(one)
