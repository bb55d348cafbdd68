"""`verify` says nothing of a sound output, and names each thing that is spoilt in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pytest

from clipcap import storage, tables, verify
from clipcap.errors import NotFoundError
from clipcap.litter import KEEP
from clipcap.verify import Mode, Verification
from tests import outputs
from tests.outputs import Output

TABLES = ("manifest", "embeddings", "captions", "labels", "rejects", "runs")


@pytest.fixture
def out(made: Output, tmp_path: Path) -> Path:
    """A copy of it, free to be spoilt."""
    return Path(shutil.copytree(made.folder, tmp_path / "out"))


def check(out: Path, mode: Mode = "fast") -> Verification:
    """Verify a folder."""
    return verify.verify(str(out), mode=mode)


def only(found: Verification) -> list[tuple[str, str, str]]:
    """Return severity, kind and table of each problem."""
    return sorted({(p.severity, p.kind, p.place.partition("/")[0]) for p in found.problems})


def first(out: Path, table: str) -> Path:
    """Return the first file of a table that has rows."""
    return next(path for path in files(out, table) if tables.read(str(path)).num_rows)


def files(out: Path, table: str) -> list[Path]:
    """Return the files of a table or the tars, sorted."""
    return sorted(path for path in (out / table).rglob("*.*") if path.is_file())


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a table again with other rows or columns."""
    outputs.rewrite(path, change(tables.read(str(path))))


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_a_finished_output_is_sound(made: Output, mode: Mode) -> None:
    found = check(made.folder, mode)
    assert found.problems == ()
    assert found.ok
    assert found.images == made.nights[-1][1].live > 0
    assert found.rejects > 0
    assert found.objects == len([path for path in made.folder.rglob("*") if path.is_file()])


def test_a_moved_output_is_as_sound(out: Path) -> None:
    """An output may be moved: nothing in it may lead back to where it was made."""
    assert check(out, "full").problems == ()


def test_no_output_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"not there|not exist"):
        check(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NotFoundError, match="holds no table"):
        check(tmp_path)


@pytest.mark.parametrize(
    "table", ["manifest", "embeddings", "captions", "labels", "rejects", "runs"]
)
def test_a_cut_file_is_named(out: Path, table: str) -> None:
    path = first(out, table)
    path.write_bytes(path.read_bytes()[:-100])
    found = check(out)
    named = [p for p in found.errors if p.place == str(path.relative_to(out))]
    assert [p.kind for p in named if p.kind != "published"] == ["unreadable"]


@pytest.mark.parametrize(
    "table", ["manifest", "embeddings", "captions", "labels", "rejects", "runs"]
)
def test_a_lost_or_a_nullable_column_is_named(out: Path, table: str) -> None:
    path = first(out, table)
    rewrite(path, lambda rows: rows.drop_columns(["extra_json"]))
    (lost,) = [p for p in check(out).errors if p.kind == "schema"]
    assert "lacks the columns extra_json" in lost.message

    def nullable(rows: pa.Table) -> pa.Table:
        fields = [pa.field("run_id", pa.string()) if f.name == "run_id" else f for f in rows.schema]
        return rows.cast(pa.schema(fields))

    rewrite(
        path, lambda rows: rows.append_column("extra_json", pa.nulls(rows.num_rows, pa.string()))
    )
    rewrite(path, nullable)
    (loose,) = [p for p in check(out).errors if p.kind == "schema"]
    assert "`run_id` must be string (not null), but is string (nullable)" in loose.message


def test_an_extra_column_is_named(out: Path) -> None:
    path = first(out, "captions")
    rewrite(path, lambda rows: rows.append_column("dt", pa.nulls(rows.num_rows, pa.string())))
    (found,) = [p for p in check(out).errors if p.kind == "schema"]
    assert "dt" in found.message


def test_a_footer_without_its_keys_is_named(out: Path) -> None:
    path = first(out, "labels")
    rows = tables.read(str(path)).replace_schema_metadata()
    path.write_bytes(tables.to_bytes(rows, {}))
    kinds = {p.kind for p in check(out).errors if p.place == str(path.relative_to(out))}
    assert {"footer", "fingerprint", "members"} <= kinds


def test_an_image_without_a_row_is_named(out: Path) -> None:
    rewrite(first(out, "captions"), lambda rows: rows.slice(0, rows.num_rows - 1))
    assert ("error", "missing", "captions") in only(check(out))


def test_a_row_of_an_image_that_is_gone_is_named(out: Path) -> None:
    path = first(out, "manifest")
    rewrite(path, lambda rows: rows.slice(1))
    kinds = {(p.kind, p.place.partition("/")[0]) for p in check(out).errors}
    assert {("orphan", name) for name in ("embeddings", "captions", "labels")} <= kinds
    assert ("members", "manifest") in kinds


def test_a_row_that_stands_twice_is_named(out: Path) -> None:
    rewrite(first(out, "embeddings"), lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
    assert ("error", "duplicate", "embeddings") in only(check(out))


def test_an_image_in_two_shards_is_named(out: Path) -> None:
    path = first(out, "manifest")
    shutil.copy(path, path.with_stem("copied"))
    found = [p for p in check(out).errors if p.kind == "duplicate"]
    assert found
    assert "must be in one place only" in found[0].message


def test_an_image_in_manifest_and_rejects_is_named(out: Path) -> None:
    live = tables.read(str(first(out, "manifest"))).to_pylist()[0]

    def clash(rows: pa.Table) -> pa.Table:
        changed = rows.to_pylist()
        changed[0] |= {"image_id": live["image_id"]}
        return pa.Table.from_pylist(changed, schema=rows.schema)

    rewrite(first(out, "rejects"), clash)
    (found,) = [p for p in check(out).errors if p.kind == "duplicate"]
    assert live["image_id"] in found.message


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("rejects", "reason", "bad_mood", "bad_mood"),
        ("rejects", "retryable", True, "`retryable`"),
        ("captions", "status", "maybe", "maybe"),
        ("captions", "caption", None, "have no caption"),
        ("labels", "score", 1.5, "Scores must be 0 to 1"),
        ("embeddings", "embedding_norm", 0.0, "not a length"),
        ("embeddings", "embedding", [0.5] * 16, "not finite unit vectors"),
        ("embeddings", "model_id", "other", "`model_id` is"),
        ("manifest", "image_id", "0" * 32, "not that of its URI"),
        ("manifest", "key", "a.b", "signs that a key"),
    ],
)
def test_a_value_that_cannot_be_is_named(
    out: Path, table: str, column: str, value: object, said: str
) -> None:
    def change(rows: pa.Table) -> pa.Table:
        changed = rows.to_pylist()
        changed[0][column] = value
        return pa.Table.from_pylist(changed, schema=rows.schema)

    rewrite(first(out, table), change)
    assert [p for p in check(out).errors if p.kind == "content" and said in p.message]


def test_a_lost_tar_and_a_short_one_are_named_without_reading_them(out: Path) -> None:
    tar = files(out, "shards")[0]
    tar.write_bytes(tar.read_bytes()[:1024])
    kinds = only(check(out))
    assert ("error", "tar", "shards") in kinds
    tar.unlink()
    assert ("error", "missing", "shards") in only(check(out))


def test_a_changed_byte_in_a_tar_is_found_by_the_full_mode(out: Path) -> None:
    tar = files(out, "shards")[0]
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(bytes(data))
    assert check(out, "fast").ok
    (found,) = check(out, "full").errors
    assert "are not those of its content_sha256" in found.message


def test_what_a_killed_run_leaves_is_told_apart_from_damage(out: Path) -> None:
    """A tar without a manifest counts for nobody, and the next whole run removes it."""
    tar = files(out, "shards")[0]
    shutil.copy(tar, tar.with_stem("half"))
    (out / "_plans" / "run-x").mkdir(parents=True)
    (out / "_plans" / "run-x" / "s.parquet").write_bytes(b"")
    found = check(out)
    assert found.ok
    assert only(found) == [
        ("warning", "orphan", "_plans"),
        ("warning", "orphan", "shards"),
        ("warning", "unpublished", "shards"),
    ]


def test_tables_of_a_shard_without_a_manifest_are_named(out: Path) -> None:
    path = first(out, "manifest")
    path.unlink()
    found = {(p.kind, p.place.partition("/")[0]) for p in check(out).errors}
    assert {("orphan", "embeddings"), ("orphan", "captions"), ("orphan", "labels")} <= found
    assert ("published", "manifest") in found


def test_a_file_that_a_glob_would_read_by_mistake_is_named(out: Path) -> None:
    path = first(out, "captions")
    shutil.copy(path, out / "captions" / "stray.parquet")
    (out / "notes.txt").write_text("mine")
    found = check(out)
    (stray,) = found.errors
    assert "A glob over captions reads this" in stray.message
    assert [p.place for p in found.warnings] == ["notes.txt"]


def test_an_object_that_is_not_what_the_newest_run_left_is_named(out: Path) -> None:
    latest = json.loads((out / "_latest.json").read_text())
    listed = out / "_manifests" / f"{latest['run_id']}.json"
    value = json.loads(listed.read_text())
    value["objects"][0]["fingerprint"] = "0" * 64
    gone = dict(value["objects"][1], url="captions/captioner=x/dt=2026-11-18/gone.parquet")
    listed.write_text(json.dumps({**value, "objects": [*value["objects"], gone]}))
    messages = [p.message for p in check(out).errors]
    assert any("another fingerprint" in text for text in messages)
    assert any("lists it, but it is not there" in text for text in messages)
    listed.unlink()
    assert ("error", "missing", "_manifests") in only(check(out))


def test_an_output_that_was_never_published_is_a_warning(out: Path) -> None:
    (out / "_latest.json").unlink()
    found = check(out)
    assert found.ok
    assert ("warning", "unpublished", "_latest.json") in only(found)


def test_a_run_that_loses_images_is_named(out: Path) -> None:
    def lose(rows: pa.Table) -> pa.Table:
        changed = rows.to_pylist()
        changed[0]["listed"] += 1
        return pa.Table.from_pylist(changed, schema=rows.schema)

    rewrite(first(out, "runs"), lose)
    (found,) = check(out).errors
    assert "are accounted for" in found.message


def test_an_output_in_a_bucket_is_held_against_the_same_contract(made: Output, bucket: str) -> None:
    for path in made.folder.rglob("*"):
        if path.is_file():
            storage.write(f"{bucket}/out/{path.relative_to(made.folder)}", path.read_bytes())
    found = verify.verify(f"{bucket}/out/", mode="full")
    assert found.problems == ()
    assert found.images == made.nights[-1][1].live
    storage.delete(f"{bucket}/out/{files(made.folder, 'captions')[0].relative_to(made.folder)}")
    assert [p.kind for p in verify.verify(f"{bucket}/out").errors] == ["published"]


def test_it_says_in_a_line_what_was_looked_at(made: Output) -> None:
    found = check(made.folder, "full")
    assert str(found).endswith("0 errors, 0 warnings.")
    problem = verify.Problem("captions/x", "schema", "It lacks a column.")
    assert str(problem) == "error: captions/x: It lacks a column."
    assert not replace(found, problems=(problem,)).ok


def test_of_many_lists_only_the_last_are_read_unless_all_is(out: Path) -> None:
    """Each names every object: after a year of nights they are gigabytes."""
    newest = json.loads((out / "_latest.json").read_text())["run_id"]
    there = len(list((out / "_manifests").iterdir()))
    for n in range(12):
        copy = out / "_manifests" / f"r{n:02}.json"
        shutil.copy(out / "_manifests" / f"{newest}.json", copy)
        os.utime(copy, (n, n))

    def read(mode: Mode) -> list[str]:
        with patch.object(storage, "read", side_effect=storage.read) as found:
            assert check(out, mode).problems == ()
        urls = {call.args[0] for call in found.call_args_list}
        return sorted(url.rpartition("/")[2] for url in urls if "/_manifests/" in url)

    last = read("fast")
    assert len(last) == KEEP
    assert f"{newest}.json" in last
    assert f"r{11:02}.json" in last
    assert "r00.json" not in last
    assert len(read("full")) == 12 + there


@pytest.mark.parametrize("text", ["{", "[]", '{"objects": 1}', '{"objects": [{"url": 1}]}'])
def test_a_damaged_list_of_an_earlier_run_is_named_and_goes(out: Path, text: str) -> None:
    lists = sorted((out / "_manifests").iterdir(), key=lambda path: path.stat().st_mtime)
    newest = json.loads((out / "_latest.json").read_text())["run_id"]
    older = next(path for path in lists if path.stem != newest)
    older.write_text(text)
    found = check(out)
    assert [(one.place, one.kind) for one in found.problems] == [
        (f"_manifests/{older.name}", "unreadable")
    ]
    assert not found.ok
    verify.repair(found, apply=True)
    assert not older.exists()
    assert check(out).problems == ()
