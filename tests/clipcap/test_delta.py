"""Delta logs: every reader sees the live rows, of every version one commit, and a glob no other."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest

from clipcap import conditions, delta, layout, manifest, storage, verify
from clipcap.errors import ClipcapError, SettingsError, StorageError
from clipcap.front import contract
from clipcap.layout import PER_SHARD, Table
from clipcap.stages.publish import PublishSettings
from tests.nights import Tiny, draw, make_tiny, night
from tests.outputs import Output, copied
from tests.servers import S3Address, make_bucket, s3_client
from tests.tables import glob

pytestmark = pytest.mark.skipif(
    find_spec("deltalake") is None, reason="deltalake is not installed; the extra `delta` has it"
)
DELTA = PublishSettings(table_format="delta", report_images=0)


@pytest.fixture
def out(made: Output, tmp_path: Path) -> str:
    """A finished output of this test's own, without logs."""
    return copied(made, tmp_path / "out").url


@pytest.fixture
def bucket_out(made: Output, bucket: str) -> str:
    """The tables of a finished output, in a bucket."""
    for name in PER_SHARD:
        for found in storage.listed(f"{made.url}/{name}"):
            storage.write(found.url.replace(made.url, bucket, 1), storage.read(found.url))
    return bucket


def opened(out: str, name: Table, version: int | None = None) -> Any:  # noqa: ANN401
    from deltalake import DeltaTable

    root = layout.table(out, name)
    path = storage.local_path(root)
    options = delta.options(root)
    return DeltaTable(str(path) if path else root, version=version, storage_options=options)


def keys(table: pa.Table, name: Table) -> list[tuple[Any, ...]]:
    columns = ["source_uri", "reason"] if name == "rejects" else ["image_id", "run_id"]
    columns += ["label", "rank"] if name == "labels" else []
    return sorted(zip(*(table[column].to_pylist() for column in columns), strict=True))


def actions(out: str, name: Table, version: int) -> list[dict[str, Any]]:
    data = storage.read(f"{layout.table(out, name)}/_delta_log/{version:020d}.json")
    return [json.loads(line) for line in data.splitlines()]


def paths(out: str, name: Table, version: int, kind: str) -> list[str]:
    return [line[kind]["path"] for line in actions(out, name, version) if kind in line]


def require_equal(out: str, names: tuple[Table, ...] = PER_SHARD) -> None:
    """Check that Delta readers see the rows that a glob gives."""
    for name in [name for name in names if manifest.objects(out, name)]:
        assert keys(opened(out, name).to_pyarrow_table(), name) == keys(glob(out, name), name)


def test_every_reader_sees_the_rows_that_a_glob_gives(out: str) -> None:
    assert delta.register(out, {}, run_id="one") == len(PER_SHARD)
    require_equal(out)
    for name in PER_SHARD:
        found = opened(out, name)
        expected = glob(out, name).num_rows
        dataset = found.to_pyarrow_dataset()
        with duckdb.connect() as engine:
            engine.register("rows", dataset)
            counted = engine.execute("SELECT count(*) FROM rows").fetchall()
        assert counted == [(expected,)]
        assert polars.scan_pyarrow_dataset(dataset).collect().height == expected
        assert polars.scan_parquet(found.file_uris()).collect().height == expected
        if name != "embeddings":
            assert polars.scan_delta(found).collect().height == expected
        text = f"SELECT count(*) FROM read_parquet('{storage.local_path(out)}/{name}/**/*.parquet')"
        assert duckdb.execute(text).fetchall() == [(expected,)]
        assert len(pandas.read_parquet(f"{storage.local_path(out)}/{name}")) == expected
    vector = opened(out, "embeddings").to_pyarrow_table()["embedding"]
    assert str(vector.type) == "list<element: float not null>"
    assert vector.to_pylist() == glob(out, "embeddings")["embedding"].to_pylist()


def test_columns_of_paths_are_columns_and_find_their_files(out: str) -> None:
    delta.register(out, {}, run_id="one")
    found = opened(out, "captions")
    assert found.metadata().partition_columns == ["captioner", "dt"]
    filtered = found.to_pyarrow_table(filters=[("dt", "=", date(2026, 11, 18))])
    assert {str(value) for value in filtered["dt"].to_pylist()} == {"2026-11-18"}
    assert set(filtered["captioner"].to_pylist()) != {None}


def test_a_commit_has_the_adds_and_removes_of_its_run_and_no_others(out: str) -> None:
    delta.register(out, {}, run_id="one")
    assert delta.register(out, {}, run_id="two") == 0
    first, second = [found.url for found in manifest.objects(out, "captions")][:2]
    root = layout.table(out, "captions")
    storage.write(f"{out}/copy.parquet", storage.read(first))
    storage.delete(first)
    storage.write(second, storage.read(second) + b"")  # in place: another time
    newer = second.replace(".parquet", "0.parquet")
    storage.write(newer, storage.read(f"{out}/copy.parquet"))
    assert delta.register(out, {f"captions/{newer.removeprefix(root)[1:]}": 7}, run_id="three") == 1
    assert paths(out, "captions", 1, "remove") == [first.removeprefix(f"{root}/")]
    assert paths(out, "captions", 1, "add") == sorted(
        url.removeprefix(f"{root}/") for url in (second, newer)
    )
    assert actions(out, "captions", 1)[0]["commitInfo"]["runId"] == "three"
    assert [json.loads(line["add"]["stats"]) for line in actions(out, "captions", 1)
            if "stats" in line.get("add", {})] == [{"numRecords": 7}]  # fmt: skip
    assert opened(out, "captions").version() == 1
    require_equal(out, ("captions",))
    assert opened(out, "labels").version() == 0


def test_nights_commit_once_each_and_old_versions_stay_until_files_change(tmp_path: Path) -> None:
    tiny, source, folder = make_tiny(tmp_path / "m"), tmp_path / "in", tmp_path / "out"
    for n in range(5):
        draw(source / f"{n}.png", n)
    out = storage.canonical(str(folder))
    _nightly(source, folder, tiny, "2026-11-18")
    assert opened(out, "captions").version() == 0
    draw(source / "late.png", 9)
    _nightly(source, folder, tiny, "2026-11-19")
    assert opened(out, "captions").version() == 1
    assert opened(out, "captions", 0).to_pyarrow_table().num_rows == 5  # time travel
    assert opened(out, "captions").to_pyarrow_table().num_rows == 6
    _nightly(source, folder, tiny, "2026-11-20")
    assert opened(out, "captions").version() == 1  # nothing new, no commit
    (source / "0.png").unlink()
    draw(source / "1.png", 77)
    _nightly(source, folder, tiny, "2026-11-21")
    require_equal(out)
    assert opened(out, "captions").to_pyarrow_table().num_rows == 5
    found = verify.verify(out)
    assert found.ok
    assert [problem for problem in found.problems if "delta" in problem.place] == []


def _nightly(source: Path, folder: Path, tiny: Tiny, dt: str) -> None:
    night(source, folder, tiny, dt=dt, settings=DELTA)


def test_counts_come_from_the_log_without_opening_a_file(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "m")
    for n in range(3):
        draw(tmp_path / "in" / f"{n}.png", n)
    _nightly(tmp_path / "in", tmp_path / "out", tiny, "2026-11-18")
    found = opened(storage.canonical(str(tmp_path / "out")), "embeddings")
    assert sum(pa.table(found.get_add_actions())["num_records"].to_pylist()) == 3


def test_a_run_killed_before_its_commits_is_mended_by_the_next(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = storage.create, [4]  # two for the probe, two commits

    def create(url: str, data: bytes) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(url, data)

    monkeypatch.setattr(storage, "create", create)
    with pytest.raises(KeyboardInterrupt):
        delta.register(out, {}, run_id="one")
    monkeypatch.undo()
    assert delta.register(out, {}, run_id="two") == len(PER_SHARD) - 2
    require_equal(out)
    assert {opened(out, name).version() for name in PER_SHARD} == {0}


def test_of_two_commits_at_once_one_wins_and_the_other_looks_again(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run commits, and writes a file, between our look and our commit."""
    delta.register(out, {}, run_id="one")
    url = manifest.objects(out, "labels")[0].url
    storage.write(url.replace(".parquet", "a.parquet"), storage.read(url))
    real, others = storage.create, [True]

    def create(log: str, data: bytes) -> bool:
        if "_delta_log" in log and others and others.pop():
            storage.write(url.replace(".parquet", "b.parquet"), storage.read(url))
            delta.register(out, {}, run_id="other")
        return real(log, data)

    monkeypatch.setattr(storage, "create", create)
    assert delta.register(out, {}, run_id="two") == 0
    assert [actions(out, "labels", 1)[0]["commitInfo"]["runId"]] == ["other"]
    assert len(paths(out, "labels", 1, "add")) == 2
    require_equal(out)


def test_commits_of_many_at_once_are_all_there(bucket_out: str) -> None:
    delta.register(bucket_out, {}, run_id="one")
    url = manifest.objects(bucket_out, "labels")[0].url
    data, failed = storage.read(url), []

    def commit(number: int) -> None:
        storage.write(url.replace(".parquet", f"{number}.parquet"), data)
        try:
            delta.register(bucket_out, {}, run_id=str(number))
        except ClipcapError as error:
            failed.append(error)

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    require_equal(bucket_out)
    assert 1 <= opened(bucket_out, "labels").version() <= 6


def test_a_bucket_has_logs_and_no_secret_is_told(
    bucket_out: str, s3: S3Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    assert delta.register(bucket_out, {}, run_id="one") == len(PER_SHARD)
    require_equal(bucket_out)
    for found in storage.listed(bucket_out):
        if "_delta_log" in found.url:
            assert s3.secret_key.encode() not in storage.read(found.url)
            assert s3.access_key.encode() not in storage.read(found.url)
    assert s3.secret_key not in caplog.text
    storage.write(f"{layout.table(bucket_out, 'labels')}/_delta_log/{1:020d}.json", b"{garbage\n")
    with pytest.raises(StorageError, match=r"Cannot read the Delta log .*remove") as refused:
        delta.register(bucket_out, {}, run_id="two")
    assert s3.secret_key not in str(refused.value)


def test_a_store_that_lies_is_refused_before_any_work(
    s3_environment: S3Address, made: Output
) -> None:
    url = make_bucket(s3_environment, f"versioned-{secrets.token_hex(6)}")
    s3_client(s3_environment).put_bucket_versioning(
        Bucket=url.partition("://")[2], VersioningConfiguration={"Status": "Enabled"}
    )
    with pytest.raises(SettingsError, match=r"Delta needs .* Buckets that keep versions"):
        delta.require(url)
    found = manifest.objects(made.url, "labels")[0]
    storage.write(found.url.replace(made.url, url, 1), storage.read(found.url))
    with pytest.raises(SettingsError, match="Delta needs"):
        delta.register(url, {}, run_id="one")
    assert not [found for found in storage.listed(url) if "_delta_log" in found.url]


def test_what_cannot_be_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"memory://\. Set publish\.table_format"):
        delta.require("memory://somewhere")
    delta.require(str(tmp_path))
    monkeypatch.setattr(delta, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match="pip install deltalake"):
        delta.require(str(tmp_path))


def test_a_log_that_is_removed_is_made_anew(out: str) -> None:
    delta.register(out, {}, run_id="one")
    path = storage.local_path(f"{out}/labels/_delta_log")
    assert path is not None
    shutil.rmtree(path)
    assert delta.register(out, {}, run_id="two") == 1
    require_equal(out)


def test_a_table_that_gets_a_column_gets_a_schema(
    out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta.register(out, {}, run_id="one")
    real: Callable[[Table], pa.Schema] = contract.schema
    more = pa.field("mood", pa.string())
    monkeypatch.setattr(
        contract,
        "schema",
        lambda name: real(name).append(more) if name == "labels" else real(name),
    )
    before = opened(out, "labels").metadata().id
    assert delta.register(out, {}, run_id="two") == 1
    found = opened(out, "labels")
    assert found.metadata().id == before
    assert set(found.to_pyarrow_table()["mood"].to_pylist()) == {None}


def test_what_changes_files_between_nights_lets_the_logs_follow(out: str) -> None:
    assert delta.follow(out, run_id="one") == 0
    delta.register(out, {}, run_id="two")
    storage.delete(manifest.objects(out, "labels")[0].url)
    assert delta.follow(out, run_id="three") == 1
    require_equal(out)


def test_an_output_without_the_setting_has_no_log_and_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "kind", lambda _out: pytest.fail("the store was asked"))
    tiny = make_tiny(tmp_path / "m")
    draw(tmp_path / "in" / "1.png", 1)
    night(tmp_path / "in", tmp_path / "out", tiny)
    assert list((tmp_path / "out").rglob("_delta_log")) == []


def test_a_store_that_freezes_ends_the_reading_of_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own patience is three minutes a request, and then as long again."""
    from deltalake import DeltaTable

    monkeypatch.setattr(storage, "DEADLINE_S", 8.0)
    with socket.create_server(("127.0.0.1", 0), backlog=16) as frozen:
        own = {
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{frozen.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
        }
        began = time.monotonic()
        with pytest.raises(OSError, match="_last_checkpoint"):
            DeltaTable("s3://bucket/table", storage_options=own | delta._patience())
    assert time.monotonic() - began < 60


@pytest.mark.s3
def test_a_bucket_is_asked_with_that_patience(bucket: str) -> None:
    assert delta.options(bucket).items() >= delta._patience().items()
