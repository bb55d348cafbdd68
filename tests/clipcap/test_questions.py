"""Questions become statements: by their kind, in good English, and in any case to an end."""

from __future__ import annotations

import logging

import pytest

from clipcap import english
from clipcap.errors import SettingsError
from clipcap.questions import MOST_ANSWERS, understood
from clipcap.statements import MOST_COUNTED, NEUTRAL

KINDS = [
    ("what colour is the car?", "red", "quality", "a red car"),
    ("What color is the umbrella", "orange", "quality", "an orange umbrella"),
    ("which colour are the flowers?", "red", "quality", "red flowers"),
    ("What's the colour of the man's hat?", "red", "quality", "the man's hat is red"),
    ("what shape is the sign?", "round", "quality", "a round sign"),
    ("what colour is it?", "red", "quality", "something red"),
    ("what is the table made of?", "wood", "quality", "a table made of wood"),
    ("what is the man doing?", "sleeping", "doing", "a man sleeping"),
    ("what are the dogs doing in the snow?", "playing", "doing", "dogs playing in the snow"),
    ("what is the man holding?", "umbrella", "object", "a man holding an umbrella"),
    (
        "what is the woman wearing on her head?",
        "hat",
        "object",
        "a woman wearing a hat on her head",
    ),
    ("where is the cat?", "on the sofa", "where", "a cat on the sofa"),
    ("where is the cat?", "kitchen", "where", "a cat in the kitchen"),
    ("where is the cat?", "Paris", "where", "a cat in Paris"),
    ("where is the cat?", "outside", "where", "a cat outside"),
    ("where is the cat?", "beach", "where", "a cat on the beach"),
    ("where are the two cats?", "a box", "where", "two cats in a box"),
    ("where was this photo taken?", "forest", "place", "a photo taken in the forest"),
    ("where is this?", "at night", "place", "a scene at night"),
    ("what kind of dog is this?", "poodle", "kind", "a photo of a poodle, a kind of dog"),
    ("what breed is the dog?", "poodle", "kind", "a poodle dog"),
    ("what type of vehicle is on the road?", "bus", "kind", "a bus on the road"),
    ("what is in the picture?", "apples", "thing", "there are apples here"),
    ("what is this?", "umbrella", "thing", "an umbrella"),
    ("what can you see in this image?", "umbrella", "thing", "an umbrella"),
    ("what is on the table?", "cup", "thing", "a cup on the table"),
    ("what is this a picture of?", "cup", "thing", "a cup"),
    ("who is riding the horse?", "man", "who", "a man riding the horse"),
    ("who is riding the horse?", "Anna", "who", "Anna riding the horse"),
    ("who wears a hat?", "woman", "who", "a woman wears a hat"),
    ("which animal is on the sofa?", "cat", "which", "a cat on the sofa"),
    ("which animal is this?", "owl", "which", "a photo of an owl, a kind of animal"),
    ("what time of day is it?", "night", "time", "a picture at night"),
    ("what time of day is it?", "morning", "time", "a picture in the morning"),
    ("when was this photo taken?", "sunset", "time", "a photo taken at sunset"),
    ("what is the weather like?", "sunny", "weather", "a sunny day"),
    ("how's the weather?", "rainy", "weather", "rainy weather"),
    ("which season is it?", "winter", "season", "a picture taken in winter"),
    ("what room is this?", "kitchen", "room", "the inside of a kitchen"),
    ("how many cats are there?", "2", "count", "two cats"),
    ("how many cats are there?", "two", "count", "2 cats"),
    ("how many cats are there?", "1", "count", "one cat"),
    ("how many people are wearing hats?", "3", "count", "three people wearing hats"),
    ("How many boxes do you see in the picture?", "1", "count", "one box"),
    ("how many pieces of cake are on the table?", "2", "count", "two pieces of cake on the table"),
    ("how many legs does the cat have?", "4", "count", "a cat with four legs"),
    ("how many cats?", "many", "count", "many cats"),
    ("how many fish can be seen?", "25", "count", "25 fish"),
    ("what colour is the car?!?", "red", "quality", "a red car"),
    ('  "WHAT COLOUR IS THE CAR?"  ', "red", "quality", "a red CAR"),
    ("why is the cat sad?", "hunger", "general", "why is the cat sad? hunger"),
    ("De quelle couleur est la voiture ?", "rouge", "general", "rouge"),
    ("汽车是什么颜色", "红色", "general", "汽车是什么颜色 红色"),
    ("какого цвета машина?", "красная", "general", "какого цвета машина? красная"),
    ("car colour", "red", "general", "car colour red"),
]


@pytest.mark.parametrize(("text", "answer", "kind", "statement"), KINDS)
def test_an_answer_makes_a_statement(text: str, answer: str, kind: str, statement: str) -> None:
    found = understood(text, [answer])
    assert (found.kind, found.answers) == (kind, (answer,))
    assert statement in found.statements[0]
    assert len(set(found.statements[0])) == len(found.statements[0])
    assert not any("{" in text or "  " in text for text in found.statements[0])


JUDGED = [
    ("is there a cat?", "there is a cat", None),
    ("are there any cats in the snow?", "cats in the snow", None),
    ("is there an umbrella in the picture?", "an umbrella", None),
    ("can you see a dog?", "a dog", None),
    ("does this photo show a dog?", "a dog", None),
    ("Is there water?", "water", None),
    ("is it raining?", "it is raining", None),
    ("is this a kitchen?", "a picture of a kitchen", None),
    ("isn't there a dog?", "there is a dog", None),
    ("don't you see a dog?", "a dog", None),
    ("does it rain?", "it rains", None),
    ("Is the car red?", "a red car", "a car"),
    ("isn\u2019t the car red?", "a red car", "a car"),
    ("doesn't the man wear a hat?", "a man wears a hat", "a man"),
    ("are the man and the woman smiling?", "a man and the woman smiling", "a man and the woman"),
    ("is the man wearing a hat?", "a man wearing a hat", "a man"),
    ("is the building tall?", "a tall building", "a building"),
    ("are the cats on the sofa?", "cats on the sofa", "cats"),
    ("does the man wear a hat?", "a man wears a hat", "a man"),
    ("has the dog a collar?", "a dog with a collar", "a dog"),
    ("can the bird fly away?", "a bird can fly away", "a bird"),
]


@pytest.mark.parametrize(("text", "yes", "subject"), JUDGED)
def test_a_yes_no_question_needs_no_answers(text: str, yes: str, subject: str | None) -> None:
    for answers in ((), ("Yes", "No")):
        found = understood(text, answers)
        assert (found.kind, found.answers) == ("yes_no", ("yes", "no"))
        assert yes in found.statements[0]
        if subject is None:
            assert found.otherwise == 1
            assert found.subject == found.statements[0]
        else:
            assert subject in found.subject
            assert found.statements[1] == found.subject
            assert found.otherwise is None


def test_nothing_is_told_by_a_negation() -> None:
    texts = [text for question, _, _ in JUDGED for said in understood(question).statements
             for text in said]  # fmt: skip
    texts += [text for said in understood("how many cats are there?").statements for text in said]
    assert not [text for text in texts if {"no", "not", "zero", "0"} & set(text.split())]


def test_this_or_that_is_answered_by_both() -> None:
    found = understood("Is the car red or blue?")
    assert (found.kind, found.answers) == ("either", ("red", "blue"))
    assert "a blue car" in found.statements[1]
    assert "a car" in found.subject
    other = understood("is this a cat or a dog?")
    assert (other.answers, other.subject) == (("a cat", "a dog"), ())
    assert understood("is the car red or blue?", ["red", "blue", "green"]).answers[2] == "green"


@pytest.mark.parametrize(
    ("text", "answers", "statement", "subject"),
    [
        ("is the car red, blue or green?", ("red", "blue", "green"), "a green car", "a car"),
        ("is the car red, dark, or green?", ("red", "dark", "green"), "a dark car", "a car"),
        ("is it a cat, a dog, or a bird?", ("a cat", "a dog", "a bird"), "a bird", None),
        ("is this a cat or a dog or a bird?", ("a cat", "a dog", "a bird"), "a cat", None),
    ],
)
def test_this_that_or_another_is_answered_by_all(
    text: str, answers: tuple[str, ...], statement: str, subject: str | None
) -> None:
    found = understood(text)
    assert (found.kind, found.answers) == ("either", answers)
    assert statement in sum(found.statements, ())
    assert found.subject[:1] == ((subject,) if subject else ())


@pytest.mark.parametrize(
    "text",
    ["is there no cat?", "is there not a cat?", "is the car not red?", "are there no people here?",
     "does the man not wear a hat?", "has the dog no collar?", "is there nobody on the beach?"],
)  # fmt: skip
def test_a_negation_is_not_answered_the_wrong_way_round(text: str) -> None:
    """`no cat` fits a picture of a cat best: CLIP reads no `no`."""
    for answers in ([], ["yes", "no"]):
        with pytest.raises(SettingsError, match="without `no` and `not`"):
            understood(text, answers)
    assert understood("is there a no smoking sign?").kind == "yes_no"


def test_counting_without_answers_goes_from_0_to_10() -> None:
    found = understood("how many cats are there?")
    assert found.answers == tuple(str(n) for n in range(MOST_COUNTED + 1))
    assert found.otherwise == 0
    assert {"a cat", "cats"} <= set(found.subject)
    for none in ("0", "none", "no", "Zero"):
        assert understood("how many cats?", ["1", none]).otherwise == 1


def test_what_the_question_speaks_of_is_told_apart_from_its_answers() -> None:
    assert "a car" in understood("what colour is the car?", ["red"]).subject
    assert understood("what is in the picture?", ["a cat"]).subject == ()
    assert understood("what colour is the car?", ["red"]).neutral == NEUTRAL
    assert understood("ça va ?", ["oui"]).neutral[0] == "ça va ?"


def test_answers_that_are_blank_or_the_same_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="clipcap"):
        found = understood("what colour is it?", ["red", " ", "Red", "blue", "red", "\t"])
    assert found.answers == ("red", "blue")
    assert "4 answers are blank or stand twice; 2 are left" in caplog.text
    caplog.clear()
    assert understood("how many cats?", ["2", "two", "3"]).answers == ("2", "3")
    assert "some answers mean the same; 2 are left" in caplog.text


def test_answers_may_hold_anything() -> None:
    odd = ["{}", "{answer}", "red, or pink", "a\x00b", "<b>", "%s", "\u202ered", "🚗", "x" * 500]
    found = understood("what colour is the {car}?", odd)
    assert len(found.answers) == len(odd)
    assert "a {answer} {car}" in found.statements[1] or "{answer} {car}" in found.statements[1]
    assert found.answers[3] == "a b"
    many = understood("what is this?", [f"thing {n}" for n in range(700)])
    assert len(many.statements) == 700


@pytest.mark.parametrize(
    ("text", "answers", "said"),
    [
        ("", ["red"], "There must be a question"),
        (" ?!", ["red"], "There must be a question"),
        ("what colour is the car?", [], "must have answers to choose from, but implies none"),
        ("who is riding?", [], "must have answers"),
        ("De quelle couleur ?", [], "must have answers"),
        ("what colour is the car?", ["", " "], "must say something, but all are blank"),
        ("how many cats?", ["0", "none"], "must have an answer that an image can show"),
        ("what is this?", [str(n) for n in range(MOST_ANSWERS + 1)], "at most 10,000 answers"),
    ],
)
def test_what_cannot_be_asked_is_an_error(text: str, answers: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        understood(text, answers)


def test_a_long_question_is_understood_in_no_time() -> None:
    for text in ("what is " * 5_000, "how many " + "a" * 50_000, "is the " + "x or " * 10_000):
        understood(text, ["red"])


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("box", "boxes"), ("bus", "buses"), ("baby", "babies"), ("boy", "boys"),
        ("man", "men"), ("person", "people"), ("fish", "fish"), ("glass", "glasses"),
        ("horse", "horses"), ("leaf", "leaves"), ("dish", "dishes"), ("church", "churches"),
        ("red car", "red cars"), ("piece of cake", "pieces of cake"), ("house", "houses"),
    ],
)  # fmt: skip
def test_plurals_go_both_ways(one: str, many: str) -> None:
    assert (english.plural(one), english.singular(many)) == (many, one)
    assert (english.plural(many), english.singular(one)) == (many, one)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cat", "a cat"), ("apple", "an apple"), ("hour", "an hour"), ("unicorn", "a unicorn"),
        ("cats", "cats"), ("the cat", "the cat"), ("two cats", "two cats"), ("Paris", "Paris"),
        ("snow", "snow"), ("one-eyed cat", "a one-eyed cat"), ("bus", "a bus"), ("", ""),
        ("man with glasses", "a man with glasses"), ("glass", "a glass"), ("2 cats", "2 cats"),
    ],
)  # fmt: skip
def test_an_article_stands_where_it_belongs(words: str, said: str) -> None:
    assert english.an(words) == said
