"""`clipcap labels learn`: a handful of labelled images in, a label set for all the others out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipcap import embedding
from tests.command import Ended, clipcap
from tests.nights import Tiny, night

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 210), "grey": (128,) * 3}
COLD = (("red", "warm"), ("blue", "cold"), ("green", "cold"), ("violet", "cold"))
EACH, SHOWN = 8, 3


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of images of four colours."""
    folder = tmp_path_factory.mktemp("learn")
    (folder / "in").mkdir()
    for name, (red, green, blue) in COLOURS.items():
        for n in range(EACH):
            shade = (red + 4 * n, green + 3 * n, blue + 5 * n)
            Image.new("RGB", (32 + n, 32), shade).save(folder / "in" / f"{name}-{n}.png")
    night(folder / "in", folder / "out", tiny, max_images=40)
    return folder / "out"


def truth(path: Path, named: dict[str, str], shown: int = SHOWN) -> Path:
    """Write what is on the first images of each colour."""
    lines = [f"{colour}-{n}.png,{label}" for colour, label in named.items() for n in range(shown)]
    path.write_text("\n".join(["image,label", *lines]) + "\n")
    return path


def learn(out: Path, to: Path, labelled: Path, tiny: Tiny, *more: object) -> Ended:
    words = ("--truth", labelled, "--to", to, "--model", tiny.encoder.model, "--json")
    return clipcap("labels", "learn", out, *words, *more)


def answers(out: Path, label_set: Path, tiny: Tiny) -> dict[str, str | None]:
    """Label with a label set, without any encoder; return the accepted label of each image."""
    with patch.object(embedding, "load", side_effect=AssertionError("loaded an encoder")):
        done = clipcap("label", out, "--label-set", label_set, "--model", tiny.encoder.model)
    assert done.code == 0, done.err
    rows = pq.read_table(out / "labels" / f"labelset={label_set.stem}").to_pylist()
    names = {
        row["image_id"]: row["source_uri"] for row in pq.read_table(out / "manifest").to_pylist()
    }
    best = {row["image_id"]: row for row in rows if row["rank"] == 1}
    return {
        Path(names[image_id]).stem: row["label"] if row["accepted"] else None
        for image_id, row in best.items()
    }


@pytest.mark.parametrize("method", ["prototypes", "probe"])
def test_a_few_images_teach_a_label_set_that_labels_the_others(
    out: Path, tmp_path: Path, tiny: Tiny, method: str
) -> None:
    labelled = truth(tmp_path / "truth.csv", {name: name for name in ("red", "green", "blue")})
    ended = learn(out, tmp_path / f"{method}.parquet", labelled, tiny, "--method", method)
    assert ended.code == 0, ended.err
    told: dict[str, Any] = json.loads(ended.out)
    assert (told["method"], told["images"], told["none"], told["fewest"]) == (method, 9, 0, SHOWN)
    assert told["accuracy"] > 0.8
    found = answers(out, tmp_path / f"{method}.parquet", tiny)
    asked = [name for name in found if not name.startswith("grey")]
    right = [found[name] == name.partition("-")[0] for name in asked]
    assert sum(right) > 0.85 * len(right)


def test_images_of_none_of_the_labels_teach_what_none_is(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    named = {"red": "red", "blue": "blue", "grey": "", "green": ""}
    ended = learn(out, tmp_path / "two.parquet", truth(tmp_path / "t.csv", named), tiny)
    assert json.loads(ended.out)["none"] == 2 * SHOWN
    found = answers(out, tmp_path / "two.parquet", tiny)
    none = [name for name in found if name.startswith(("grey", "green"))]
    assert sum(found[name] is None for name in none) > 0.8 * len(none)
    assert {"red", "blue"} <= set(found.values())


def test_labels_keep_the_taxonomy_of_a_given_set(out: Path, tmp_path: Path, tiny: Tiny) -> None:
    words = tmp_path / "words.toml"
    lines = ['"warm"', *(f'{{name = "{name}", parent = "{of}"}}' for name, of in COLD), '"cold"']
    words.write_text(f"names = [{', '.join(lines)}]\n")
    named = {name: name for name in ("red", "green", "blue")} | {"grey": "cold"}
    labelled = truth(tmp_path / "t.csv", named)
    ended = learn(out, tmp_path / "tree.parquet", labelled, tiny, "--label-set", words)
    told = json.loads(ended.out)
    assert (told["left_out"], told["images"]) == (["violet"], 3 * SHOWN)
    assert told["missing_images"] == SHOWN, "of the grey ones only a group is known"
    found = answers(out, tmp_path / "tree.parquet", tiny)
    assert found["red-7"] in {"red", "warm"}
    assert found["blue-7"] in {"blue", "cold"}
    rows = pq.read_table(out / "labels" / "labelset=tree").to_pylist()
    warm = {row["image_id"]: row["score"] for row in rows if row["label"] == "warm"}
    red = {row["image_id"]: row["score"] for row in rows if row["label"] == "red"}
    assert warm
    assert all(red[one] == pytest.approx(score, abs=1e-6) for one, score in warm.items())


def test_images_with_several_labels_teach_labels_that_do_not_exclude_each_other(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    named = {"red": "red|warm", "blue": "blue", "green": "", "grey": ""}
    labelled = truth(tmp_path / "t.csv", named, shown=6)
    ended = learn(out, tmp_path / "both.parquet", labelled, tiny, "--method", "probe")
    assert ended.code == 0, ended.err
    answers(out, tmp_path / "both.parquet", tiny)
    rows = pq.read_table(out / "labels" / "labelset=both").to_pylist()
    held: dict[str, set[str]] = {}
    for row in rows:
        if row["accepted"]:
            held.setdefault(row["key"], set()).add(row["label"])
    assert {"red", "warm"} in held.values()
    refused = learn(out, tmp_path / "no.parquet", labelled, tiny, "--multi-label", "no")
    assert refused.code == 2
    assert "must have one label, but one has 'red' and 'warm'" in refused.err


def test_what_cannot_be_learnt_is_said(out: Path, tmp_path: Path, tiny: Tiny) -> None:
    labelled = truth(tmp_path / "t.csv", {"red": "red"})
    for to, more, words in (
        ("set.toml", (), "must end in .parquet"),
        ("-.parquet", (), "must end in .parquet"),
        ("set.parquet", (), "two labels at least"),
        ("set.parquet", ("--min-images", 9), "must have 9 images to be learnt"),
    ):
        ended = learn(out, tmp_path / to, labelled, tiny, *more)
        assert (ended.code, words in ended.err) == (2, True), ended.err
        assert "Traceback" not in ended.err
    (tmp_path / "t.csv").write_text("image,label\nred-0.png,\nblue-0.png,\n")
    ended = learn(out, tmp_path / "set.parquet", labelled, tiny)
    assert "must name something to learn" in ended.err


def test_embeddings_of_other_weights_are_refused(
    out: Path, tmp_path: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.nights import make_tiny

    labelled = truth(tmp_path / "t.csv", {"red": "red", "blue": "blue"})
    assert learn(out, tmp_path / "two.parquet", labelled, tiny).code == 0
    other = make_tiny(tmp_path_factory.mktemp("other"), 5)
    night(out.parent / "in", tmp_path / "elsewhere", other, max_images=40)
    ended = clipcap(
        "label", tmp_path / "elsewhere", "--label-set", tmp_path / "two.parquet",
        "--model", other.encoder.model,
    )  # fmt: skip
    assert ended.code == 2
    assert "must be fitted to the embeddings" in ended.err


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("Cat", "cat"), "only case or spaces differ"),
        (('"a\nb"', "cat"), "U+000A"),
        (("(none of these)", ""), "must be left empty"),
    ],
)
def test_labels_that_no_label_set_may_have_are_refused(
    out: Path, tmp_path: Path, tiny: Tiny, labels: tuple[str, str], told: str
) -> None:
    labelled = truth(tmp_path / "truth.csv", dict(zip(("red", "green"), labels, strict=True)))
    ended = learn(out, tmp_path / "mine.parquet", labelled, tiny)
    assert (ended.code, told in ended.err) == (2, True), ended.err
    assert not (tmp_path / "mine.parquet").exists()


def test_one_label_of_several_is_a_yes_or_no(out: Path, tmp_path: Path, tiny: Tiny) -> None:
    labelled = truth(tmp_path / "truth.csv", {"red": "red", "green": "", "blue": ""})
    ended = learn(out, tmp_path / "yes.parquet", labelled, tiny, "--multi-label", "yes")
    assert ended.code == 0, ended.err
    found = answers(out, tmp_path / "yes.parquet", tiny)
    assert {found[f"red-{n}"] for n in range(EACH)} == {"red"}
    assert {found[f"green-{n}"] for n in range(EACH)} == {None}
    ended = clipcap("labels", "list", tmp_path / "yes.parquet")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "red")


def test_a_label_with_what_it_is_a_kind_of_is_one_label(
    out: Path, tmp_path: Path, tiny: Tiny
) -> None:
    (tmp_path / "colours.toml").write_text(
        'names = ["colour", { name = "red", parent = "colour" }, { name = "blue", parent = '
        '"colour" }]'
    )
    labelled = truth(tmp_path / "truth.csv", {"red": "colour|red", "blue": "blue"})
    words = ("--label-set", tmp_path / "colours.toml")
    ended = learn(out, tmp_path / "kinds.parquet", labelled, tiny, *words)
    assert ended.code == 0, ended.err
    assert answers(out, tmp_path / "kinds.parquet", tiny)["red-7"] == "red"
