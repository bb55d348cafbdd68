"""Which captions want a second look, and that another rule judges them anew without a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipcap import captioner, cards, commits, layout, manifest, review, storage, tables, verify
from clipcap.cards import Choice, captioner_digest
from clipcap.commits import Fingerprint
from clipcap.errors import SettingsError
from clipcap.footers import Footers
from clipcap.front import contract
from clipcap.layout import Run
from clipcap.review import REASONS, ReviewCard, ReviewSettings, Rules
from clipcap.settings import digest
from clipcap.stages import caption, publish
from clipcap.stages.caption import CaptionSpeed
from clipcap.thresholds import Interval, Measured
from tests import captioned, outputs
from tests.nights import Tiny, make_tiny

GOOD = {
    "caption_raw": "a red ball on the grass.", "clip_score": 1.0, "logprob_mean": -0.5,
    "finish_reason": "stop", "candidates": None,
}  # fmt: skip
SAID = [
    GOOD,
    GOOD | {"clip_score": 0.2},
    GOOD | {"logprob_mean": -3.0},
    GOOD | {"caption_raw": "a ball."},
    GOOD | {"caption_raw": " ."},
    GOOD | {"caption_raw": "  "},
    GOOD | {"status": "failed", "caption_raw": None, "clip_score": None, "finish_reason": None},
]


def told(text: str, logprob: float | None, score: float | None = 0.5) -> dict[str, Any]:
    """Return a candidate."""
    return {"text": text, "logprob_mean": logprob, "clip_score": score}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(models: Tiny, tmp_path: Path) -> Tiny:
    """The same with a captioner folder of one's own."""
    folder = shutil.copytree(models.captioner.captioner, tmp_path / "captioner")
    return replace(models, captioner=caption.CaptionSettings(captioner=str(folder)))


def ruled(tiny: Tiny, **rules: Any) -> Tiny:  # noqa: ANN401
    """Return the models with rules."""
    settings = tiny.captioner.model_copy(update={"review": ReviewSettings(**rules)})
    return replace(tiny, captioner=settings)


def again(run: Run, tiny: Tiny) -> list[dict[str, Any]]:
    """Run the caption stage where every caption is there; return the rows by address."""
    for shard in manifest.shards(run.out):
        caption.caption(
            shard, run=Run("later", run.out, run.dt), settings=tiny.captioner,
            encoder=tiny.encoder, speed=CaptionSpeed(),
        )  # fmt: skip
    return rows(run)


def rows(run: Run) -> list[dict[str, Any]]:
    """Return the captions of an output by address."""
    found = [tables.read(one.url) for one in manifest.objects(run.out, "captions")]
    made: list[dict[str, Any]] = pa.concat_tables(found).sort_by("source_uri").to_pylist()
    return made


def measured(tiny: Tiny, **changed: object) -> ReviewCard:
    """Return thresholds for the tiny captioner."""
    card = cards.read_card(tiny.captioner.captioner)
    one = Measured(
        measure="clip_score", threshold=Interval(value=0.4, low=0.3, high=0.5), method="quantile",
        asked=0.05, captions=100, flagged=0.05,
    )  # fmt: skip
    made = ReviewCard(
        captioner_id=card.captioner_id, captioner_sha256=captioner_digest(tiny.captioner.captioner),
        decode=card.decode, rank_by="logprob", model_id="tiny", measured_on="2026-11-20",
        producer="clipcap", thresholds=(one,), min_words=3,
    )  # fmt: skip
    return made.model_copy(update=changed)


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "rules", "reasons"),
    [
        ({}, {}, []),
        ({"caption_raw": None}, {"min_words": 3}, ["empty"]),
        ({"caption_raw": " \n"}, {"min_words": 3}, ["empty"]),
        ({"finish_reason": "length"}, {}, ["did_not_stop"]),
        ({"caption_raw": "on the sea on the sea"}, {}, ["repeats"]),
        ({"caption_raw": "on the sea on the sea"}, {"repeated_words": 4}, []),
        ({"caption_raw": "a ball"}, {}, []),
        ({"caption_raw": "a ball ."}, {"min_words": 3}, ["near_empty"]),
        ({"caption_raw": "a red ball"}, {"min_words": 3}, []),
        ({"clip_score": 0.4}, {"min_clip_score": 0.4}, []),
        ({"clip_score": 0.39}, {"min_clip_score": 0.4}, ["low_score"]),
        ({"clip_score": None}, {"min_clip_score": 0.4}, ["low_score"]),
        ({"clip_score": float("nan")}, {"min_clip_score": 0.4}, ["low_score"]),
        ({"clip_score": None}, {}, []),
        ({"logprob_mean": -1.1}, {"min_logprob": -1.0}, ["low_logprob"]),
        ({"candidates": [told("a", -1.0), told("b", -1.1)]}, {"min_margin": 0.2},
         ["narrow_margin"]),
        ({"candidates": [told("a", -1.0), told("b", -1.3)]}, {"min_margin": 0.2}, []),
        ({"candidates": [told("a", -1.0)]}, {"min_margin": 0.2}, []),
        ({"finish_reason": "length", "clip_score": 0.1, "logprob_mean": -9.0},
         {"min_clip_score": 0.4, "min_logprob": -1.0},
         ["did_not_stop", "low_score", "low_logprob"]),
    ],
)  # fmt: skip
def test_every_rule_names_its_reason(
    changed: dict[str, Any], rules: dict[str, Any], reasons: list[str]
) -> None:
    assert review.reasons(GOOD | changed, Rules(**rules), "logprob") == reasons


def test_the_margin_is_what_ranks_before_the_next_that_says_something_else() -> None:
    found = [told("a", -1.0, 0.9), told("a", -1.2, 0.9), told("b", -1.5, 0.7), told("c", -2.0)]
    assert review.margin(found, "logprob") == pytest.approx(0.5)
    assert review.margin(found, "clip_score") == pytest.approx(0.2)
    assert review.margin(found[:2], "logprob") is None
    assert review.margin([told("a", float("nan")), told("b", -1.0)], "logprob") is None
    assert review.margin([told("a", -1.0, None), told("b", -1.0)], "clip_score") is None
    assert review.margin(None, "logprob") is None
    assert review.margin([], "logprob") is None


def test_settings_come_before_what_was_measured_and_both_suppress(tiny: Tiny) -> None:
    card = measured(tiny, suppress=("low_score",))
    assert review.rules(ReviewSettings(), None) == Rules()
    assert Rules().text == ""
    own = ReviewSettings(min_clip_score=0.1, min_logprob=-2.0, suppress=("repeats", "low_score"))
    assert review.rules(own, card) == Rules(
        min_words=3, min_clip_score=0.1, min_logprob=-2.0, suppress=("repeats", "low_score")
    )
    assert review.rules(ReviewSettings(), card).min_clip_score == 0.4


def test_the_contract_lists_every_reason() -> None:
    assert contract.CLOSED_LISTS["review_reasons"] == REASONS


# --- captions that are there ----------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a captioner is loaded."""

    def refuse(*_: object) -> None:
        raise AssertionError("no caption was to be made")

    monkeypatch.setattr(captioner, "load", refuse)


@pytest.mark.usefixtures("no_model")
def test_another_rule_judges_captions_anew_without_the_captioner(
    tiny: Tiny, tmp_path: Path
) -> None:
    run = captioned.write(tmp_path / "out", tiny, SAID)
    before = rows(run)
    strict = ruled(tiny, min_words=3, min_clip_score=0.4, min_logprob=-1.0, suppress=("low_score",))
    after = again(run, strict)
    assert [row["review_reasons"] for row in after] == [
        [], ["low_score"], ["low_logprob"], ["near_empty"], ["near_empty"], ["empty"], None,
    ]  # fmt: skip
    assert [row["status"] for row in after] == [
        "ok", "suppressed", "ok", "ok", "ok", "suppressed", "failed",
    ]  # fmt: skip
    assert [row["caption"] for row in after[:3]] == [GOOD["caption_raw"], None, GOOD["caption_raw"]]
    kept = ("caption_raw", "clip_score", "candidates", "created_at", "run_id", "captioner_sha256")
    assert [[row[name] for name in kept] for row in after] == [
        [row[name] for name in kept] for row in before
    ]
    urls = [one.url for one in manifest.objects(run.out, "captions")]
    written = [storage.read(url) for url in urls]
    again(run, strict)
    assert [storage.read(url) for url in urls] == written  # done is done
    assert again(run, tiny) == before


@pytest.mark.usefixtures("no_model")
def test_captions_without_rules_are_as_they_always_were(tiny: Tiny, tmp_path: Path) -> None:
    """Fingerprint and recipe as before there were rules; a table from then is left alone."""
    run = captioned.write(tmp_path / "out", tiny, SAID)
    urls = [one.url for one in manifest.objects(run.out, "captions")]
    for url in urls:
        path = storage.local_path(url)
        assert path is not None
        outputs.change(path, lambda row: row.update(extra_json=None))
    written = [storage.read(url) for url in urls]
    chosen = caption.choose(tiny.captioner, tiny.encoder)
    source = tables.footer(manifest.objects(run.out, "embeddings")[0].url)[0]
    decode = {"name": "beam", "settings": {"max_tokens": 12}}
    for url in urls:
        footer = tables.footer(url)[0]
        parts = ["caption", 1, 1, source["recipe"], chosen.sha256, decode]
        assert footer["recipe"] == digest(parts)
        assert footer["fingerprint"] == digest([footer["recipe"], footer["members"]])
        assert "review" not in footer
    again(run, tiny)
    assert [storage.read(url) for url in urls] == written


@pytest.mark.usefixtures("no_model")
def test_a_margin_is_kept_beside_what_others_wrote(tiny: Tiny, tmp_path: Path) -> None:
    two = [told("a red ball on the grass.", -0.5), told("a cat.", -0.75)]
    said = [GOOD | {"candidates": two, "extra_json": '{"mine": 1}'}, GOOD]
    run = captioned.write(tmp_path / "out", tiny, said)
    assert [json.loads(row["extra_json"] or "{}") for row in rows(run)] == [
        {"mine": 1, "margin": 0.25}, {},
    ]  # fmt: skip
    assert again(run, ruled(tiny, min_margin=0.3))[0]["review_reasons"] == ["narrow_margin"]


# --- thresholds in the captioner's folder ---------------------------------------------------------


@pytest.mark.usefixtures("no_model")
def test_thresholds_of_the_folder_judge_anew_and_caption_nothing(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = tiny.captioner.captioner
    run, before = captioned.write(tmp_path / "out", tiny, SAID), captioner_digest(folder)
    place = review.write_card(folder, measured(tiny, suppress=("low_score",)))
    assert captioner_digest(folder) == before
    assert place == storage.canonical(f"{folder}/review.json")
    assert review.read_card(folder) == measured(tiny, suppress=("low_score",))
    after = again(run, tiny)
    assert after[1]["review_reasons"] == ["low_score"]
    assert after[1]["caption"] is None
    assert again(run, ruled(tiny, measured=False))[1]["review_reasons"] == []
    Path(folder, "review.json").unlink()
    assert again(run, tiny)[1]["review_reasons"] == []


def test_a_file_of_that_name_elsewhere_in_the_folder_is_part_of_the_captioner(tiny: Tiny) -> None:
    folder = tiny.captioner.captioner
    before = captioner_digest(folder)
    Path(folder, "language_model", "review.json").write_text("{}")
    assert captioner_digest(folder) != before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"captioner_sha256": "f" * 64}, "captioner ffffffffffff, not"),
        ({"decode": Choice(name="greedy")}, 'decode {"name":"greedy"'),
        ({"rank_by": "clip_score"}, "rank_by clip_score, not logprob"),
    ],
)
def test_thresholds_of_other_captions_are_refused(
    tiny: Tiny, changed: dict[str, object], message: str
) -> None:
    review.write_card(tiny.captioner.captioner, measured(tiny, **changed))
    with pytest.raises(SettingsError, match=r"measured on 2026-11-20 on other.*") as raised:
        caption.choose(tiny.captioner, tiny.encoder)
    assert message in str(raised.value)
    assert caption.choose(ruled(tiny, measured=False).captioner, tiny.encoder).rules == Rules()


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 2}', "\udcff"])
def test_thresholds_that_cannot_be_read_are_refused(tiny: Tiny, text: str) -> None:
    path = Path(tiny.captioner.captioner, "review.json")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError, match=r"review\.json cannot be read.*calibrate-captions"):
        caption.choose(tiny.captioner, tiny.encoder)


def test_no_threshold_is_infinite_or_no_number(tiny: Tiny) -> None:
    path = Path(tiny.captioner.captioner, "review.json")
    for number in ("NaN", "Infinity"):
        path.write_text(measured(tiny).model_dump_json().replace("0.4", number))
        with pytest.raises(SettingsError, match=r"review\.json cannot be read"):
            review.read_card(tiny.captioner.captioner)


# --- the rest of the output -----------------------------------------------------------------------


@pytest.mark.usefixtures("no_model")
def test_a_table_that_loses_images_keeps_what_it_was_judged_by(tiny: Tiny, tmp_path: Path) -> None:
    """Else it would count as done for those who ask for no rules."""
    run = captioned.write(tmp_path / "out", tiny, SAID, shards=1)
    again(run, ruled(tiny, min_clip_score=0.4, suppress=("low_score",)))
    (shard,) = manifest.shards(run.out)
    live = tables.read(layout.manifest(run.out, shard)).slice(1)
    members = manifest.members(live)
    commits.publish(
        layout.manifest(run.out, shard), live, fingerprint=Fingerprint("made", members),
        run_id="later", metadata={"members": members},
    )  # fmt: skip
    publish.sweep(Footers(run.out), {shard: (members, live.num_rows)}, run=run)
    (url,) = (one.url for one in manifest.objects(run.out, "captions"))
    footer, count = tables.footer(url)
    assert (footer["review"], count) == (
        '{"min_clip_score":0.4,"suppress":["low_score"]}', len(SAID) - 1,
    )  # fmt: skip
    url = manifest.objects(run.out, "embeddings")[0].url
    assert tables.footer(url)[1] == len(SAID) - 1
    assert rows(run)[0]["status"] == "suppressed"
    assert again(run, tiny)[0]["status"] == "ok"


def test_verify_knows_the_fingerprint_of_a_judged_table(tiny: Tiny, tmp_path: Path) -> None:
    run = captioned.write(tmp_path / "out", tiny, SAID[:4])
    again(run, ruled(tiny, min_clip_score=0.4))
    found = verify.verify(run.out).problems
    assert [one for one in found if one.place.startswith("captions")] == []
    table = tables.read(url := manifest.objects(run.out, "captions")[0].url)
    footer = tables.metadata(table) | {"review": '{"min_clip_score":0.5}'}
    storage.write(url, tables.to_bytes(table, footer))
    kinds = {one.kind for one in verify.verify(run.out).problems}
    assert "fingerprint" in kinds
