"""`clipcap models promote`: the nights' captioner changes only for one that is not worse."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipcap import cards, promotions, storage
from clipcap.metrics import scorefile
from tests.command import Ended, clipcap
from tests.nights import Tiny, draw
from tests.outputs import change

IMAGES = 12
DRAWS = ("--draws", 200)


@dataclass(frozen=True)
class Place:
    """An output with three captioners, `good`, `bad` and `other`, and references in a file."""

    out: Path
    model: str
    references: Path

    def promote(self, name: object, *more: object) -> Ended:
        """Return how `models promote` ended."""
        given = ("--references", self.references, "--model", self.model, *DRAWS, *more)
        return clipcap("models", "promote", self.out, name, *given)

    def told(self, name: object, *more: object) -> tuple[int, dict[str, Any]]:
        """Return its exit code and what it prints as JSON."""
        ended = self.promote(name, "--json", *more)
        assert ended.out, ended.err
        return ended.code, json.loads(ended.out)

    def history(self) -> list[dict[str, Any]]:
        """Return what `models promoted --json` prints."""
        found: list[dict[str, Any]] = json.loads(
            clipcap("models", "promoted", self.out, "--json").out
        )
        return found

    def names(self) -> list[str]:
        """Return the names that were promoted, the first one first."""
        return [one["captioner_id"] for one in self.history()]


def people(n: int) -> list[str]:
    """Return what people wrote for a drawing."""
    colour, thing = ("red", "blue", "green")[n % 3], ("ball", "car", "boat", "cat")[n % 4]
    return [f"one {colour} {thing} on the grass .", f"a {colour} {thing} ."]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Place:
    """The output; `good` was taught to say what people wrote, `bad` and `other` were not."""
    folder = tmp_path_factory.mktemp("promote")
    for n in range(IMAGES):
        draw(folder / "in" / f"drawing-{n}.png", n)
    model = ("--model", tiny.encoder.model, "--no-server")
    assert clipcap("shard", folder / "in", folder / "out", "--no-server").code == 0
    assert clipcap("embed", folder / "out", *model).code == 0
    rows = [{"file": f"drawing-{n}.png", "captions": people(n)} for n in range(IMAGES)]
    place = Place(folder / "out", tiny.encoder.model, folder / "people.json")
    place.references.write_text(json.dumps(rows))
    for name, steps in (("good", 60), ("bad", 1)):
        given = (
            *("--name", name, "--steps", steps, "--start", tiny.captioner.captioner),
            *("--learning-rate", 0.01, "--captions", place.references),
        )
        ended = clipcap("train", place.out, *given, *model)
        assert ended.code == 0, ended.err
    own = place.out / "captioners"
    shutil.copytree(own / "bad", own / "other")
    card = own / "other" / cards.CARD_NAME
    card.write_text(card.read_text().replace('"captioner_id": "bad"', '"captioner_id": "other"'))
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """A copy in which nothing is promoted."""
    shutil.copytree(made.out, tmp_path / "out")
    return Place(tmp_path / "out", made.model, made.references)


def test_the_first_one_has_nobody_to_beat_and_the_better_one_takes_its_place(place: Place) -> None:
    code, first = place.told("bad")
    assert (code, first["promoted"], first["differences"]) == (0, True, [])
    assert first["promotion"]["images"] == IMAGES
    assert first["promotion"]["figures"]["cider_d"] >= 0
    code, second = place.told("good")
    assert (code, second["promoted"]) == (0, True), second["why"]
    told = second["promotion"]
    assert (told["number"], told["before"], told["measure"]) == (2, "bad", "cider_d")
    assert told["before_sha256"] == first["promotion"]["captioner_sha256"]
    cider = next(one for one in told["compared"] if one["metric"] == "cider_d")
    assert cider["before"] == pytest.approx(first["promotion"]["figures"]["cider_d"])
    assert cider["now"] == pytest.approx(told["figures"]["cider_d"])
    assert 0 < cider["low"] < cider["now"] - cider["before"] < cider["high"]
    assert told["signature"].startswith(f"images:{IMAGES}|references:")
    assert place.names() == ["bad", "good"]
    assert not (place.out / "captions").exists(), "candidates leave no captions behind"
    assert clipcap("verify", place.out).code == 0


def test_a_worse_one_is_refused_with_the_interval_and_changes_nothing(place: Place) -> None:
    place.promote("good")
    ended = place.promote("bad")
    assert ended.code == 1
    assert "bad is not promoted. It is worse. cider_d 0." in ended.out
    assert "95% interval of the difference is -" in ended.out
    assert f"on {IMAGES} images" in ended.out
    assert "A is good, promoted until now; B is bad." in ended.out
    assert place.names() == ["good"]
    code, told = place.told("bad", "--margin", 3)
    assert (code, told["promoted"]) == (0, True), "it may be worse by three times the figure"


def test_captions_that_nights_would_hide_count_as_none(place: Place, tmp_path: Path) -> None:
    rules = {"min_words": 100, "suppress": ["near_empty"]}
    given = {"promote": {"caption": {"review": rules}}}
    (tmp_path / "strict.json").write_text(json.dumps(given))
    shown = place.told("good")[1]["promotion"]
    code, hidden = place.told("bad", "--margin", 3, "--settings", tmp_path / "strict.json")
    assert code == 0
    assert hidden["promotion"]["figures"]["bleu_1"] == 0 < shown["figures"]["bleu_1"]


def test_one_that_may_be_worse_is_refused_though_the_interval_holds_zero(place: Place) -> None:
    """Each is right where the other is wrong: too few images to say is no reason to promote."""
    for name, right in (("bad", 0), ("other", 1)):
        own = place.out / "captioners" / name
        given = ("--captioner", own, "--model", place.model, "--no-server")
        assert clipcap("caption", place.out, *given).code == 0

        def say(row: dict[str, Any], right: int = right) -> None:
            n = int(re.findall(r"drawing-(\d+)", row["source_uri"])[0])
            row["caption"] = people(n)[0] if n % 2 == right else "a dog"

        for path in (place.out / "captions" / f"captioner={name}").rglob("*.parquet"):
            change(path, say)
    place.promote("bad")
    ended = place.promote("other")
    assert ended.code == 1
    assert "other is not promoted. It is perhaps worse. cider_d " in ended.out
    assert "(margin 0.05). More images with captions by people make it narrower." in ended.out
    code, told = place.told("other", "--margin", 3, "--measure", "bleu_1")
    assert (code, told["promotion"]["measure"]) == (0, "bleu_1")


def test_rules_that_hide_captions_hold_for_those_that_are_made_to_be_judged(
    place: Place, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.json"
    hidden = {"review": {"min_words": 99, "suppress": ["near_empty"]}}
    rules.write_text(json.dumps({"promote": {"caption": hidden}}))
    shown = place.told("good")[1]["promotion"]["figures"]
    assert shown["cider_d"] > 0
    for captioned in (False, True):
        if captioned:  # shown there, but not by these rules
            own = ("--captioner", place.out / "captioners" / "good", "--model", place.model)
            assert clipcap("caption", place.out, *own, "--no-server").code == 0
        shutil.rmtree(place.out / "captioners" / "_promoted")
        code, told = place.told("good", "--settings", rules)
        assert (code, told["promotion"]["figures"]["cider_d"]) == (0, 0.0)


def test_force_promotes_unjudged_and_the_reason_stays(place: Place) -> None:
    place.promote("good")
    code, told = place.told("bad", "--force", "people like boats")
    assert (code, told["promoted"], told["promotion"]["figures"]) == (0, True, {})
    assert place.history()[-1]["reason"] == "people like boats"
    told_people = clipcap("models", "promoted", place.out).out
    assert "not judged: people like boats" in told_people
    assert "bad is promoted: captioners/bad" in told_people


def test_going_back_is_another_promotion(place: Place) -> None:
    for name in ("bad", "good"):
        assert place.promote(name).code == 0
    assert place.promote("bad").code == 1
    assert place.promote("bad", "--force", "good writes nonsense").code == 0
    assert place.promote("good").code == 0
    assert place.names() == ["bad", "good", "bad", "good"]
    code, told = place.told("good")
    assert (code, told["why"]) == (0, "It is the promoted captioner already.")
    assert len(place.names()) == 4


def test_what_cannot_be_judged_is_not_promoted(place: Place, tmp_path: Path) -> None:
    nowhere = clipcap("models", "promote", place.out, "good", "--model", place.model)
    assert nowhere.code == 2
    assert "--references FILE" in nowhere.err
    one = tmp_path / "one.json"
    one.write_text('[{"file": "drawing-1.png", "caption": "a cat"}]')
    given = ("--references", one, "--model", place.model)
    alone = clipcap("models", "promote", place.out, "good", *given)
    assert alone.code == 2
    assert "at least two images" in alone.err
    assert clipcap("models", "promote", place.out, "godd", *given).err.count("Did you mean good?")
    wrong = clipcap("models", "promote", place.out, "good", "--references", place.references)
    assert "does not fit these embeddings" in wrong.err
    shutil.rmtree(place.out / "embeddings")
    assert "no embedded image" in place.promote("good").err
    assert place.names() == []
    assert "Nothing is promoted yet" in clipcap("models", "promoted", place.out).out


def test_of_two_promotions_at_a_time_one_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.promote("bad")
    add = promotions.add

    def late(out: str, promotion: promotions.Promotion) -> bool:
        monkeypatch.setattr(promotions, "add", add)
        assert place.promote("other", "--force", "faster").code == 0
        return add(out, promotion)

    monkeypatch.setattr(promotions, "add", late)
    ended = place.promote("good")
    assert ended.code == 1
    assert "Another captioner was promoted" in ended.err
    assert place.names() == ["bad", "other"]
    assert place.promote("good").code == 0, "now it is judged beside the one that was first"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What judging logs, which the command line keeps from the root."""
    log = logging.getLogger("clipcap.stages.judge")
    log.addHandler(caplog.handler)
    with caplog.at_level("INFO", logger=log.name):
        yield caplog
    log.removeHandler(caplog.handler)


def test_scores_that_are_there_are_taken_over_and_stale_ones_are_not(
    place: Place, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    def captioned() -> list[str]:
        lines = [one.getMessage() for one in told.records]
        told.clear()
        return [line.split()[0] for line in lines if re.search(r" captions \d+ images", line)]

    place.promote("bad")
    assert captioned() == ["bad"]
    kept = place.out / "captioners" / "_promoted" / "000001.parquet"
    assert scorefile.read(str(kept)).num_rows == IMAGES
    place.promote("good")
    assert captioned() == ["good"], "those of bad were kept"
    place.promote("other")
    assert captioned() == ["other"]
    given = ("--model", place.model, "--no-server")
    assert clipcap("caption", place.out, "--captioner", "promoted", *given).code == 0
    rows = json.loads(place.references.read_text())
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(rows[2:]))
    _, judged = Place(place.out, place.model, fewer).told("bad")
    assert captioned() == ["bad"], "those of good stand in the output"
    assert judged["promotion"]["images"] == IMAGES - 2


def test_a_score_file_of_evaluate_is_taken_over(place: Place, tmp_path: Path) -> None:
    given = ("--model", place.model)
    own = place.out / "captioners" / "good"
    clipcap("caption", place.out, "--captioner", own, *given, "--no-server")
    scores = tmp_path / "scores.parquet"
    said = ("--references", place.references, "--scores", scores)
    assert clipcap("evaluate", place.out, *said, *given).code == 0
    table = scorefile.read(str(scores))
    marked = table.set_column(
        table.schema.get_field_index("caption"), table.schema.field("caption"),
        [["marked"] * table.num_rows],
    )  # fmt: skip
    footer = {key.decode(): text.decode() for key, text in table.schema.metadata.items()}
    scorefile.write(str(scores), marked, footer)
    assert place.promote("good", "--scores", scores).code == 0
    kept = place.out / "captioners" / "_promoted" / "000001.parquet"
    assert set(scorefile.read(str(kept))["caption"].to_pylist()) == {"marked"}
    assert "of other captions or references" in place.promote("bad", "--scores", scores).err
    assert "There is no score file" in place.promote("other", "--scores", tmp_path / "no").err


def test_nights_use_the_promoted_captioner_from_their_start(
    place: Place, tmp_path: Path, tiny: Tiny
) -> None:
    source = str(tmp_path / "in")
    for n in range(2):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    words = ["run", source, place.out, "--captioner", "promoted", "--model", place.model]
    words += ["--label-set", tiny.label_set, "--no-server", "--settings", tmp_path / "s.toml"]
    (tmp_path / "s.toml").write_text("[shard]\nmax_delete_rate = 1.0\n")
    nobody = clipcap(*words)
    assert nobody.code == 2
    assert "must have a promoted captioner" in nobody.err
    place.promote("bad")
    assert clipcap(*words).code == 0
    assert {row["captioner_id"] for row in rows(place.out)} == {"bad"}
    assert "caption   nothing to do" in clipcap(*words).out
    place.promote("good", "--force", "a better one")
    assert "good" in clipcap(*words, "--dry-run").out
    assert clipcap(*words).code == 0
    assert {row["captioner_id"] for row in rows(place.out)} == {"bad", "good"}
    by_name = tmp_path / "by-name"
    shutil.copytree(place.out, by_name)
    words[2], words[4] = by_name, str(by_name / "captioners" / "good")
    assert "caption   nothing to do" in clipcap(*words).out, "the name changes no fingerprint"


def rows(out: Path) -> list[dict[str, Any]]:
    """Return all rows of the captions table."""
    return [
        row
        for path in (out / "captions").rglob("*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    ]


def test_a_promoted_folder_that_was_changed_is_not_used(place: Place) -> None:
    place.promote("good")
    card = place.out / "captioners" / "good" / cards.CARD_NAME
    kept = card.read_text()
    card.write_text(kept.replace('"note": "', '"note": "changed '))
    given = ("--captioner", "promoted", "--model", place.model, "--no-server")
    ended = clipcap("caption", place.out, *given)
    assert ended.code == 2
    assert "was changed since" in ended.err
    ended = place.promote("bad")
    assert ended.code == 2
    assert "cannot be judged" in ended.err
    assert "--force REASON" in ended.err
    card.write_text(kept)
    assert clipcap("caption", place.out, *given).code == 0


def test_training_does_not_write_over_the_promoted_captioner(place: Place, tiny: Tiny) -> None:
    place.promote("good")
    digest = cards.captioner_digest(str(place.out / "captioners" / "good"))
    given = ("--model", tiny.encoder.model, "--captions", place.references, "--no-server")
    refused = clipcap("train", place.out, "--name", "good", "--steps", 1, *given)
    assert refused.code == 2
    assert "is the promoted captioner" in refused.err
    assert cards.captioner_digest(str(place.out / "captioners" / "good")) == digest
    assert clipcap("train", place.out, "--name", "next", "--steps", 1, *given).code == 0


def test_an_output_may_move_and_a_captioner_from_elsewhere_stays_where_it_is(
    place: Place, tmp_path: Path
) -> None:
    place.promote("good")
    shutil.move(place.out, tmp_path / "moved")
    moved = Place(tmp_path / "moved", place.model, place.references)
    out = storage.canonical(str(moved.out))
    assert promotions.resolved(out, "promoted") == f"{out}/captioners/good"
    shutil.move(moved.out / "captioners" / "good", tmp_path / "elsewhere")
    assert moved.promote(tmp_path / "elsewhere").code == 0
    found = promotions.current(out)
    assert found is not None
    assert found.captioner == storage.canonical(str(tmp_path / "elsewhere"))
    assert moved.promote(moved.out / "captioners" / "other", "--force", "no reason").code == 0
    assert moved.history()[-1]["captioner"] == "captioners/other"


def test_a_promotion_that_cannot_be_read_is_an_error_not_another_captioner(place: Place) -> None:
    place.promote("good")
    (place.out / "captioners" / "_promoted" / "000002.json").write_text("{}")
    ended = clipcap("models", "promoted", place.out)
    assert ended.code == 2
    assert "000002.json cannot be read" in ended.err
