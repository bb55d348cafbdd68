"""Captions of some words alone, with others in them, without others; words and pieces of words."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcap import models, registry, wordlists
from clipcap.candidates import Candidate
from clipcap.captioner import Captioner, load
from clipcap.cards import Choice
from clipcap.errors import SettingsError
from clipcap.rules import Rules, rules
from clipcap.stages.caption import CaptionSettings
from tests.bytepairs import pair_captioner
from tests.captioners import embeddings, tiny_captioner

IMAGES = 5
LISTED = ("a", "cat", "catalogue", "t-shirt", "giraffe", "café", "hot dog")
SAID = (" a", " cat", " catalogue", " t-shirt", " giraffe", " café", " hot dog", ".", ",", " the")
DECODERS = registry.names("clipcap.decoders")


@cache
def captioner(kind: str) -> Captioner:
    """Return one of `words`, or of `tiny` or `gpt2` byte pairs."""
    if kind == "words":
        return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)
    return pair_captioner(kind, dict.fromkeys(SAID, 6.0))


@torch.inference_mode()
def decode(kind: str, name: str, **settings: Any) -> list[list[Candidate]]:  # noqa: ANN401
    """Return the candidates of each image."""
    decoder = registry.load("clipcap.decoders", name)
    usual = {"max_tokens": 12} | ({"captions": 2} if name == "nucleus" else {})
    one = captioner(kind)
    prefix_NPE = one.prefix(10 * embeddings(IMAGES))
    found: list[list[Candidate]] = decoder.decode(
        one, prefix_NPE, decoder.Settings(**usual | settings), slots=4
    )
    return found


def texts(found: list[list[Candidate]]) -> list[str]:
    return [candidate.text for candidates in found for candidate in candidates]


def has(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def others(text: str, listed: tuple[str, ...]) -> str:
    """Return what is left of a text when words of a list, punctuation and space are gone."""
    longest_first = sorted(listed, key=len, reverse=True)
    words = "|".join(re.escape(word) for word in longest_first)
    return re.sub(rf"\b({words})\b|[^\w\ufffd]", "", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
@pytest.mark.parametrize("name", DECODERS)
def test_pieces_make_only_words_of_the_list(name: str, kind: str) -> None:
    usual = texts(decode(kind, name))
    assert any(others(text, LISTED) for text in usual)
    found = [
        text
        for limit in (1, 2, 5)
        for text in texts(decode(kind, name, only=LISTED, max_tokens=limit))
    ]
    assert [text for text in found if others(text, LISTED)] == []
    said = {word for word in LISTED if any(has(word, text) for text in found)}
    assert len(said) >= (1 if name == "greedy" else 3), "or the test proves little"


@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
def test_every_word_of_a_list_may_come_in_all_its_spellings(kind: str) -> None:
    one = captioner(kind)
    wording = registry.load("clipcap.decoders", "greedy").Settings(only=LISTED, max_tokens=40)
    logits_V = torch.zeros(1, len(one.tokenizer))
    for text in ("a giraffe, (cat) at", "A T-shirt cat-catalogue.", 'Café hot dog "catalogue'):
        tokens = one.tokenizer.encode(text, add_special_tokens=False)
        allowed = [
            bool(rules(wording, one).allowed(logits_V, [tokens[:at]])[0, token] == 0)
            for at, token in enumerate(tokens)
        ]
        is_last_word_other = text.endswith(" at")
        assert all(allowed[:-1] if is_last_word_other else allowed), text
        assert allowed[-1] is not is_last_word_other


@pytest.mark.parametrize("name", DECODERS)
def test_whole_words_of_a_list_alone_come(name: str) -> None:
    listed = ("a", "cat", "boat", "red", "zebra")
    assert any(others(text, listed) for text in texts(decode("words", name)))
    found = texts(decode("words", name, only=listed, no_repeat=3, min_tokens=5))
    assert [text for text in found if others(text, listed)] == []
    said = [word for word in listed if any(has(word, text) for text in found)]
    assert len(said) >= (1 if name == "greedy" else 3)


def test_fewer_words_than_beams_give_fewer_candidates() -> None:
    for candidates in decode("words", "beam", only=["boat"], max_tokens=1):
        assert {one.text for one in candidates} == {"boat", ".", "!"}


def test_a_list_lies_in_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\n\ncat\nboat\n  red \nzebra\n", encoding="utf-8")
    for text in ("a\n\ncat\nboat\n  red \n", "dog\nhouse\n"):
        (tmp_path / "words.txt").write_text(text, encoding="utf-8")
        listed = decode("words", "beam", only=text.split())
        assert decode("words", "beam", only=str(tmp_path / "words.txt")) == listed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"\n \n", "has no word"),
        (b"caf\xe9\n", "must be UTF-8"),
        (b"zebra", "knows"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        decode("words", "greedy", only=str(tmp_path / "words.txt"))


@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
@pytest.mark.parametrize("name", DECODERS)
def test_no_spelling_of_a_word_that_is_never_wanted_comes(name: str, kind: str) -> None:
    never = LISTED[1:]
    usual = texts(decode(kind, name, min_tokens=8, no_repeat=1))
    assert name == "greedy" or any(has(word, text) for text in usual for word in never)
    found = texts(decode(kind, name, never=never, min_tokens=8, no_repeat=1))
    assert found
    assert not any(has(word, text) for text in found for word in never)


def test_a_word_that_is_pieced_together_leaves_with_its_caption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = pair_captioner("tiny", {"c": 9.0, "at": 9.0, ".": 8.0})
    pieces = (*one.tokenizer.encode("c"), *one.tokenizer.encode("at"))
    assert pieces not in one.spellings("cat")
    beam = registry.load("clipcap.decoders", "beam")
    never = beam.Settings(max_tokens=3, beam_size=30, never=["cat"])

    @torch.inference_mode()
    def found() -> list[str]:
        return texts(beam.decode(one, one.prefix(10 * embeddings(IMAGES)), never))

    assert found()
    assert not any(has("cat", text) for text in found())
    monkeypatch.setattr(Rules, "suits", lambda _self, _text: True)
    assert any(has("cat", text) for text in found())


@pytest.mark.parametrize("kind", ["words", "tiny", "gpt2"])
def test_every_candidate_has_the_words_that_it_must_have(kind: str) -> None:
    must = ("boat", "red ball") if kind == "words" else ("giraffe", "hot dog")
    assert not all(has(word, text) for text in texts(decode(kind, "beam")) for word in must)
    found = decode(kind, "beam", must=must)
    assert [len(candidates) for candidates in found] == [5] * IMAGES
    assert all(has(word, text) for text in texts(found) for word in must)
    for candidates in found:
        assert len({one.token_ids for one in candidates}) == 5
        scores = [one.logprob_mean for one in candidates]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", ["words", "tiny"])
def test_what_must_come_comes_even_where_there_is_just_room(kind: str) -> None:
    must = ("boat", "red ball") if kind == "words" else ("giraffe", "hot dog")
    one = captioner(kind)
    shortest = sum(len(one.tokenizer.encode(f" {word}")) for word in must)
    for limit in (shortest, shortest + 1, shortest + 3):
        for candidates in decode(kind, "beam", must=must, max_tokens=limit):
            assert candidates
            assert all(has(word, found.text) for word in must for found in candidates)
    with pytest.raises(SettingsError, match=f"{shortest} tokens, more than `max_tokens`"):
        decode(kind, "beam", must=must, max_tokens=shortest - 1)


@pytest.mark.parametrize(
    ("pieces", "has_come"),
    [
        ([" cat"], True), (["cat"], True), (["a", " Cat", "."], True), ([" cat", " a"], True),
        (["a", " (", "cat", ")"], True), ([" cat", "s"], False), ([" cat", "alogue"], False),
        (["bob", "cat"], False), ([" cat", "s", " cat"], True),
    ],
)  # fmt: skip
def test_a_longer_word_is_not_the_word_that_must_come(pieces: list[str], *, has_come: bool) -> None:
    one = captioner("tiny")
    must = rules(registry.load("clipcap.decoders", "beam").Settings(must=["cat"]), one).must
    tokens = [token for piece in pieces for token in one.tokenizer.encode(piece)]
    assert must.is_met(must.place(tokens)) == has_come


def test_the_last_word_stays_itself_where_there_is_no_room_for_another_one() -> None:
    one = captioner("tiny")
    cat, [glued], [stop] = (one.tokenizer.encode(text) for text in (" cat", "s", "."))
    for limit, may_come in ((len(cat) + 1, False), (len(cat) + 5, True)):
        wording = registry.load("clipcap.decoders", "beam").Settings(must=["cat"], max_tokens=limit)
        left_V = rules(wording, one).allowed(torch.zeros(1, len(one.tokenizer)), [cat])[0]
        assert (left_V[glued] == 0) == may_come
        assert left_V[stop] == 0


def test_what_must_come_may_come_though_its_pieces_have_come() -> None:
    one = captioner("tiny")
    first, *rest = one.tokenizer.encode(" hot dog")
    [comma] = one.tokenizer.encode(",")
    assert rest
    wording = registry.load("clipcap.decoders", "beam").Settings(must=["hot dog"], no_repeat=1)
    left_V = rules(wording, one).allowed(torch.zeros(1, len(one.tokenizer)), [[first, comma]])[0]
    assert left_V[first] == 0
    assert left_V[comma] == -torch.inf


@torch.inference_mode()
def test_of_all_captions_with_a_word_the_best_is_found() -> None:
    """Every caption of three tokens is scored; a beam of all words sees nearly all of them."""
    one = captioner("words")
    size, [stop] = len(one.tokenizer), one.tokenizer.encode(".")
    [boat] = one.tokenizer.encode("boat")
    ids = torch.cartesian_prod(*[torch.arange(size)] * 3)
    is_over_NT = (ids == stop).int().cumsum(1) - (ids == stop).int() > 0
    has_boat_N = ((ids == boat) & ~is_over_NT).any(1)
    ids, is_over_NT = ids[has_boat_N], is_over_NT[has_boat_N]
    found = decode("words", "beam", must=["boat"], max_tokens=3, beam_size=size)
    for row, candidates in zip(embeddings(IMAGES), found, strict=True):
        prefix = one.prefix(10 * row[None]).expand(len(ids), -1, -1)
        read = torch.cat((prefix, one.language_model.get_input_embeddings()(ids)), 1)
        logp = one.language_model(inputs_embeds=read).logits.log_softmax(-1)
        spoken_NT = logp[:, prefix.shape[1] - 1 : -1].gather(2, ids[:, :, None])[:, :, 0]
        spoken_NT[is_over_NT] = 0
        best = (spoken_NT.sum(1) / (~is_over_NT).sum(1)).max()
        assert candidates[0].logprob_mean == pytest.approx(float(best), abs=1e-4)


def test_a_caption_that_has_the_words_anyway_is_not_lost() -> None:
    wished = decode("words", "beam", must=["sea"])
    compared = 0
    for before, after in zip(decode("words", "beam"), wished, strict=True):
        having = [one for one in before if has("sea", one.text)]
        for one in having:
            compared += 1
            assert after[0].logprob_mean >= one.logprob_mean - 1e-5
    assert compared


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"must": ["zebra"]}, "'zebra' is not"),
        ({"must": ["red boat"], "never": ["boat"]}, "`must` has 'red boat', but `never`"),
        ({"must": ["boat"], "only": ["red"]}, "`must` has 'boat', but `never`, `only`"),
        ({"only": ["boat"], "never": ["boat"]}, "`only` must have a word"),
    ],
)
def test_wishes_that_exclude_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        decode("words", "beam", **settings)


@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"beam"}))
def test_a_decoder_that_does_not_search_names_the_one_that_does(name: str) -> None:
    one = tiny_captioner()
    with pytest.raises(SettingsError, match="choose the decoder `beam`"):
        one.caption(embeddings(1), decode=Choice(name=name, settings={"must": ["boat"]}))


def test_all_wishes_hold_together() -> None:
    listed = ("a", "red", "ball", "cat", "on", "the", "grass")
    found = texts(
        decode(
            "words", "beam", only=listed, must=["red ball", "cat"], never=["on"], no_repeat=2,
            end_on_sentence=True,
        )
    )  # fmt: skip
    assert [text for text in found if others(text, listed)] == []
    assert all(has("red ball", text) and has("cat", text) for text in found)
    assert not any(has("on", text) for text in found)


def examples() -> list[dict[str, Any]]:
    """Return the settings that the page on captions shows."""
    page = (Path(__file__).parents[2] / "docs" / "captions.md").read_text(encoding="utf-8")
    return [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)]


def test_the_settings_that_the_page_shows_are_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "a the gun ball red on grass"
    (tmp_path / "words.txt").write_text(words.replace(" ", "\n"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    bundled = load(models.captioner_folder(models.BUNDLED))
    embedding = torch.nn.functional.normalize(torch.ones(1, bundled.card.encoder.dim))
    shown = [CaptionSettings.model_validate(one["caption"]).decode for one in examples()]
    assert {name for one in shown if one for name in one.settings} >= {"only", "must"}
    for one in filter(None, shown):
        settings: dict[str, Any] = {**one.settings}
        settings.pop("never", None)  # words that the bundled captioner does not know
        [found] = bundled.caption(embedding, decode=Choice(name=one.name, settings=settings))
        for text in texts([found]):
            assert all(has(word, text) for word in settings.get("must", ()))
            assert "only" not in settings or not others(text, tuple(words.split()))


def test_no_address_is_no_list() -> None:
    assert wordlists.digests({"only": ""}) == {}
