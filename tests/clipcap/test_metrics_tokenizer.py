"""The tokenizer: the words that Stanford CoreNLP 3.4.1 and pycocoevalcap make of captions.

What is expected here was written by that program, not by this one.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from clipcap.metrics import tokenizer
from clipcap.metrics.tokenizer import tokenize

DATA = Path(__file__).parents[3] / "shared" / "data"
ABSENT = "needs ../shared/data, which is not here"
FLICKR_SHA256 = "c81fcf09aec47a7b612a949af47e726eb22b7583dcd94fa84b0270c3985ad4bb"
COCO_SHA256 = "ea3428b08f4f847b5ce92e0adc568e158eca7125ab9f4d6a615f0814acc20d0f"
# fmt: off
HARD = [
    ("A man's t-shirt can't be washed, cannot it?",
     "a man 's t-shirt ca n't be washed can not it"),
    ("They're gonna wanna leave; lemme see, I've gotta go.",
     "they 're gon na wan na leave lem me see i 've got ta go"),
    ("He lives on 5th St. in St. Louis, U.S.A.", "he lives on 5th st. in st. louis u.s.a."),
    ("It costs $5 or £3.50 or 5¢, not 1,000 (US$5).",
     "it costs $ 5 or # 3.50 or 5 cents not 1,000 -lrb- us$ 5 -rrb-"),
    ("1/2 cup and 3/4, and/or 1½ cups", "1/2 cup and 3/4 and/or 1 1/2 cups"),
    ('"Hello," he said. ‘Hi’ “there”', "hello he said hi there"),  # noqa: RUF001
    ("wait... and … then -- so – on — end!!", "wait and then so on end !!"),  # noqa: RUF001
    ("see http://www.example.com/a?b=c, example.com or foo@bar.com",
     "see http://www.example.com/a?b=c example.com or foo@bar.com"),
    ("Emoji 😀 dog🐶s ❤️ ok :) <3", "emoji dog s ❤ ok :-rrb- < 3"),
    ("AT&T R&B's [a] {b} (c) #tag @user 100% a/b b/w",
     "at&t r&b 's -lsb- a -rsb- -lcb- b -rcb- -lrb- c -rrb- #tag @user 100 % a/b b/w"),
    ("It’s the dog’s ball, isn’t it? I don’t know",  # noqa: RUF001
     "it 's the dog 's ball is n't it i do n't know"),
    ("rock 'n' roll in the '90s, 90's o'clock O'Neil goin'",
     "rock 'n' roll in the '90s 90 's o'clock o'neil goin"),
    ("Mr. Smith and Dr. Jones Jr. at 5:30 p.m. etc.",
     "mr. smith and dr. jones jr. at 5:30 p.m. etc."),
    ("No. 5 and no. It is no.", "no. 5 and no it is no"),
    ("café naïve São José's 日本 русский", "café naïve são josé 's 日本 русский"),
    ("a 12-year-old at 3.5 mph, 4x4 F-16 mp3 2nd place",
     "a 12-year-old at 3.5 mph 4x4 f-16 mp3 2nd place"),
    ("'tis 'twas ain't shouldn't've mother-in-law's",
     "'t is 't was ai n't should n't 've mother-in-law 's"),
    ("bird 's-eye-view snow-covered's", "bird 's eye-view snow-covered 's"),
    ("a man in an R.V.", "a man in an r.v."),
    ("Ph.D. students vs. co.at etc.a", "ph.d. students vs. co.at etc. a"),
    ("c++ C# 5'10\" tall, T'ree pe'ople y'all", "c++ c# 5 10 tall t'ree pe'ople y' all"),
]
# fmt: on


@pytest.mark.parametrize(("caption", "words"), HARD)
def test_hard_captions_have_the_words_of_the_ptb_tokenizer(caption: str, words: str) -> None:
    assert tokenize(caption) == words.split()


@pytest.mark.parametrize("caption", ["", " ", "\n\t", ".", "... -- !", "“”", "\u200b"])
def test_a_caption_of_marks_alone_has_no_words(caption: str) -> None:
    assert tokenize(caption) == []


def test_a_second_look_gives_the_same_words() -> None:
    for caption, words in [*HARD, *HARD]:
        assert tokenize(caption) == words.split()


def test_every_flickr8k_caption_has_the_words_of_the_ptb_tokenizer() -> None:
    folder = DATA / "flickr8k"
    if not folder.is_dir():
        pytest.skip(ABSENT)
    lines = (folder / "captions.tsv").read_text("utf-8").splitlines()[1:]
    captions = [line.split("\t", 2)[2] for line in lines]
    captions += (folder / "captions_text_only.txt").read_text("utf-8").splitlines()
    assert len(captions) == 29_175
    assert digest(captions) == FLICKR_SHA256


def test_every_coco_caption_has_the_words_of_the_ptb_tokenizer() -> None:
    path = DATA / "coco_photos" / "annotations.json"
    if not path.is_file():
        pytest.skip(ABSENT)
    found = json.loads(path.read_text("utf-8"))["captions"]
    assert digest([text for texts in found.values() for text in texts]) == COCO_SHA256


def digest(captions: list[str]) -> str:
    """Return the digest of the words of all captions, a line each."""
    text = "\n".join(" ".join(tokenize(caption)) for caption in captions)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("piece", ["a", "a'", "<", "a@", "a-", "www.", "1,", "'", "😀", "a."])
def test_no_text_is_long_enough_to_hang_on(piece: str) -> None:
    began = time.process_time()
    tokenize(piece * (40_000 // len(piece)))
    assert time.process_time() - began < 5


def test_the_time_grows_with_the_length_and_not_with_its_square() -> None:
    began = time.process_time()
    assert len(tokenize("a'" * 60_000)) == 60_000
    assert time.process_time() - began < 8  # 25 s where it is looked at as a whole


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_MOST_KEPT", 10)
    monkeypatch.setattr(tokenizer, "_KNOWN", {})
    for number in range(100):
        assert tokenize(f"word{number}'s x{number}") == [f"word{number}", "'s", f"x{number}"]
    tokenize("y" * 5_000)
    assert len(tokenizer._KNOWN) <= 10
    assert all(len(text) < 100 for text in tokenizer._KNOWN)
