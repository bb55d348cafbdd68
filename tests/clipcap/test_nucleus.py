"""Captions drawn by chance: by the odds that were asked for, and nobody else's."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from clipcap import registry
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner
from clipcap.sequences import seeds
from tests.captioners import embeddings, tiny_captioner


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner(0, sharpness=3.0, stop_bonus=2.0)


@torch.inference_mode()
def drawn(
    captioner: Captioner, rows: torch.Tensor, *, own: list[int] | None = None, **settings: float
) -> list[list[Candidate]]:
    """Return the candidates of each row."""
    nucleus = registry.load("clipcap.decoders", "nucleus")
    chosen = nucleus.Settings(**{"max_tokens": 8} | settings)
    prefix = captioner.prefix(10 * rows)
    found: list[list[Candidate]] = nucleus.decode(
        captioner, prefix, chosen, slots=50, seeds=own or seeds(rows)
    )
    return found


@torch.inference_mode()
def odds(captioner: Captioner, row: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the model's own odds of the first token."""
    logits = captioner.language_model(inputs_embeds=captioner.prefix(10 * row[None])).logits
    found: torch.Tensor = (logits[0, -1] / temperature).softmax(-1)
    return found


def first_tokens(captioner: Captioner, **settings: float) -> Counter[int]:
    """Return how often each token came first in 4,000 captions of one image."""
    row = embeddings(1)
    found = drawn(
        captioner,
        row.expand(4_000, -1),
        own=list(range(4_000)),
        captions=1,
        max_tokens=1,
        **settings,
    )
    return Counter(one.token_ids[0] for [one] in found)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_words_come_as_often_as_the_model_has_it(captioner: Captioner, temperature: float) -> None:
    counts = first_tokens(captioner, temperature=temperature, top_p=1.0)
    expected_V = odds(captioner, embeddings(1)[0], temperature)
    found_V = torch.tensor([counts[token] / 4_000 for token in range(len(expected_V))])
    assert float((found_V - expected_V).abs().sum() / 2) < 0.06


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_only_the_likeliest_words_with_that_mass_come(captioner: Captioner, top_p: float) -> None:
    counts = first_tokens(captioner, top_p=top_p)
    order = odds(captioner, embeddings(1)[0], 1.0).sort(descending=True)
    needed = int((order.values.cumsum(0) < top_p).sum()) + 1
    assert set(counts) == set(order.indices[:needed].tolist())
    shares = order.values[:needed] / order.values[:needed].sum()
    for token, share in zip(order.indices[:needed].tolist(), shares.tolist(), strict=True):
        assert counts[token] / 4_000 == pytest.approx(share, abs=0.03)


def test_only_so_many_words_come(captioner: Captioner) -> None:
    counts = first_tokens(captioner, top_k=2, top_p=1.0)
    best = odds(captioner, embeddings(1)[0], 1.0).topk(2)
    assert set(counts) == set(best.indices.tolist())
    share = float(best.values[0] / best.values.sum())
    assert counts[int(best.indices[0])] / 4_000 == pytest.approx(share, abs=0.03)


def test_the_captions_of_an_image_differ(captioner: Captioner) -> None:
    found = drawn(captioner, embeddings(30), captions=6, top_p=1.0, temperature=2.0)
    assert {len(candidates) for candidates in found} == {6}
    assert all(len({one.token_ids for one in candidates}) == 6 for candidates in found)


def test_where_the_odds_leave_one_caption_there_is_one(captioner: Captioner) -> None:
    found = drawn(captioner, embeddings(5), captions=3, top_k=1)
    greedy = registry.load("clipcap.decoders", "greedy")
    with torch.inference_mode():
        prefix = captioner.prefix(10 * embeddings(5))
        likeliest = greedy.decode(captioner, prefix, greedy.Settings(max_tokens=8))
    assert [[one.token_ids for one in row] for row in found] == [
        [one.token_ids for one in row] for row in likeliest
    ]


def test_another_seed_draws_others_and_the_same_one_the_same(captioner: Captioner) -> None:
    rows = embeddings(20)
    once, again, other = (drawn(captioner, rows, seed=seed) for seed in (0, 0, 1))
    assert once == again
    assert once != other


def test_images_that_look_the_same_to_the_model_draw_for_themselves(captioner: Captioner) -> None:
    rows = embeddings(1).expand(2, -1)
    one, other = drawn(captioner, rows, own=[1, 2])
    assert one != other
    [alone], (_, beside) = drawn(captioner, rows[:1]), drawn(captioner, rows)
    assert [one.token_ids for one in alone] == [one.token_ids for one in beside]


def test_likely_words_suffice_where_they_have_the_mass(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    nucleus = registry.load("clipcap.decoders", "nucleus")
    whole = drawn(captioner, embeddings(20), top_p=0.8)
    monkeypatch.setattr(nucleus, "_LIKELY", 2)
    assert drawn(captioner, embeddings(20), top_p=0.8) == whole


def test_where_nothing_allowed_is_likely_something_is_drawn(captioner: Captioner) -> None:
    found = drawn(captioner, embeddings(20), temperature=1e-4, min_tokens=6)
    assert all(len(one.token_ids) >= 6 for candidates in found for one in candidates)
