"""Likelihoods behind a cached prefix are those of reading prefix and candidate anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from clipcap import captioner as captioners
from clipcap import likelihood, tries
from clipcap.captioner import Captioner
from clipcap.cards import Choice
from clipcap.errors import SettingsError
from clipcap.tries import Tokens
from tests.captioners import STOP, WORDS, embeddings, llama_captioner, tiny_captioner

IMAGES = 11
SIZE: dict[str, Any] = {
    "vocab_size": len(WORDS) + 1, "hidden_size": 32, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
SHAPE = SIZE | {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = SHAPE | {"num_key_value_heads": 1, "max_position_embeddings": 64}
NEO = SIZE | {
    "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64, "window_size": 4,
    "attention_types": [[["local"], 2]], "intermediate_size": 64,
}  # fmt: skip
READ: dict[str, tuple[dict[str, Any], bool]] = {
    "gpt2": ({}, True),
    "llama": (LLAMA, True),
    "gpt_neox": (SHAPE, True),
    "cohere": (LLAMA, True),  # a scale behind the head
    "bloom": (SIZE | {"n_layer": 2, "n_head": 2}, False),
    "mistral": (LLAMA | {"sliding_window": 4}, False),
    "gpt_neo": (NEO, False),
}
"""Architectures, and whether they read trees."""


def captioner_of(kind: str) -> Captioner:
    """Return a captioner before a random language model that has likely and unlikely words."""
    tiny = tiny_captioner(sharpness=4.0)
    if kind == "gpt2":
        return tiny
    model = captioners.random_language_model(kind, READ[kind][0], seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return captioners.new(tiny.card, model.eval(), tiny.tokenizer, seed=0).eval()


def candidates(seed: int = 0) -> list[Tokens]:
    """Return candidates of 1 to 12 tokens: some begin alike, some are the beginning of others."""
    chance = random.Random(seed)
    some = [
        tuple(chance.randrange(len(WORDS)) for _ in range(chance.randint(1, 12))) for _ in range(20)
    ]
    return [*some, *((*ids[:3], 4, 5) for ids in some[:6]), *(ids[:2] for ids in some[:5])]


@torch.inference_mode()
def anew(captioner: Captioner, prefix_PE: Tensor, ids: Tokens) -> float:
    """Log p of a candidate, read plainly behind its prefix."""
    words_TE = captioner.language_model.get_input_embeddings()(torch.tensor(ids[:-1]).long())
    read_TE = torch.cat((prefix_PE, words_TE))
    logits_TV = captioner.language_model(inputs_embeds=read_TE[None], use_cache=False).logits[0]
    log_p_TV = logits_TV[len(prefix_PE) - 1 :].double().log_softmax(-1)
    return float(log_p_TV[torch.arange(len(ids)), torch.tensor(ids)].sum())


def wanted(captioner: Captioner, asked: list[list[Tokens]]) -> list[list[float]]:
    with torch.inference_mode():
        prefix_NPE = captioner.prefix(embeddings(len(asked)))
    pairs = zip(prefix_NPE, asked, strict=True)
    return [[anew(captioner, prefix_PE, ids) for ids in tokens_C] for prefix_PE, tokens_C in pairs]


def require_equal(found: list[likelihood.Likelihood], sums: list[list[float]]) -> None:
    for one, sum_C in zip(found, sums, strict=True):
        np.testing.assert_allclose(one.sum_C, sum_C, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", READ)
def test_candidates_behind_a_cache_are_as_likely_as_read_anew(kind: str) -> None:
    captioner = captioner_of(kind)
    assert captioner.reads_trees == READ[kind][1]
    same = candidates()
    own = [candidates(n)[n % 3 : 2 + 2 * n] for n in range(IMAGES)]
    own[4] = []
    for asked in ([same] * IMAGES, own):
        found = likelihood.of_images(captioner, embeddings(IMAGES), None, asked)
        require_equal(found, wanted(captioner, asked))
        assert [one.count_C.tolist() for one in found] == [
            [len(ids) for ids in tokens_C] for tokens_C in asked
        ]


def test_rows_of_a_model_that_reads_trees_give_the_same() -> None:
    captioner = captioner_of("gpt2")
    asked = [candidates()] * 3
    as_trees = likelihood.of_images(captioner, embeddings(3), None, asked)
    with patch.object(captioner, "_takes_trees", new=False):
        as_rows = likelihood.of_images(captioner, embeddings(3), None, asked)
    require_equal(as_rows, [one.sum_C.tolist() for one in as_trees])


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
@pytest.mark.parametrize("limits", [(1, 1), (1, 3), (4, 40), (64, 4000)])
def test_what_is_read_together_changes_nothing(
    kind: str, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few and many images, candidates and positions at a time."""
    captioner = captioner_of(kind)
    asked = [candidates(n % 2)[: 9 + n] for n in range(6)]
    alone = [
        likelihood.of_images(captioner, row[None], None, [tokens_C])[0]
        for row, tokens_C in zip(embeddings(6), asked, strict=True)
    ]
    monkeypatch.setattr(likelihood, "_MANY", limits[0])
    monkeypatch.setattr(likelihood, "_FEW", min(limits[0], likelihood._FEW))
    monkeypatch.setattr(likelihood, "_POSITIONS", limits[1])
    together = likelihood.of_images(captioner, embeddings(6), None, asked)
    require_equal(together, [one.sum_C.tolist() for one in alone])


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_a_prefix_is_read_once_however_many_candidates_follow(kind: str) -> None:
    captioner = captioner_of(kind)
    asked = [[(a, b, c) for a in range(9) for b in range(6) for c in range(6)]] * 3
    model = captioner.language_model
    _ = captioner.reads_trees
    with patch.object(model, "forward", wraps=model.forward) as run:
        likelihood.of_images(captioner, embeddings(3), None, asked)
    prefixes = [
        c.kwargs["inputs_embeds"] for c in run.call_args_list if "input_ids" not in c.kwargs
    ]
    assert sum(len(prefix_BPE) for prefix_BPE in prefixes) == 3
    assert run.call_count > 3


def test_memory_is_bounded_by_positions_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = captioner_of("gpt2")
    monkeypatch.setattr(likelihood, "_LOGITS", 64 * (len(WORDS) + 1))
    few = [(a, b, c, 1) for a in range(5) for b in range(5) for c in range(5)]
    asked = [[*few, tuple(range(20))]] * 8
    model = captioner.language_model
    _ = captioner.reads_trees
    with patch.object(model, "forward", wraps=model.forward) as run:
        likelihood.of_images(captioner, embeddings(8), None, asked)
    read = [c.kwargs["input_ids"].numel() for c in run.call_args_list if "input_ids" in c.kwargs]
    assert max(read) <= 64


def test_what_candidates_begin_with_alike_is_read_once() -> None:
    found = tries.tries([(7, 8, 9, 2), (5, 6), (7, 8, 3), (7, 8)], 7)
    assert len(found) == 1
    assert found[0].candidates == [1, 3, 2, 0]
    assert len(found[0].token_E) == 7
    assert sorted(found[0].token_T) == [5, 7, 8, 9]  # the last tokens are guessed and never read
    narrow = tries.tries([(7, 8, 9, 2), (5, 6), (7, 8, 3), (7, 8)], 4)
    assert [one.candidates for one in narrow] == [[1, 3], [2], [0]]


# --- candidates as texts --------------------------------------------------------------------------


def test_the_stop_counts_once_as_it_does_in_training() -> None:
    captioner = tiny_captioner()
    a, cat = WORDS.index("a"), WORDS.index("cat")
    assert likelihood.tokenised(captioner, [" a cat", "a cat."]) == [(a, cat, STOP)] * 2
    assert likelihood.tokenised(captioner, ["a cat"], ends=False) == [(a, cat)]
    several = Choice(name="beam", settings={"stop": ["!", "."]})
    captioner.card = captioner.card.model_copy(update={"decode": several})
    found = likelihood.tokenised(captioner, ["a cat", "a cat.", "a cat!"])
    assert found == [(a, cat, 0), (a, cat, STOP), (a, cat, 0)]


def test_means_are_of_the_tokens_that_count() -> None:
    captioner = tiny_captioner(sharpness=4.0)
    tokens_C = likelihood.tokenised(captioner, ["a cat", "a red ball on the grass"])
    one = likelihood.of_images(captioner, embeddings(1), None, [tokens_C])[0]
    assert one.count_C.tolist() == [3, 7]
    np.testing.assert_allclose(one.mean_C, one.sum_C / [3, 7])


@pytest.mark.parametrize("make", [tiny_captioner, llama_captioner])
def test_a_candidate_longer_than_the_positions_is_named(make: Callable[[], Captioner]) -> None:
    captioner = make()
    room = captioner.language_model.config.max_position_embeddings
    fits = room - captioner.card.prefix_length + 1
    tokens_C = likelihood.tokenised(captioner, [" ".join(["cat"] * fits)], ends=False)
    found = likelihood.of_images(captioner, embeddings(1), None, [tokens_C])
    assert np.isfinite(found[0].sum_C).all()
    with pytest.raises(SettingsError, match=rf"at most {fits} tokens .* has {fits + 1}.*'dog cat"):
        likelihood.tokenised(captioner, ["a dog", " ".join(["dog", *["cat"] * (fits - 1)])])


def test_a_candidate_that_is_nothing_to_the_language_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be words"):
        likelihood.tokenised(tiny_captioner(), ["a cat", "  "])


def test_raw_embeddings_need_their_norms() -> None:
    captioner = tiny_captioner(normalized=False, sharpness=4.0)
    tokens_C = likelihood.tokenised(captioner, ["a cat"])
    with pytest.raises(SettingsError, match="embedding_norm"):
        likelihood.of_images(captioner, embeddings(1), None, [tokens_C])
    norms = (torch.ones(1), torch.full((1,), 9.0))
    found = [likelihood.of_images(captioner, embeddings(1), norm, [tokens_C]) for norm in norms]
    assert abs(found[0][0].sum_C - found[1][0].sum_C) > 1e-3
