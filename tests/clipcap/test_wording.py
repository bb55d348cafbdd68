"""What a caption may say and when it ends, with every decoder."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from clipcap import registry
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner
from clipcap.errors import SettingsError
from tests.captioners import STOP, WORDS, embeddings, tiny_captioner

IMAGES = 40
pytestmark = pytest.mark.parametrize("name", registry.names("clipcap.decoders"))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)


@torch.inference_mode()
def decode(captioner: Captioner, name: str, **settings: Any) -> list[Candidate]:  # noqa: ANN401
    """Return the candidates of all images."""
    decoder = registry.load("clipcap.decoders", name)
    chosen = decoder.Settings(**{"max_tokens": 12} | settings)
    found = decoder.decode(captioner, captioner.prefix(10 * embeddings(IMAGES)), chosen, slots=7)
    return [candidate for candidates in found for candidate in candidates]


def words(found: list[Candidate]) -> set[str]:
    return {word for candidate in found for word in candidate.text.replace(".", "").split()}


def runs(tokens: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [tokens[at : at + size] for at in range(len(tokens) - size + 1)]


def test_a_word_that_is_never_wanted_never_comes(captioner: Captioner, name: str) -> None:
    usual = sorted(words(decode(captioner, name)))[:3]
    assert len(usual) == 3
    found = decode(captioner, name, never=usual)
    assert found
    assert not words(found) & set(usual)


def test_a_phrase_that_is_never_wanted_never_comes_but_its_words_may(
    captioner: Captioner, name: str
) -> None:
    pairs = [run for one in decode(captioner, name) for run in runs(one.token_ids, 2)]
    pair = next(run for run in pairs if STOP not in run and run[0] != run[1])
    phrase = captioner.text(pair)
    found = decode(captioner, name, never=[phrase])
    assert all(pair not in runs(one.token_ids, 2) for one in found)
    assert words(found) & set(phrase.split())


def test_no_run_of_tokens_comes_twice(captioner: Captioner, name: str) -> None:
    usual = decode(captioner, name, stop=WORDS[-1])
    assert any(len(set(runs(one.token_ids, 2))) < len(runs(one.token_ids, 2)) for one in usual)
    for size in (1, 2):
        for one in decode(captioner, name, no_repeat=size, stop=WORDS[-1]):
            assert len(set(runs(one.token_ids, size))) == len(runs(one.token_ids, size))


def test_no_caption_stops_too_early(captioner: Captioner, name: str) -> None:
    assert min(len(one.token_ids) for one in decode(captioner, name)) < 4
    found = decode(captioner, name, min_tokens=4)
    assert min(len(one.token_ids) for one in found) >= 4
    assert {one.finish_reason for one in found} == {"stop", "length"}


def test_several_texts_may_end_a_caption(captioner: Captioner, name: str) -> None:
    said = [one.text.replace(".", "").split() for one in decode(captioner, name)]
    other = Counter(word for text in said for word in text).most_common(1)[0][0]
    found = decode(captioner, name, stop=[".", other])
    [token] = captioner.tokenizer.encode(other, add_special_tokens=False)
    ends = {one.token_ids[-1] for one in found if one.finish_reason == "stop"}
    assert ends == {STOP, token}
    assert all(not {STOP, token} & set(one.token_ids[:-1]) for one in found)


def test_a_caption_that_was_cut_ends_with_its_last_sentence(
    captioner: Captioner, name: str
) -> None:
    ends = {captioner.stop_token(end) for end in (".", "!")}
    whole = decode(captioner, name, stop=WORDS[-1])
    found = decode(captioner, name, stop=WORDS[-1], end_on_sentence=True)
    expected = set()
    for before in whole:
        last = [at for at, token in enumerate(before.token_ids) if token in ends]
        is_cut = before.finish_reason == "length" and last
        expected.add(before.token_ids[: last[-1] + 1 if is_cut else None])
    assert {one.token_ids for one in found} == expected
    assert all(one.text == captioner.text(one.token_ids) for one in found)
    assert name == "greedy" or {one.token_ids for one in whole} != expected


@torch.inference_mode()
def test_log_probabilities_stay_the_models_own(captioner: Captioner, name: str) -> None:
    decoder = registry.load("clipcap.decoders", name)
    prefix = captioner.prefix(10 * embeddings(1))
    wished = decoder.Settings(max_tokens=12, no_repeat=1, never=[WORDS[27], WORDS[15]])
    for one in decoder.decode(captioner, prefix, wished)[0]:
        ids = torch.tensor([one.token_ids])
        read = captioner.language_model.get_input_embeddings()(ids)
        inputs = torch.cat((prefix, read), 1)
        logp = captioner.language_model(inputs_embeds=inputs).logits.log_softmax(-1)
        spoken = logp[0, prefix.shape[1] - 1 : -1].gather(1, ids[0, :, None])
        assert one.logprob_mean == pytest.approx(float(spoken.mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"never": ["zebra"]}, "'zebra' is not"), ({"stop": []}, "empty list")],
)
def test_wishes_that_make_no_sense_are_refused(
    captioner: Captioner, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        decode(captioner, name, **settings)
