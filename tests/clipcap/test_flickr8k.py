"""The benchmark on real photographs: its text encoder knows what is said, its data are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import flickr8k, flickr8k_data
from bench.text_tower import TextTower
from clipcap.candidates import Candidate

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "flickr8k"
WORDS = ["dog", "cat", "red", "blue", "snow", "sea", "man", "ball"]


def made(images: int = 200) -> tuple[np.ndarray, list[list[str]]]:
    """Return embeddings that are sums of what their captions say, and noise."""
    drawn = np.random.default_rng(0)
    word_WD = drawn.normal(size=(len(WORDS), 16))
    said_NW = drawn.random((images, len(WORDS))) < 0.4
    embedding_ND = 3 + said_NW @ word_WD + 0.1 * drawn.normal(size=(images, 16))
    return embedding_ND, [[" ".join(np.array(WORDS)[said]) + " there"] for said in said_NW]


def test_a_caption_is_nearest_to_its_own_photograph() -> None:
    embedding_ND, captions = made()
    tower = TextTower(embedding_ND[:150], captions[:150])
    new = [texts[0] for texts in captions[150:]]
    own = tower.cosine(embedding_ND[150:], new)
    others = tower.cosine(np.roll(embedding_ND[150:], 1, axis=0), new)
    assert own.mean() > 0.9
    assert others.mean() < 0.3


def test_a_stand_in_lies_where_photographs_with_such_captions_do() -> None:
    embedding_ND, captions = made()
    tower = TextTower(embedding_ND, captions)
    texts = ["a red dog there"] * 300
    found = tower.stand_ins(texts, seed=1)
    assert np.array_equal(found, tower.stand_ins(texts, seed=1))
    assert not np.array_equal(found, tower.stand_ins(texts, seed=2))
    expected = embedding_ND.mean(0) + tower.centred(texts)[0]
    assert np.abs(found.mean(0) - expected).max() < 0.1
    assert found.std(0).min() > 0.05


def test_the_nearest_of_the_candidates_is_chosen() -> None:
    embedding_ND, captions = made()
    tower = TextTower(embedding_ND, captions)
    found = [Candidate(text, (1,), 0.0, "stop") for text in ("blue sea .", "red dog there .")]
    at = next(
        n for n, (said,) in enumerate(captions) if said.startswith("dog red") and "sea" not in said
    )
    image_D = torch.from_numpy(embedding_ND[at])
    assert flickr8k.likeliest(found, image_D) == "blue sea"
    assert flickr8k.nearest(tower)(found, image_D) == "red dog there"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/flickr8k")
def test_the_photographs_are_split_and_their_captions_read() -> None:
    training, held_out, texts = flickr8k_data.read(FOLDER)
    assert (len(training.embedding_ND), len(held_out.embedding_ND)) == (681, 150)
    assert {len(one) for one in training.captions + held_out.captions} == {5}
    assert torch.allclose(training.embedding_ND.norm(dim=1), torch.ones(681))
    assert len(texts) == 25020
    known = {text for one in training.captions for text in one}
    unseen = {flickr8k_data.plain(text) for one in held_out.captions for text in one}
    assert len(known & unseen) < 0.02 * len(unseen)  # short ones that many people write
    tokenizer = flickr8k_data.tokenizer([*texts, *known])
    ids = tokenizer(" ".join(unseen), add_special_tokens=False)["input_ids"]
    share = ids.count(tokenizer.unk_token_id) / len(ids)
    assert share < 0.03
