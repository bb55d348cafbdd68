"""Every question of `views.sql` runs in DuckDB and gives the right rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from clipcap import front, review, storage, summaries, tables
from clipcap.front import contract
from clipcap.layout import Table
from clipcap.stability import NONE
from tests import outputs
from tests.outputs import Output, asked, files

QUESTIONS = (
    "nights", "coverage", "newest_captions", "review_queue", "label_mix", "label_drift",
    "rejects_by_reason", "near_duplicates", "disagreements", "captions_with_images",
    "captions_by_reason",
)  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_an_answer(database: duckdb.DuckDBPyConnection, name: str) -> None:
    assert asked(database, f"FROM {name}")


def test_the_questions_are_all_that_views_sql_asks() -> None:
    text = (contract.FOLDER / "queries.sql").read_text()
    views = set(re.findall(r"CREATE OR REPLACE VIEW (\w+)", text))
    macros = set(re.findall(r"CREATE OR REPLACE MACRO (\w+)", text))
    assert views == set(QUESTIONS)
    assert macros == {"images_like", "image_in_tar", "made_with", "caption_margin"}


def test_views_sql_runs_inside_the_folder_and_twice(
    made: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.folder)
    with duckdb.connect() as connection:
        for _ in range(2):
            connection.execute(Path("views.sql").read_text())
        assert asked(connection, "SELECT count(*) > 0 AS yes FROM manifest") == [{"yes": True}]


def test_no_question_fails_before_the_first_file(tmp_path: Path) -> None:
    """The first night of many outputs has no reject; a glob without files is an error in DuckDB."""
    with duckdb.connect() as connection:
        connection.execute("SET VARIABLE clipcap = ?", [str(tmp_path)])
        connection.execute(front.files()["views.sql"].decode())
        for name in (*contract.TABLES, *QUESTIONS, "images_like('x')", "image_in_tar('x')"):
            wanted = [] if name != "coverage" else [0, 0, 0]
            assert [row.get("images") for row in asked(connection, f"FROM {name}")] == wanted


def test_nights_come_newest_first(made: Output, database: duckdb.DuckDBPyConnection) -> None:
    found = asked(database, "FROM nights")
    assert [row["run_id"] for row in found] == [night.run.run_id for night, _ in made.nights][::-1]
    assert [(row["new"], row["changed"], row["deleted"]) for row in found] == [
        (0, 0, 0), (1, 1, 2), (outputs.LISTED, 0, 0),
    ]  # fmt: skip


def test_coverage_counts_what_is_missing(made: Output, database: duckdb.DuckDBPyConnection) -> None:
    live = made.nights[-1][1].live
    found = {row["table_name"]: row for row in asked(database, "FROM coverage")}
    assert {name: (row["images"], row["missing"]) for name, row in found.items()} == dict.fromkeys(
        ("captions", "embeddings", "labels"), (live, 0)
    )
    assert found["captions"]["made_by"] == "talkative"


def test_newest_captions_are_of_the_newest_date(
    rows: dict[Table, pa.Table], database: duckdb.DuckDBPyConnection
) -> None:
    found = asked(database, "FROM newest_captions")
    assert {str(row["dt"]) for row in found} == {outputs.NIGHTS[1]}
    captions = set(rows["captions"]["caption"].to_pylist())
    assert {row["caption"] for row in found} <= captions


def test_the_review_queue_is_what_has_a_reason(
    rows: dict[Table, pa.Table], database: duckdb.DuckDBPyConnection
) -> None:
    found = asked(database, "FROM review_queue")
    wanted = [row["key"] for row in rows["captions"].to_pylist() if row["review_reasons"]]
    assert sorted(row["key"] for row in found) == sorted(wanted)
    scores = [row["clip_score"] for row in found]
    assert scores == sorted(scores)


def test_margins_and_reasons_come_out_of_the_captions(
    rows: dict[Table, pa.Table], database: duckdb.DuckDBPyConnection
) -> None:
    captions = {row["key"]: row for row in rows["captions"].to_pylist()}
    found = asked(database, "FROM captions_with_images")
    margins = [review.margin(captions[row["key"]]["candidates"], "logprob") for row in found]
    assert [row["margin"] for row in found] == margins
    assert any(margins)
    counted = Counter(why for row in captions.values() for why in row["review_reasons"])
    by_reason = asked(database, "FROM captions_by_reason")
    assert {row["reason"]: row["images"] for row in by_reason} == counted
    hidden = sum(row["status"] == "suppressed" for row in captions.values())
    assert sum(row["suppressed"] for row in by_reason if row["reason"] == "empty") == hidden


def test_extra_json_that_is_none_breaks_no_view(database: duckdb.DuckDBPyConnection) -> None:
    texts = "('{\"margin\": 0.5}'), (NULL), ('{\"a\": 1}'), ('no json'), ('{\"margin\": \"x\"}')"
    found = asked(database, f"SELECT caption_margin(t) AS margin FROM (VALUES {texts}) AS v(t)")
    assert [row["margin"] for row in found] == [0.5, None, None, None, None]


def test_the_label_mix_adds_up(made: Output, database: duckdb.DuckDBPyConnection) -> None:
    found = asked(database, "FROM label_mix")
    assert sum(row["images"] for row in found) == made.nights[-1][1].live
    assert sum(row["share"] for row in found) == pytest.approx(1, abs=1e-3)


def test_an_image_counts_for_its_best_accepted_label() -> None:
    """Where labels have thresholds of their own, the accepted one need not have the best score."""
    rows = [("a", 1, False, "dog"), ("a", 2, True, "cat"), ("a", 3, True, "bat")]
    rows += [("b", 1, True, "dog"), ("b", 2, True, "cat"), ("c", 1, False, "cat")]
    columns = dict(
        zip(("image_id", "rank", "accepted", "label"), zip(*rows, strict=True), strict=True)
    )
    table = pa.table({name: pa.array(one) for name, one in columns.items()})
    assert summaries.mix(table) == {"cat": 1, "dog": 1, NONE: 1}
    more = {"label_set": "own", "score": 0.5, "margin": 0.1, "key": "k", "dt": "2026-11-20"}
    for name, value in more.items():
        table = table.append_column(name, pa.array([value] * len(rows)))
    views = re.findall(
        r"CREATE OR REPLACE VIEW label_\w+ AS.*?;", front.files()["views.sql"].decode(), re.DOTALL
    )
    with duckdb.connect() as connection:
        connection.register("labels", table)
        for view in views:
            connection.execute(view)
        found = asked(connection, "FROM label_mix")
    assert {row["label"]: row["images"] for row in found} == {"cat": 1, "dog": 1, None: 1}


def test_drift_is_the_population_stability_index(database: duckdb.DuckDBPyConnection) -> None:
    found = asked(database, "FROM label_drift")
    assert {str(row["newest"]) for row in found} == {outputs.NIGHTS[1]}
    p = np.array([row["share_newest"] for row in found])
    q = np.array([row["share_before"] for row in found])
    psi = float(((p - q) * np.log(p / q)).sum())
    assert found[0]["psi_of_label_set"] == pytest.approx(psi, rel=0.01)


def test_rejects_are_counted_by_reason(database: duckdb.DuckDBPyConnection) -> None:
    found = {row["reason"]: row["images"] for row in asked(database, "FROM rejects_by_reason")}
    assert found == {"truncated": 2, "not_an_image": 1, "too_small": 1}


def test_images_like_this_one_are_the_exact_nearest(
    rows: dict[Table, pa.Table], database: duckdb.DuckDBPyConnection
) -> None:
    embedding_BD = tables.vectors(rows["embeddings"]).astype(np.float64)
    unit_BD = embedding_BD / np.linalg.norm(embedding_BD, axis=1, keepdims=True)
    names = rows["embeddings"]["key"].to_pylist()
    cosine_B = dict(zip(names, unit_BD @ unit_BD[3], strict=True))
    found = asked(database, f"FROM images_like('{names[3]}', most := 5)")
    assert found[0]["key"] == names[3]
    assert [row["similarity"] for row in found] == pytest.approx(
        sorted(cosine_B.values(), reverse=True)[:5], abs=1e-3
    )


def test_near_duplicates_are_pairs_of_one_picture(database: duckdb.DuckDBPyConnection) -> None:
    found = asked(database, "FROM near_duplicates")
    names = [{Path(row["one"]).name, Path(row["other"]).name} for row in found]
    assert {"scene-09.jpg", "scene-again.jpg"} in names
    assert all(0 <= row["differing_bits"] <= 3 for row in found)


def test_caption_and_label_agree_where_the_word_is_there(
    database: duckdb.DuckDBPyConnection,
) -> None:
    joined = "labels l JOIN captions c USING (image_id) WHERE accepted AND c.status = 'ok'"
    pairs = asked(database, f"SELECT l.label, c.caption FROM {joined}")
    found = {row["label"]: row for row in asked(database, "FROM disagreements")}
    for label, row in found.items():
        captions = [pair["caption"] for pair in pairs if pair["label"] == label]
        assert row["images"] == len(captions)
        words = [re.split(r"\W+", caption) for caption in captions]
        assert row["not_in_caption"] == sum(
            not {label, f"{label}s", f"{label}es"} & set(split) for split in words
        )


def test_four_numbers_get_one_image_out_of_its_tar(
    rows: dict[Table, pa.Table], database: duckdb.DuckDBPyConnection
) -> None:
    for wanted in rows["manifest"].to_pylist():
        (found,) = asked(database, f"FROM image_in_tar('{wanted['key']}')")
        data = storage.read_range(found["tar"], found["first_byte"], found["bytes"])
        source = storage.read(wanted["source_uri"])
        assert data == source
        assert found["last_byte"] == found["first_byte"] + len(data) - 1


def test_made_with_says_model_and_settings_of_a_file(
    made: Output, database: duckdb.DuckDBPyConnection
) -> None:
    path = files(made, "captions")[0].relative_to(made.folder)
    found = {row["name"]: row["value"] for row in asked(database, f"FROM made_with('{path}')")}
    assert found["captioner_id"] == "talkative"
    assert json.loads(found["decode"])["name"] == "beam"
    everything = asked(database, "FROM made_with()")
    assert {row["file_name"] for row in everything} == {
        str(path) for name in contract.TABLES for path in files(made, name)
    }


def test_every_caption_with_its_image(made: Output, database: duckdb.DuckDBPyConnection) -> None:
    found = asked(database, "FROM captions_with_images")
    assert len(found) == made.nights[-1][1].live
    assert all(row["captioner_id"] == "talkative" and row["width"] for row in found)
