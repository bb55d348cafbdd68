"""Captions to batches: every caption once an epoch, little padding, whole images held out."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from clipcap.batches import Captions, batches, held_out, image_batches, tokenised
from clipcap.errors import SettingsError
from clipcap.training import TrainSettings
from tests.captioners import STOP, WORDS, word_tokenizer

MAX_TOKENS = 20


def many() -> Captions:
    """1,000 captions of 500 images, 1 to 15 words long."""
    chance = random.Random(0)
    texts = [
        [" ".join(chance.choices(WORDS[2:], k=chance.randint(1, 15))) for _ in range(n % 5)]
        for n in range(500)
    ]
    return tokenised(texts, word_tokenizer(), STOP, MAX_TOKENS)[0]


def test_captions_become_tokens_that_end_with_one_stop_token() -> None:
    texts = [["a cat.", "the sea"], ["on ."]]
    data, _ = tokenised(texts, word_tokenizer(), STOP, MAX_TOKENS)
    spoken = [data.token_ST[s][mask].tolist() for s, mask in enumerate(data.mask())]
    assert data.row_S.tolist() == [0, 0, 1]
    assert [[WORDS[token] for token in ids] for ids in spoken] == [
        ["a", "cat", "."],
        ["the", "sea", "."],
        ["on", "."],
    ]


def test_blank_captions_and_images_without_any_are_left_out_and_counted() -> None:
    texts = [["a cat.", "  "], [], ["", "\n"], ["a dog."]]
    data, counts = tokenised(texts, word_tokenizer(), STOP, MAX_TOKENS)
    assert data.row_S.tolist() == [0, 3]
    assert (counts.blank, counts.cut) == (3, 0)


def test_words_that_the_tokenizer_does_not_know_are_counted() -> None:
    _, counts = tokenised([["a zebra ."], ["a car ."]], word_tokenizer(), STOP, 9)
    assert counts.unknown_share == pytest.approx(1 / 6)
    _, counts = tokenised([["a cat ."]], word_tokenizer(), STOP, 9)
    assert counts.unknown_share == 0


def test_long_captions_are_cut_and_counted() -> None:
    texts = [["a red ball on the sea."], ["a red ball on."], ["a red ball on"]]
    data, counts = tokenised(texts, word_tokenizer(), STOP, 5)
    assert data.length_S.tolist() == [5, 5, 5]
    assert (counts.blank, counts.cut) == (0, 1)


@pytest.mark.parametrize("texts", [[], [[], []], [["", " "], []]])
def test_nothing_to_learn_from_is_refused(texts: list[list[str]]) -> None:
    with pytest.raises(SettingsError, match="every one is blank"):
        tokenised(texts, word_tokenizer(), STOP, MAX_TOKENS)


def test_an_epoch_has_every_caption_once_and_the_next_one_another_order() -> None:
    data, settings = many(), TrainSettings(batch_size=32)
    order = batches(data, settings)
    count = -(-len(data) // 32)
    epochs = [torch.cat([next(order) for _ in range(count)]) for _ in range(2)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(len(data)))
    assert not torch.equal(*epochs)


def test_the_same_seed_gives_the_same_order() -> None:
    data = many()

    def first(seed: int) -> torch.Tensor:
        settings = TrainSettings(batch_size=32, seed=seed)
        return torch.cat(list(itertools.islice(batches(data, settings), 9)))

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_a_batch_has_captions_of_about_one_length() -> None:
    data, settings = many(), TrainSettings(batch_size=32)
    count = -(-len(data) // 32)
    taken = [data.take(index_B) for index_B in itertools.islice(batches(data, settings), count)]
    positions = sum(batch.token_ST.numel() for batch in taken)
    assert positions < 1.1 * int(data.length_S.sum())
    assert data.token_ST.numel() > 1.7 * int(data.length_S.sum())


def test_packed_batches_hold_whole_images_and_every_caption_once_an_epoch() -> None:
    data, settings = many(), TrainSettings(batch_size=32)
    order = image_batches(data, settings)
    count = -(-len(data) // 32)
    epochs = [[next(order) for _ in range(count)] for _ in range(2)]
    for parts in epochs:
        assert torch.cat(parts).sort().values.tolist() == list(range(len(data)))
        assert {len(part) for part in parts[:-1]} == {32}
        images = [set(data.row_S[part].tolist()) for part in parts]
        assert sum(map(len, images)) <= len(set.union(*images)) + count  # parted at an end only
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    again = image_batches(data, settings)
    assert all(torch.equal(next(again), part) for part in epochs[0])


def test_whole_images_are_held_out_and_never_one_without_captions() -> None:
    held_out_N = held_out(many(), 500, TrainSettings(validation_share=0.25))
    assert int(held_out_N.sum()) == 100
    assert not held_out_N[::5].any()  # every fifth image has no caption


def test_at_least_one_image_stays_for_training() -> None:
    data, _ = tokenised([["a cat."], ["a dog."]], word_tokenizer(), STOP, MAX_TOKENS)
    for share in (0.0, 0.5, 0.99):
        held_out_N = held_out(data, 2, TrainSettings(validation_share=share))
        assert int(held_out_N.sum()) == (1 if share else 0)
