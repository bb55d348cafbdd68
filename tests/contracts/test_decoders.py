"""What every file in `clipcap/decoders` promises, new ones included."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from clipcap import registry, sequences
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner
from clipcap.errors import SettingsError
from tests.captioners import DIM_CLIP, STOP, embeddings, tiny_captioner

MAX_TOKENS = 10
IMAGES = 23
NONE: Mapping[str, object] = {}
WISHES = {"never": ["cars", "cat", "sea"], "no_repeat": 2, "min_tokens": 3}
ONLY = {"only": ["a", "red", "boat", "cat", "on", "the", "sea"], "no_repeat": 2}
MUST = {"must": ["boat", "red ball"]}

pytestmark = pytest.mark.parametrize("name", registry.names("clipcap.decoders"))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)


@torch.inference_mode()
def decode(
    captioner: Captioner,
    name: str,
    embedding_BD: torch.Tensor,
    max_tokens: int = MAX_TOKENS,
    wishes: Mapping[str, object] = NONE,
) -> list[list[Candidate]]:
    decoder = registry.load("clipcap.decoders", name)
    prefix_BPE = captioner.prefix(10 * embedding_BD)
    found: list[list[Candidate]] = decoder.decode(
        captioner,
        prefix_BPE,
        decoder.Settings(max_tokens=max_tokens, **wishes),
        seeds=sequences.seeds(embedding_BD),
    )
    return found


def tokens(found: list[list[Candidate]]) -> list[list[tuple[int, ...]]]:
    return [[candidate.token_ids for candidate in candidates] for candidates in found]


def test_each_image_gets_candidates_best_first(captioner: Captioner, name: str) -> None:
    found = decode(captioner, name, embeddings(IMAGES))
    assert len(found) == IMAGES
    for candidates in found:
        scores = [candidate.logprob_mean for candidate in candidates]
        assert scores
        assert scores == sorted(scores, reverse=True)
        assert max(scores) <= 1e-6


def test_a_caption_ends_at_its_first_stop_token_or_at_the_limit(
    captioner: Captioner, name: str
) -> None:
    reasons = set()
    for limit in (3, MAX_TOKENS):
        found = decode(captioner, name, embeddings(IMAGES), limit)
        for candidate in (candidate for row in found for candidate in row):
            reasons.add(candidate.finish_reason)
            assert STOP not in candidate.token_ids[:-1]
            if candidate.finish_reason == "stop":
                assert candidate.token_ids[-1] == STOP
                assert len(candidate.token_ids) <= limit
            else:
                assert candidate.token_ids[-1] != STOP
                assert len(candidate.token_ids) == limit
    assert reasons == {"stop", "length"}


def test_one_token_is_a_limit_too(captioner: Captioner, name: str) -> None:
    found = decode(captioner, name, embeddings(3), max_tokens=1)
    assert {len(candidate.token_ids) for row in found for candidate in row} == {1}


def test_the_text_is_that_of_the_tokens(captioner: Captioner, name: str) -> None:
    for candidates in decode(captioner, name, embeddings(3)):
        for candidate in candidates:
            assert candidate.text == captioner.text(candidate.token_ids)


def test_the_same_embeddings_give_the_same_captions(captioner: Captioner, name: str) -> None:
    assert decode(captioner, name, embeddings(5)) == decode(captioner, name, embeddings(5))


@pytest.mark.parametrize(
    "wishes", [NONE, WISHES, ONLY, MUST], ids=["free", "wishes", "only", "must"]
)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_caption_does_not_depend_on_its_neighbours(
    captioner: Captioner, name: str, batch_size: int, wishes: Mapping[str, object]
) -> None:
    if "must" in wishes and not registry.load("clipcap.decoders", name).Settings.searches:
        with pytest.raises(ValueError, match="choose the decoder `beam`"):
            decode(captioner, name, embeddings(1), wishes=wishes)
        return
    whole = decode(captioner, name, embeddings(IMAGES), wishes=wishes)
    parts = [
        row
        for part in torch.split(embeddings(IMAGES), batch_size)
        for row in decode(captioner, name, part, wishes=wishes)
    ]
    assert tokens(parts) == tokens(whole)
    for one, other in zip(parts, whole, strict=True):
        assert [candidate.logprob_mean for candidate in one] == pytest.approx(
            [candidate.logprob_mean for candidate in other], abs=1e-5
        )


def test_captions_stand_in_the_order_of_their_embeddings(captioner: Captioner, name: str) -> None:
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3))
    whole = tokens(decode(captioner, name, embeddings(IMAGES)))
    assert tokens(decode(captioner, name, embeddings(IMAGES)[order])) == [
        whole[place] for place in order.tolist()
    ]


def test_no_image_gives_no_caption(captioner: Captioner, name: str) -> None:
    assert decode(captioner, name, torch.empty(0, DIM_CLIP)) == []


def test_more_tokens_than_the_language_model_has_positions_are_refused(
    captioner: Captioner, name: str
) -> None:
    with pytest.raises(SettingsError, match=r"`max_tokens` must be at most 45 "):
        decode(captioner, name, embeddings(1), max_tokens=46)
    decode(captioner, name, embeddings(1), max_tokens=45)
