"""The batched, cached beam search against the original's, written plainly: the same tokens."""

from __future__ import annotations

import platform
from functools import lru_cache

import pytest
import torch

from clipcap import prepacked, registry, trees
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner
from clipcap.errors import SettingsError
from tests.captioners import embeddings, tiny_captioner
from tests.original import Asked, generate_beam

IMAGES = 200
MAX_TOKENS = 14


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)


@torch.inference_mode()
def ours(
    captioner: Captioner, batch_size: int, *, slots: int = 64, **settings: float
) -> list[list[Candidate]]:
    beam = registry.load("clipcap.decoders", "beam")
    chosen = beam.Settings(max_tokens=MAX_TOKENS, **settings)
    prefix_BPE = captioner.prefix(10 * embeddings(IMAGES))
    found: list[list[Candidate]] = []
    for part in torch.split(prefix_BPE, batch_size):
        found += beam.decode(captioner, part, chosen, slots=slots)
    return found


@pytest.fixture(scope="module", params=["mlp", "transformer"])
def any_captioner(request: pytest.FixtureRequest) -> Captioner:
    return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0, mapper=request.param)


@lru_cache
@torch.inference_mode()
def wanted(
    captioner: Captioner, beam_size: int, temperature: float
) -> list[list[tuple[tuple[int, ...], float]]]:
    """Return what the original finds for all images."""
    return [
        generate_beam(
            captioner.language_model,
            captioner.prefix(10 * row[None]),
            Asked(captioner.stop_token("."), MAX_TOKENS, beam_size, temperature),
        )
        for row in embeddings(IMAGES)
    ]


def require_equal(
    found: list[list[Candidate]], expected: list[list[tuple[tuple[int, ...], float]]]
) -> None:
    """Compare tokens, their order, and scores."""
    for candidates, beams in zip(found, expected, strict=True):
        assert [candidate.token_ids for candidate in candidates] == [ids for ids, _ in beams]
        assert [candidate.logprob_mean for candidate in candidates] == pytest.approx(
            [score for _, score in beams], abs=1e-5
        )


@pytest.mark.parametrize(
    ("beam_size", "temperature"), [(5, 1.0), (1, 1.0), (3, 0.7)], ids=["original", "one", "cool"]
)
def test_beam_finds_the_tokens_of_the_original_in_its_order(
    any_captioner: Captioner, beam_size: int, temperature: float
) -> None:
    expected = wanted(any_captioner, beam_size, temperature)
    for batch_size in (1, 7, 64):
        found = ours(any_captioner, batch_size, beam_size=beam_size, temperature=temperature)
        require_equal(found, expected)


@pytest.mark.parametrize("slots", [1, 3, 16])
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_neither_places_that_change_hands_nor_a_buffer_that_forgets_changes_a_token(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch, slots: int, steps: int
) -> None:
    monkeypatch.setattr(trees, "_STEPS", steps)
    found = ours(captioner, IMAGES, slots=slots)
    require_equal(found, wanted(captioner, 5, 1.0))


def test_a_model_without_trees_finds_the_same(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_trees = ours(captioner, 64)
    assert captioner._takes_trees
    monkeypatch.setattr(captioner, "_takes_trees", False)
    without = ours(captioner, 64)
    assert [[c.token_ids for c in row] for row in without] == [
        [c.token_ids for c in row] for row in with_trees
    ]


@pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="packed layers are for x86 processors"
)
def test_packed_layers_find_the_same() -> None:
    plain, fast = (tiny_captioner(0, sharpness=5.0, stop_bonus=2.0) for _ in range(2))
    found = ours(fast.for_captions("fp32"), 64)
    assert any(isinstance(layer, prepacked.Packed) for layer in fast.language_model.modules())
    require_equal(found, wanted(plain, 5, 1.0))


def test_the_comparison_sees_stopped_beams_long_beams_and_both_in_one_image(
    captioner: Captioner,
) -> None:
    """Equality on captions that all end alike would prove little."""
    reasons = [{candidate.finish_reason for candidate in row} for row in ours(captioner, 7)]
    assert {"stop"} in reasons
    assert {"stop", "length"} in reasons
    assert len({len(candidate.token_ids) for row in ours(captioner, 7) for candidate in row}) > 5


@torch.inference_mode()
def test_logprob_mean_is_the_language_models_own(captioner: Captioner) -> None:
    row = embeddings(1)
    candidate = captioner.caption(row)[0][1]
    ids = torch.tensor([candidate.token_ids])
    read = captioner.language_model.get_input_embeddings()(ids)
    inputs = torch.cat((captioner.prefix(row), read), 1)
    logp = captioner.language_model(inputs_embeds=inputs).logits.log_softmax(-1)
    start = captioner.card.prefix_length - 1
    spoken = logp[0, start:-1].gather(1, ids[0, :, None])
    assert candidate.logprob_mean == pytest.approx(float(spoken.mean()), abs=1e-5)


def test_more_beams_than_words_are_refused(captioner: Captioner) -> None:
    with pytest.raises(SettingsError, match="`beam_size` must be at most"):
        ours(captioner, 7, beam_size=100)
