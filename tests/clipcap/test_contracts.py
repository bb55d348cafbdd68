"""An output of a newer contract is refused; one of an older contract is migrated, whole."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from clipcap import commits, contracts, layout, migrations, snapshots, storage, tables, verify
from clipcap.errors import NotFoundError, SettingsError
from clipcap.footers import Footers
from clipcap.front.contract import TABLES
from clipcap.layout import Table
from clipcap.stages.shard import ShardSettings
from clipcap.verify import ours
from flows.cli import COMMANDS
from tests.clipcap.test_repair import Killed, said
from tests.command import clipcap
from tests.nights import Tiny, draw, make_tiny, night, shard_night
from tests.outputs import Output

LACKING: dict[Table, str] = {"captions": "review_reasons", "manifest": "duplicate_of"}
"""What objects of a made contract 0 lack: a nullable column each."""


@pytest.fixture
def out(made: Output, tmp_path: Path) -> Path:
    """A copy of an output, free to be changed."""
    return Path(shutil.copytree(made.folder, tmp_path / "out"))


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """Tiny models."""
    return make_tiny(tmp_path / "models")


def url(out: Path) -> str:
    """Return its canonical URL."""
    return storage.canonical(str(out))


def sign(path: Path, lost: str = "", **footer: str) -> None:
    """Write an object again with other keys in its footer, and maybe without a column."""
    rows = tables.read(str(path))
    signed = tables.metadata(rows) | footer
    if lost:
        rows = rows.drop_columns([lost])
    path.write_bytes(tables.to_bytes(rows, signed))


def files(out: Path, name: str) -> list[Path]:
    """Return the objects of a table."""
    return sorted((out / name).rglob("*.parquet"))


def stands(out: Path) -> dict[Path, bytes]:
    """Return every byte of an output."""
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


class TestNewer:
    """What a newer version has written is neither read nor written."""

    def test_one_object_refuses_a_night_before_any_work(self, made: Output, out: Path) -> None:
        path = files(out, "captions")[0]
        sign(path, contract="2", producer="clipcap 9.1")
        before = stands(out)
        with pytest.raises(SettingsError, match=r"clipcap 9\.1 wrote it under contract 2") as error:
            contracts.require_current(url(out))
        assert path.name in str(error.value)
        assert "Upgrade" in str(error.value)
        with pytest.raises(SettingsError, match="contract 2"):
            verify.verify(str(out))
        with pytest.raises(SettingsError, match="contract 2"):
            migrations.migrate(url(out), apply=True)
        done = clipcap("run", made.source, out, "--model", made.tiny.encoder.model, "--captioner",
                       made.tiny.captioner.captioner, "--label-set", made.tiny.label_set,
                       "--no-server")  # fmt: skip
        assert done.code == 2
        assert "Upgrade clipcap" in done.err
        assert stands(out) == before

    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_every_command_refuses_it(self, out: Path, name: str) -> None:
        (out / "contract.json").write_text(json.dumps({"contract": 2}))
        words: dict[str, list[object]] = {
            "run": ["SOURCE", out], "plan": ["SOURCE", out], "shard": ["SOURCE", out],
            "where": [out, "--to", "w"], "choose": [out, "--to", "c"], "ask": [out],
            "models": ["promoted", out], "labels": ["propose", out, "--to", "x.toml"],
        }  # fmt: skip
        if name in (
            "bench",
            "import-clipcap",
            "export-clipcap",
            "compare",
            "doctor",
            "automations",
        ):
            return  # they have no output
        before = stands(out)
        done = clipcap(name, *words.get(name, [out]))
        assert done.code == 2, done.err
        assert "knows, but a newer clipcap wrote it under contract 2" in done.err
        assert stands(out) == before

    def test_the_newest_run_tells_which_version_it_was(self, out: Path) -> None:
        (out / "contract.json").write_text(json.dumps({"contract": 2}))
        sign(files(out, "runs")[-1], contract="2", producer="clipcap 9.1")
        with pytest.raises(SettingsError, match=r"clipcap 9\.1"):
            contracts.require_known(url(out))

    def test_what_was_listed_is_not_asked_again(self, made: Output) -> None:
        with patch.object(tables, "footer", side_effect=AssertionError("asked")):
            contracts.require_current(made.url)

    def test_a_run_says_its_contract_before_anything_else(self, made: Output) -> None:
        written: list[str] = []
        with patch.object(storage, "write", lambda where, *_: written.append(where)):
            contracts.announce("memory://nothing-there")
        assert [where.rpartition("/")[2] for where in written] == ["contract.json"]


def of_contract_0(out: Path) -> None:
    """Make of an output what a version before contract 1 might have left."""
    for name in TABLES:
        for path in files(out, name):
            sign(path, LACKING.get(name, ""), contract="0")
    (out / "contract.json").write_text(json.dumps({"contract": 0}))


def step(name: Table, rows: pa.Table, _footer: object) -> pa.Table:
    """Give the tables the columns that they lack."""
    wanted = tables.SCHEMAS.get(name)
    if name not in LACKING or wanted is None:
        return rows
    at = wanted.get_field_index(LACKING[name])
    field = wanted.field(at)
    return rows.add_column(at, field, pa.nulls(rows.num_rows, field.type))


@pytest.fixture
def steps() -> Iterator[None]:
    """A way from contract 0 to contract 1."""
    with patch.dict(migrations.STEPS, {0: step}):
        yield


class TestMigrate:
    """An output of an older contract, brought to today's."""

    def test_a_night_is_refused_until_it_is_done_and_then_computes_nothing(
        self, made: Output, out: Path, steps: None
    ) -> None:
        whole = said(made.url)
        of_contract_0(out)
        with pytest.raises(SettingsError, match="clipcap migrate"):
            contracts.require_current(url(out))
        before = stands(out)
        planned = migrations.migrate(url(out), apply=False)
        assert stands(out) == before
        assert planned.older == {0: planned.objects}
        assert migrations.migrate(url(out), apply=True).older == planned.older
        assert migrations.migrate(url(out), apply=True).older == {}
        contracts.require_current(url(out))
        assert verify.verify(str(out), mode="full").problems == ()
        done, _ = night(made.source, out, made.tiny, dt="2026-11-21")
        assert {one.state for one in done.outcomes} == {"unchanged"}
        assert said(url(out)) == whole

    def test_the_list_says_what_became_of_objects_that_a_failed_night_had_left(
        self, made: Output, out: Path, steps: None
    ) -> None:
        """The list of the night before knew their footers: their etags alone were made anew."""
        one = files(out, "captions")[0]
        rows = tables.read(str(one))
        signed = tables.metadata(rows) | {"recipe": "another"}
        one.write_bytes(tables.to_bytes(rows, signed))
        of_contract_0(out)
        migrations.migrate(url(out), apply=True)
        told = snapshots.newest(url(out))
        assert told is not None
        assert told.objects[str(one.relative_to(out))]["recipe"] == "another"
        known = Footers(url(out)).of(layout.folder_of(str(one)))
        assert known[layout.shard_of(str(one))].recipe == "another"

    def test_footers_are_read_beside_each_other(self, out: Path, steps: None) -> None:
        """One after the other, each waits for the store: of years of nights, for hours."""
        of_contract_0(out)
        barrier = threading.Barrier(2, timeout=10)
        real, asked = commits.find, []

        def find(where: str) -> commits.Commit | None:
            asked.append(where)
            if len(asked) <= 2:
                barrier.wait()
            return real(where)

        with patch.object(commits, "find", find):
            migrations.migrate(url(out), apply=True)
        assert len(asked) > 2

    def test_a_migration_that_was_killed_goes_on_and_no_run_writes_meanwhile(
        self, made: Output, out: Path, steps: None
    ) -> None:
        of_contract_0(out)
        count = len([path for name in TABLES for path in files(out, name)])
        real, left = storage.write, [0]

        def dying(where: str, *parts: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            real(where, *parts)

        for writes in (1, 2, 5, count // 2):
            left[0] = writes
            with patch.object(storage, "write", dying), pytest.raises(Killed):
                migrations.migrate(url(out), apply=True)
            with pytest.raises(SettingsError, match="clipcap migrate"):
                contracts.require_current(url(out))
        migrations.migrate(url(out), apply=True)
        contracts.require_current(url(out))
        assert verify.verify(str(out)).problems == ()
        assert said(url(out)) == said(made.url)

    def test_a_single_object_of_an_older_contract_is_found_and_not_repaired_away(
        self, made: Output, out: Path, steps: None
    ) -> None:
        sign(files(out, "captions")[0], LACKING["captions"], contract="0")
        with pytest.raises(SettingsError, match="older 0"):
            contracts.require_current(url(out))
        with pytest.raises(SettingsError, match="migrate"):
            verify.repair(verify.verify(str(out)), apply=True)
        assert migrations.migrate(url(out), apply=True).older == {0: 1}
        assert said(url(out)) == said(made.url)

    def test_without_a_way_nothing_is_changed(self, out: Path) -> None:
        of_contract_0(out)
        before = stands(out)
        with pytest.raises(SettingsError, match="no way from contract 0"):
            migrations.migrate(url(out), apply=True)
        assert stands(out) == before

    def test_no_output_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="holds no table"):
            migrations.migrate(url(tmp_path), apply=False)

    def test_the_command_says_what_it_would_do(self, out: Path, steps: None) -> None:
        assert "already" in clipcap("migrate", out).out
        of_contract_0(out)
        would = clipcap("migrate", out)
        assert "would be of contract 1" in would.out
        assert "--apply" in would.out
        assert "are now of contract 1" in clipcap("migrate", out, "--apply").out
        assert json.loads(clipcap("migrate", out, "--json").out)["older"] == {}

    def test_a_column_that_only_some_files_have_is_lost_to_pandas_until_then(
        self, out: Path, steps: None
    ) -> None:
        """Why no night writes beside older objects: readers of a folder trust its first file."""
        older, newer = files(out, "captions")[0], files(out, "captions")[-1]
        sign(older, "review_reasons", contract="0")
        folder = out / "captions"
        assert "review_reasons" not in pd.read_parquet(folder).columns
        assert "review_reasons" not in ds.dataset(folder).schema.names
        mixed = [str(older), str(newer)]
        assert "review_reasons" in pl.read_parquet(mixed[::-1], missing_columns="insert").columns
        query = f"SELECT review_reasons FROM read_parquet({mixed}, union_by_name = true)"
        assert duckdb.connect().execute(query).fetchall()
        migrations.migrate(url(out), apply=True)
        assert "review_reasons" in pd.read_parquet(folder).columns
        assert "review_reasons" in ds.dataset(folder).schema.names


class TestOurs:
    """A run writes only where nobody else has put anything."""

    def test_a_folder_of_somebody_else_is_refused_and_nothing_is_written(
        self, made: Output, tmp_path: Path
    ) -> None:
        theirs = tmp_path / "theirs"
        for name in ("README.md", "src/main.c", "_SUCCESS", "part-0.parquet"):
            (theirs / name).parent.mkdir(parents=True, exist_ok=True)
            (theirs / name).write_text("mine")
        before = stands(theirs)
        done = clipcap("shard", made.source, theirs, "--no-server")
        assert done.code == 2
        assert "holds other things" in done.err
        assert f"{theirs}/clipcap" in done.err
        assert stands(theirs) == before
        assert clipcap("embed", theirs, "--model", made.tiny.encoder.model).code == 2
        assert stands(theirs) == before

    @pytest.mark.parametrize("name", ["README.md", "_SUCCESS", "captions/mine.parquet", "notes"])
    def test_one_file_that_looks_like_ours_is_not(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(SettingsError, match=name.replace(".", r"\.")):
            ours.require_ours(str(tmp_path))

    def test_a_file_is_no_output(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(SettingsError, match="is a file"):
            ours.require_ours(f"{tmp_path}/out")

    def test_what_is_empty_or_ours_is_taken(self, made: Output, out: Path, tmp_path: Path) -> None:
        ours.require_ours(f"{tmp_path}/nowhere")
        (tmp_path / "empty" / ".git").mkdir(parents=True)
        (tmp_path / "empty" / ".git" / "HEAD").write_text("hidden")
        ours.require_ours(f"{tmp_path}/empty")
        ours.require_ours(made.url)
        (out / "notes.txt").write_text("mine")
        ours.require_ours(str(out))
        for name in ("contract.json", "README.md", "_latest.json"):
            (out / name).unlink()
        ours.require_ours(str(out))
        ours.require_ours("memory://nobody-was-here")

    @pytest.mark.parametrize("changes", range(1, 9))
    def test_what_a_first_night_leaves_when_it_is_killed_is_taken(
        self, made: Output, tmp_path: Path, changes: int
    ) -> None:
        real, left = storage.write, [changes]

        def dying(where: str, *parts: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            real(where, *parts)

        with patch.object(storage, "write", dying), pytest.raises(Killed):
            night(made.source, tmp_path / "new", made.tiny)
        ours.require_ours(f"{tmp_path}/new")
        (tmp_path / "new" / "contract.json").unlink()
        ours.require_ours(f"{tmp_path}/new")

    @pytest.mark.parametrize("left", [0, 1])
    def test_an_output_that_lost_its_manifests_is_not_taken_for_a_new_one(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
    ) -> None:
        """A night read every image anew, and removed the other tables: nothing named them."""
        for n in range(6):
            draw(tmp_path / "in" / f"{n}.png", n)
        night(tmp_path / "in", tmp_path / "out", tiny, max_images=1)
        out = tmp_path / "out"
        monkeypatch.setattr(ours, "FEW", 3)
        ours.require_kept(str(out))
        for path in files(out, "manifest")[left:]:
            path.unlink()
        before = stands(out)
        done = clipcap("shard", tmp_path / "in", out, "--no-server")
        assert done.code == 2
        assert "the manifests of 6 shards that the run run-" in done.err
        assert f"but {6 - left} are gone" in done.err
        assert stands(out) == before
        assert f"remove {url(out)}/_latest.json" in done.err
        (out / "_latest.json").unlink()
        _, published = night(tmp_path / "in", out, tiny, max_images=1)
        assert published.live == 6
        assert verify.verify(str(out)).problems == ()

    def test_shards_that_a_run_has_retired_are_not_missed(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Everything was uploaded anew, and the night ended before it published."""
        source, out = tmp_path / "in", storage.canonical(f"{tmp_path}/out")
        for n in range(6):
            draw(source / f"{n}.png", n)
        night(source, out, tiny, max_images=1)
        monkeypatch.setattr(ours, "FEW", 3)
        for n in range(6):
            draw(source / f"{n}.png", n + 50)
        plan = shard_night(str(source), out, ShardSettings(), dt="2026-11-21")
        assert len(plan.retired) == 6
        ours.require_kept(out)

    def test_what_is_being_forgotten_is_not_missed(self, tiny: Tiny, tmp_path: Path) -> None:
        """The tars are searched for hours, and who is told to restore them would undo it."""
        out = storage.canonical(f"{tmp_path}/out")
        draw(tmp_path / "in" / "a.png", 1)
        night(tmp_path / "in", out, tiny)
        files(tmp_path / "out", "manifest")[0].unlink()
        with pytest.raises(SettingsError, match="1 are gone"):
            ours.require_kept(out)
        storage.write(f"{layout.unfinished(out)}/0.json", b"{}")
        ours.require_kept(out)

    @pytest.mark.parametrize("left", [0, 1])
    def test_an_output_that_lost_its_tars_is_refused_before_any_work(
        self, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
    ) -> None:
        """A night did all its work, and was refused where it would have published."""
        source, out = tmp_path / "in", tmp_path / "out"
        for n in range(6):
            draw(source / f"{n}.png", n)
        night(source, out, tiny, max_images=1)
        monkeypatch.setattr(ours, "FEW", 3)
        for path in sorted((out / "shards").rglob("*.tar"))[left:]:
            path.unlink()
        draw(source / "new.png", 9)
        before = stands(out)
        done = clipcap("shard", source, out, "--no-server")
        assert done.code == 2
        assert "the tars of 6 shards that the run run-" in done.err
        assert f"but {6 - left} are gone, such as {url(out)}/shards/" in done.err
        assert stands(out) == before
        assert clipcap("verify", out, "--repair").code == 0
        ours.require_kept(str(out))
        _, published = night(source, out, tiny, max_images=1)
        assert published.live == 7
        assert verify.verify(str(out)).problems == ()

    def test_few_tars_that_are_gone_are_left_to_the_end_of_the_night(
        self, tiny: Tiny, tmp_path: Path
    ) -> None:
        """What the night did stays, and is published once they are back."""
        for n in range(3):
            draw(tmp_path / "in" / f"{n}.png", n)
        night(tmp_path / "in", tmp_path / "out", tiny, max_images=1)
        next((tmp_path / "out" / "shards").rglob("*.tar")).unlink()
        ours.require_kept(str(tmp_path / "out"))

    def test_few_manifests_that_are_gone_are_left_to_verify(self, made: Output, out: Path) -> None:
        files(out, "manifest")[0].unlink()
        ours.require_kept(str(out))
        (out / "_latest.json").write_text("{")
        ours.require_kept(str(out))

    def test_a_source_and_its_output_are_two_places(self, made: Output, tmp_path: Path) -> None:
        source = str(made.source)
        with pytest.raises(SettingsError, match="both are"):
            ours.require_apart(source, source + "/")
        with pytest.raises(SettingsError, match="both are"):
            ours.require_apart(f"{source}/*.jpg", source)
        with pytest.raises(SettingsError, match="inside of the output"):
            ours.require_apart(source, str(made.source.parent))
        with pytest.raises(SettingsError, match="inside of the output"):
            ours.require_apart("s3://bucket/out/shards/*.tar", "s3://bucket/out")
        ours.require_apart(source, f"{source}/out")
        ours.require_apart("s3://bucket/outer", "s3://bucket/out")
        (tmp_path / "list.csv").write_text("url\n")
        ours.require_apart(f"{tmp_path}/list.csv", str(tmp_path))
