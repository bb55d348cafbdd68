"""`clipcap labels`: what is bundled, what is wrong with a file, and a draft from an output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipcap.labels import bank, sets, templates
from clipcap.labels.sets import Label, LabelSet
from tests.command import clipcap
from tests.nights import Tiny, draw, night

BAD = 'names = ["cat",\n"Cat",\n""]\ntemplates = ["a photo"]\n'


def test_the_list_has_every_set_and_template_list_with_where_it_is_from() -> None:
    told = json.loads(clipcap("labels", "list", "--json").out)
    assert [one["name"] for one in told["label_sets"]] == sets.bundled()
    assert [one["name"] for one in told["template_lists"]] == templates.bundled()
    assert all(one["source"] and one["licence"] for group in told.values() for one in group)
    imagenet = next(one for one in told["label_sets"] if one["name"] == "imagenet_1k")
    assert (imagenet["labels"], imagenet["groups"], imagenet["texts"]) == (1000, 0, 80_000)
    shown = clipcap("labels", "list")
    assert shown.code == 0
    assert all(name in shown.out for name in (*sets.bundled(), *templates.bundled()))


def test_one_set_or_list_is_shown_whole() -> None:
    shown = clipcap("labels", "list", "coco_80").out
    assert "vehicle\n  bicycle\n  car" in shown
    assert "none of these: landscape" in shown
    assert len(clipcap("labels", "list", "imagenet_80").out.splitlines()) == 82
    assert len(json.loads(clipcap("labels", "list", "places", "--json").out)["names"]) == 211
    assert json.loads(clipcap("labels", "list", "plain", "--json").out)["templates"] == ["{}"]
    ended = clipcap("labels", "list", "coco_8")
    assert ended.code == 2
    assert "Did you mean coco_80?" in ended.err


def test_check_says_every_problem_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD)
    ended = clipcap("labels", "check", tmp_path / "bad.toml")
    assert ended.code == 2
    lines = ended.out.splitlines()
    assert [line.partition("bad.toml:")[2].partition(":")[0] for line in lines[:3]] == list("234")
    assert lines[3] == "3 problems; nothing can be labelled with it"
    told = clipcap("labels", "check", tmp_path / "bad.toml", "--json")
    assert told.code == 2
    assert [one["line"] for one in json.loads(told.out)["problems"]] == [2, 3, 4]
    gone = clipcap("labels", "check", tmp_path / "gone.toml")
    assert gone.code == 2
    assert "gone.toml is not there" in gone.err


def test_check_says_what_a_right_one_would_do(tmp_path: Path) -> None:
    (tmp_path / "pets.toml").write_text(
        'names = ["cat", "dog", {name = "bat", threshold = 0.5, templates = "plain"}]\n'
        'background = ["house"]\ntemplates = "imagenet_7"\n'
    )
    ended = clipcap("labels", "check", tmp_path / "pets.toml")
    assert ended.code == 0
    assert "pets is right: 3 labels, 1 background names" in ended.out
    assert "22 to encode" in ended.out
    assert "note      there is no source and no licence" in ended.out
    told = json.loads(clipcap("labels", "check", "safety", "--json").out)
    assert told["ok"]
    assert told["notes"] == []


def test_a_draft_is_proposed_and_never_written_over(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(8):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    night(tmp_path / "in", tmp_path / "out", tiny)
    asked = ["labels", "propose", tmp_path / "out", "--to", tmp_path / "my draft.toml"]
    asked += ["--clusters", 3, "--model", tiny.encoder.model]
    ended = clipcap(*asked)
    assert ended.code == 0, ended.err
    assert "3 kinds among 8 of 8 images" in ended.out
    assert sets.load(str(tmp_path / "my draft.toml")).name == "my-draft"
    again = clipcap(*asked)
    assert again.code == 2
    assert "is there already" in again.err
    asked[4] = tmp_path / "second.toml"
    told = json.loads(clipcap(*asked, "--json").out)
    assert sum(one["images"] for one in told["clusters"]) == told["images"] == 8
    asked[4] = tmp_path / "draft.json"
    assert "must be called .toml" in clipcap(*asked).err


def test_check_knows_a_fitted_label_set(tmp_path: Path) -> None:
    label_set = LabelSet(name="pets", labels=(Label(name="cat"), Label(name="dog")))
    made = bank.in_words(label_set, np.eye(2, 4, dtype=np.float32), scale=10.0)
    made = replace(made, model_id="some-clip", model_sha256="ab" * 32)
    (tmp_path / "pets.parquet").write_bytes(bank.to_bytes(made))
    ended = clipcap("labels", "check", tmp_path / "pets.parquet")
    assert ended.code == 0, ended.err
    assert "pets is right: 2 labels, fitted\nmodel     some-clip, weights abababababab" in ended.out
    told = json.loads(clipcap("labels", "check", tmp_path / "pets.parquet", "--json").out)
    assert (told["labels"], told["model_id"]) == (2, "some-clip")
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    assert clipcap("labels", "check", tmp_path / "other.parquet").code == 2


def test_a_label_set_that_is_new_is_told_by_itself(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(6):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    night(tmp_path / "in", tmp_path / "out", tiny)
    (tmp_path / "new.toml").write_text('names = ["cat", "dog"]')
    words = ("label", tmp_path / "out", "--model", tiny.encoder.model, "--label-set")
    assert clipcap(*words, tmp_path / "new.toml").code == 0
    (tmp_path / "other.toml").write_text('names = ["cat", "dog"]')
    ended = clipcap(*words, tmp_path / "new.toml", "--label-set", tmp_path / "other.toml")
    assert "6 images labelled in 2 shards with 1 label set," in ended.out + ended.err
