"""Images taken out of an output for ever; every search here is the tests' own."""

from __future__ import annotations

import gc
import hashlib
import html
import io
import json
import re
import secrets
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import (
    forgotten,
    index,
    keys,
    layout,
    manifest,
    shards,
    snapshots,
    storage,
    tables,
    verify,
)
from clipcap import traces as traces_of
from clipcap.errors import NotFoundError, SettingsError
from clipcap.footers import Footers
from clipcap.forgotten import Image
from clipcap.layout import Run
from clipcap.outcomes import Night
from clipcap.stages import forget as stage
from clipcap.stages import publish, shard
from clipcap.traces import Needles
from tests.clipcap.test_life import SETTINGS, Crash, dies_at, fill, live, night, picture, rejected
from tests.nights import PUBLISH, Tiny, draw, make_tiny, over
from tests.nights import night as whole_night


def texts(value: object) -> Iterator[str]:
    """Yield every text in a value of Parquet or JSON; bytes as hex."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield str(name)
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)
    elif isinstance(value, bytes):
        yield value.hex()
        yield value.decode("latin-1")
    elif value is not None:
        yield str(value).replace("-", "") if "UUID" in type(value).__name__ else str(value)


def said(url: str, data: bytes) -> str:
    """Return all that an object says, as one text."""
    parts = [data.decode("latin-1"), hashlib.sha256(data).hexdigest()]
    if url.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(data))
        parts += [*texts(table.to_pylist()), *texts(table.schema.metadata or {})]
    elif url.endswith(".json"):
        parts += texts(json.loads(data))
    elif url.endswith(".html"):
        parts.append(html.unescape(data.decode()))
    elif url.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                body = stream.read() if stream else b""
                parts += [member.name, hashlib.sha256(body).hexdigest(), body.decode("latin-1")]
    return "\n".join(parts)


def traces(out: str, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return every object outside the record, and what of some images it says; by brute force."""
    found = []
    for info in storage.listed(out):
        path = info.url.removeprefix(f"{out}/")
        if path.startswith("_forgotten/"):
            continue
        text = said(info.url, storage.read(info.url))
        for row in rows:
            names = [row["image_id"], row["key"], row["content_sha256"]]
            uri = row["source_uri"]
            found += [(path, name) for name in names if name and name in text]
            if re.search(rf"{re.escape(uri)}(?![\w%.])|{re.escape(unquote(uri))}(?![\w%.])", text):
                found.append((path, uri))
    return found


def rows_of(out: str) -> list[dict[str, Any]]:
    """Return the manifest's rows of all shards."""
    return [
        row
        for one in manifest.shards(out)
        for row in tables.read(layout.manifest(out, one)).to_pylist()
    ]


def row_of(out: str, name: str) -> dict[str, Any]:
    """Return the manifest's row of the image of a file name."""
    return next(row for row in rows_of(out) if row["source_uri"].endswith(f"/{name}"))


def records(out: str) -> list[str]:
    """Return the objects that keep images out, and journals."""
    return [info.url for info in storage.listed(f"{out}/_forgotten")]


@pytest.fixture
def place() -> tuple[str, str]:
    """Give a source and an output in memory that nobody else has."""
    name = secrets.token_hex(6)
    return f"memory://source-{name}", f"memory://out-{name}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def made(tmp_path: Path, tiny: Tiny) -> tuple[Path, str]:
    """A source of nine drawings with captions, and its finished output."""
    for n in range(9):
        draw(tmp_path / "in" / f"thing {n}.png", n)
        (tmp_path / "in" / f"thing {n}.txt").write_text(f"a thing {n}.")
    whole_night(tmp_path / "in", tmp_path / "out", tiny)
    return tmp_path / "in", storage.canonical(str(tmp_path / "out"))


def test_a_forgotten_image_is_in_no_object_and_the_rest_is_as_it_was(
    made: tuple[Path, str], tiny: Tiny
) -> None:
    source, out = made
    gone = row_of(out, "thing%203.png")
    before = {row["key"]: row for row in rows_of(out)}
    assert len({path for path, _ in traces(out, [gone])}) > 5
    seen = stage.preview(out, [gone["key"]])
    assert (seen.images, seen.twins, seen.shards, seen.tars, len(seen.reports)) == (1, 0, 1, 1, 1)
    assert len({path for path, _ in traces(out, [gone])}) > 5
    done = stage.forget(out, [gone["key"]])
    assert done.ok
    assert traces(out, [gone]) == []
    assert verify.verify(out, mode="full").problems == ()
    after = {row["key"]: row for row in rows_of(out)}
    assert after.keys() == before.keys() - {gone["key"]}
    for key, row in after.items():
        assert row["member_offset"] == before[key]["member_offset"]
    for info in storage.listed(f"{out}/captions"):
        assert gone["image_id"] not in tables.read(info.url)["image_id"].to_pylist()
    assert len(records(out)) == 1
    done2, published = whole_night(source, out, tiny, dt="2026-11-21")
    assert done2.plan is not None
    assert (done2.plan.listed, done2.plan.new, done2.plan.deleted) == (8, 0, 0)
    assert published.live == 8
    assert traces(out, [gone]) == []
    assert verify.verify(out, mode="full").problems == ()


@pytest.mark.parametrize("how", ["key", "image_id", "uri", "path", "prefix", "folder"])
def test_every_way_to_name_an_image_takes_out_the_same(made: tuple[Path, str], how: str) -> None:
    source, out = made
    gone = row_of(out, "thing%205.png")
    words = {
        "key": gone["key"],
        "image_id": gone["image_id"],
        "uri": gone["source_uri"],
        "path": f"{source}/thing 5.png",
        "prefix": f"{source}/thing 5*",
        "folder": f"{source}/",
    }
    done = stage.forget(out, [words[how]])
    assert done.ok
    assert traces(out, [gone]) == []
    assert len(rows_of(out)) == (0 if how == "folder" else 8)
    assert verify.verify(out, mode="full").ok


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tars_are_read_on_by_every_reader(made: tuple[Path, str], tmp_path: Path) -> None:
    import subprocess

    import webdataset

    _, out = made
    gone = [
        row_of(out, "thing%200.png"),
        row_of(out, "thing%202.png"),
        row_of(out, "thing%203.png"),
    ]
    url = layout.tar(out, next(s for s in manifest.shards(out) if s.name == gone[0]["shard"]))
    size = storage.info(url)
    assert stage.forget(out, [row["image_id"] for row in gone]).ok
    now = storage.info(url)
    assert size is not None
    assert now is not None
    assert now.size_bytes == size.size_bytes
    path = storage.local_path(url)
    with tarfile.open(path) as tar:
        assert len([one for one in tar if one.name.startswith("__forgotten")]) >= 2
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    gc.collect()  # it leaves files open
    kept = {row["key"] for row in rows_of(out) if row["shard"] == gone[0]["shard"]}
    assert {sample["__key__"] for sample in read} == kept
    assert all({"png", "txt"} <= sample.keys() for sample in read)
    subprocess.run(["tar", "-xf", str(path), "-C", str(tmp_path)], check=True)
    assert {one.stem for one in tmp_path.glob("*.png")} == kept


def test_all_of_a_shard_and_all_of_an_output_may_go(place: tuple[str, str]) -> None:
    source, out = place
    bucket = fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abcdef")})
    night(source, out)
    first = manifest.shards(out)[0]
    keys_of = tables.read(layout.manifest(out, first))["key"].to_pylist()
    assert stage.forget(out, keys_of).ok
    assert storage.info(layout.tar(out, first)) is None
    assert first not in manifest.shards(out)
    everything = rows_of(out)
    assert stage.forget(out, [f"{source}/*"]).ok
    assert traces(out, everything) == []
    plan = night(source, out, dt="2026-11-21")
    assert (plan.listed, plan.new, plan.deleted, len(bucket)) == (0, 0, 0, 6)
    assert live(out) == []


def test_the_same_bytes_under_another_name_are_refused(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2, "cat.png": 3})
    night(source, out)
    gone = row_of(out, "ant.png")
    assert stage.forget(out, [gone["key"]]).ok
    fill(source, {"new.png": 1, "dog.png": 4})
    plan = night(source, out, dt="2026-11-21")
    assert (plan.listed, plan.new, plan.unchanged) == (4, 2, 2)
    assert [row["uri"].rpartition("/")[2] for row in live(out)] == ["bee.png", "cat.png", "dog.png"]
    assert rejected(out) == [f"{source}/new.png"]
    (reject,) = [
        row for s in manifest.shards(out) for row in manifest.read_rejects(out, s).to_pylist()
    ]
    assert (reject["reason"], reject["retryable"]) == ("opted_out", False)
    assert traces(out, [gone]) == []
    assert night(source, out, dt="2026-11-22").unchanged == 4


def test_twins_go_too_and_may_come_back_with_other_bytes(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "twin.png": 1, "cat.png": 3})
    night(source, out)
    rows = [row_of(out, "ant.png"), row_of(out, "twin.png")]
    assert stage.preview(out, [rows[0]["key"]]).twins == 1
    done = stage.forget(out, [rows[0]["key"]])
    assert (done.ok, done.twins) == (True, 1)
    assert traces(out, rows) == []
    fill(source, {"twin.png": 9, "ant.png": 8})
    night(source, out, dt="2026-11-21")
    assert [row["uri"].rpartition("/")[2] for row in live(out)] == ["cat.png", "twin.png"]


def test_duplicates_of_another_source_go_too(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    fill(f"{source}-2", {"copy.png": 1, "cow.png": 5})
    night(source, out)
    night(f"{source}-2", out, dt="2026-11-21")
    rows = [row_of(out, "ant.png"), row_of(out, "copy.png")]
    assert stage.forget(out, [f"{source}/ant.png"]).ok
    assert traces(out, rows) == []
    night(f"{source}-2", out, dt="2026-11-22")
    assert rejected(out) == [f"{source}-2/copy.png"]


def test_old_versions_of_an_image_leave_their_tars(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    night(source, out)
    old = row_of(out, "ant.png")
    fill(source, {"ant.png": 7})
    night(source, out, dt="2026-11-21")
    assert stage.forget(out, [old["key"]]).ok
    assert (
        traces(out, [old, old | {"content_sha256": hashlib.sha256(picture(7)).hexdigest()}]) == []
    )


def test_a_reject_is_forgotten_with_its_message(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bad.png": 0})
    night(source, out)
    uri = f"{source}/bad.png"
    done = stage.forget(out, [uri])
    assert (done.ok, done.rejects) == (True, 1)
    row = {"image_id": keys.image_id(uri), "key": keys.sample_key(uri), "source_uri": uri}
    assert traces(out, [row | {"content_sha256": ""}]) == []
    assert night(source, out, dt="2026-11-21").listed == 1


def test_a_prefix_that_matches_nothing_keeps_out_what_comes(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1})
    night(source, out)
    assert stage.preview(out, [f"{source}/private/"]).images == 0
    assert stage.forget(out, [f"{source}/private/"]).ok
    fill(source, {"private/bee.png": 2, "privately.png": 3})
    night(source, out, dt="2026-11-21")
    assert [row["uri"].rpartition("/")[2] for row in live(out)] == ["ant.png", "privately.png"]


def test_a_mistake_is_taken_back(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2, "twin.png": 2})
    night(source, out)
    gone = row_of(out, "bee.png")
    stage.forget(out, [gone["key"], f"{source}/c*"])
    night(source, out, dt="2026-11-21")
    assert rejected(out) == [f"{source}/twin.png"]
    assert stage.allow(out, [gone["key"]]) == [gone["image_id"]]
    with pytest.raises(SettingsError, match="Nothing of"):
        stage.allow(out, [gone["key"]])
    assert forgotten.load(out).prefixes == (f"{source}/c",)
    night(source, out, dt="2026-11-22")
    assert len(live(out)) == 3
    assert stage.allow(out, [f"{source}/c*"]) == [f"{source}/c"]
    assert records(out) == []


NOW = datetime(2026, 11, 21, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)<",
    "a b.png 2",
    "quo\"te's",
    "per%20cent",
    "\u2603 snow",
    "new\nline",
    "a",
    "a.png",
    "$(x)",
]


def test_names_of_any_form_go_and_their_neighbours_stay(tmp_path: Path, tiny: Tiny) -> None:
    for n, name in enumerate(HOSTILE):
        draw(tmp_path / "in" / f"{name}.png", n)
    whole_night(tmp_path / "in", tmp_path / "out", tiny)
    out = storage.canonical(str(tmp_path / "out"))
    rows = rows_of(out)
    for number, name in enumerate(HOSTILE, 1):
        gone = [row for row in rows if unquote(row["source_uri"]).endswith(f"/in/{name}.png")]
        assert len(gone) == 1
        assert stage.forget(out, [gone[0]["image_id"]]).ok
        assert traces(out, gone) == []
        assert len(rows_of(out)) == len(HOSTILE) - number
        assert verify.verify(out, mode="full").ok


def test_whatever_an_output_holds_of_an_image_goes(made: tuple[Path, str]) -> None:
    _, out = made
    gone, stays = row_of(out, "thing%201.png"), row_of(out, "thing%202.png")
    for path in ("_training/views/model=m/view=1/dt=2026-11-20/x", "_index/x", "_listings/x/y"):
        table = pa.table({"id": [bytes.fromhex(gone["image_id"])], "name": [gone["source_uri"]]})
        storage.write(f"{out}/{path}.parquet", tables.to_bytes(table, {}))
    storage.write(f"{out}/_training/mine.safetensors", b"weights")
    both = pa.table({"image_id": [gone["image_id"], stays["image_id"]], "n": [[1], [2]]})
    for path in ("captioners/_promoted/000001", "answers/dt=2026-11-20/x", "_plans/r/x"):
        storage.write(f"{out}/{path}.parquet", tables.to_bytes(both, {"kind": "mine"}))
    lists = {"live": [gone["image_id"], stays["image_id"]], "rejects": []}
    storage.write(f"{out}/_plans/r/x.retire.json", json.dumps(lists).encode())
    page = "<p title='thing'><img alt='thing 1.png' src='data:image/jpeg;base64,xx'></p>"
    storage.write(f"{out}/where.html", page.encode())
    run = layout.runs(Run("run-x", out, "2026-11-19"))
    old = next(info.url for info in manifest.objects(out, "runs"))
    row = tables.read(old).to_pylist()[0] | {
        "error_message": f"Cannot get {gone['source_uri']}: no."
    }
    made_row = tables.from_rows([row], tables.SCHEMAS["runs"])
    storage.write(run, tables.to_bytes(made_row, {}))
    assert stage.forget(out, [gone["key"]]).ok
    assert traces(out, [gone]) == []
    assert tables.read(run)["error_message"].to_pylist() == ["Cannot get [forgotten]: no."]
    kept = tables.read(f"{out}/captioners/_promoted/000001.parquet")
    assert kept["image_id"].to_pylist() == [stays["image_id"]]
    assert tables.metadata(kept)["kind"] == "mine"
    assert json.loads(storage.read(f"{out}/_plans/r/x.retire.json"))["live"] == [stays["image_id"]]
    assert b"was removed" in storage.read(f"{out}/where.html")
    assert storage.listed(f"{out}/_training") == []


def test_what_cannot_be_cleaned_is_told_and_ends_when_a_person_did_it(
    made: tuple[Path, str],
) -> None:
    _, out = made
    gone = row_of(out, "thing%201.png")
    storage.write(f"{out}/notes.csv", f"name,said\n{gone['key']},nice\n".encode())
    path = storage.local_path(gone["source_uri"])
    assert path is not None
    storage.write(f"{out}/copy.png", path.read_bytes())
    storage.write(f"{out}/broken.parquet", b"PAR1 no")
    done = stage.forget(out, [gone["key"]])
    assert not done.ok
    assert [one.partition(":")[0] for one in done.left] == [
        "broken.parquet",
        "copy.png",
        "notes.csv",
    ]
    for name in ("notes.csv", "copy.png", "broken.parquet"):
        storage.delete(f"{out}/{name}")
    assert len(records(out)) == 2
    assert stage.forget(out, [gone["key"]]).ok
    assert len(records(out)) == 1


def crashes(act: Callable[[str], object], prepare: Callable[[], str]) -> Iterator[tuple[str, int]]:
    """Yield outputs on which an act died behind each of its writes, which is before the next."""
    for n in range(1, 200):
        out = prepare()
        try:
            with dies_at(n, after=True):
                act(out)
        except Crash:
            yield out, n
        else:
            return


def test_a_kill_at_any_write_and_a_second_run_end_the_same() -> None:
    name = secrets.token_hex(6)
    source = f"memory://source-{name}"
    fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abcd")} | {"twin.png": 2})

    def prepare() -> str:
        out = f"memory://out-{secrets.token_hex(6)}"
        storage.write(f"{source}/b.png", picture(2))
        night(source, out)
        run = Run("run-1", out, "2026-11-20")
        for shard_ in manifest.shards(out):  # stands for the tables of the other stages
            table = tables.read(layout.manifest(out, shard_))
            columns = table.select(["image_id", "key", "content_sha256"])
            footer = {"members": tables.metadata(table)["members"], "recipe": "r"}
            url = layout.labels(out, shard_, label_set="x")
            storage.write(url, tables.to_bytes(columns, footer))
        snapshots.publish(run, Footers(out).entries())
        said = " ".join(row["source_uri"] for row in rows_of(out))
        storage.write(f"{out}/reports/run-1/index.html", f"<p>{said}</p>".encode())
        return out

    key = keys.sample_key(f"{source}/b.png")
    checked = 0
    for out, n in crashes(lambda out: stage.forget(out, [key]), prepare):
        uris = [f"{source}/b.png", f"{source}/twin.png"]
        content = hashlib.sha256(picture(2)).hexdigest()
        rows = [
            {"image_id": keys.image_id(u), "key": keys.sample_key(u), "source_uri": u}
            | {"content_sha256": content}
            for u in uris
        ]
        if n % 2:  # a night comes between
            night(source, out, dt="2026-11-21")
        if n % 3:
            assert stage.forget(out, [key]).ok
        else:  # nobody remembers what was asked
            stage.forget(out, [])
            if forgotten.load(out):
                assert stage.forget(out, []).ok
            else:
                assert stage.forget(out, [key]).ok
        assert traces(out, rows[:1]) == []
        assert [one for one in records(out) if "unfinished" in one] == []
        if n % 2 == 0:
            night(source, out, dt="2026-11-22")
        assert traces(out, rows[:1]) == []
        names = [row["uri"].rpartition("/")[2] for row in live(out)]
        assert names == [f"{one}.png" for one in "acd"]
        assert set(rejected(out)) <= set(uris[1:])
        checked += 1
    assert checked > 12


def test_what_is_forgotten_while_a_night_runs_is_in_no_shard(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abcdef")})
    night(source, out, limit=1)
    gone = f"{source}/d.png"
    row = {"image_id": keys.image_id(gone), "key": keys.sample_key(gone), "source_uri": gone}
    row |= {"content_sha256": hashlib.sha256(picture(4)).hexdigest()}
    run = Run("run-2", out, "2026-11-21")
    real = manifest.publish

    def slow(table: pa.Table, *args: Any, **more: Any) -> Any:  # noqa: ANN401
        done = real(table, *args, **more)
        if row["key"] in table["key"].to_pylist():
            forgotten.keep_out(out, forgotten.Record(at=NOW, images={row["image_id"]: ()}))
        return done

    plan = shard.plan(source, run=run, settings=SETTINGS)
    for part in plan.planned:
        with patch.object(manifest, "publish", side_effect=slow):
            shard.shard(part.shard, run=run, settings=SETTINGS)
    assert [row["uri"].rpartition("/")[2] for row in live(out)] == [f"{n}.png" for n in "abcef"]
    assert {path.partition("/")[0] for path, _ in traces(out, [row])} == {"_plans"}
    plan = night(source, out, dt="2026-11-22")
    assert (plan.listed, plan.new) == (5, 0)


def test_a_planned_image_that_is_forgotten_is_not_read(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abc")})
    night(source, out, limit=1)
    run = Run("run-2", out, "2026-11-21")
    plan = shard.plan(source, run=run, settings=SETTINGS)
    done = stage.forget(out, [f"{source}/b.png"])
    assert any("under way" in note for note in done.notes)
    for part in plan.planned:
        shard.shard(part.shard, run=run, settings=SETTINGS)
    assert [row["uri"].rpartition("/")[2] for row in live(out)] == ["a.png", "c.png"]
    assert rejected(out) == []


def test_rows_that_are_kept_out_may_all_go_in_one_night(place: tuple[str, str]) -> None:
    """A record was written, then the run was killed: the guard against mistyped globs is quiet."""
    source, out = place
    fill(source, {f"x/{n:02}.png": n + 1 for n in range(25)} | {"y.png": 99})
    night(source, out)
    forgotten.keep_out(out, forgotten.Record(at=NOW, prefixes={f"{source}/x/": ()}))
    plan = night(source, out, dt="2026-11-21", max_delete_rate=0.5)
    assert (plan.listed, plan.deleted, len(live(out))) == (1, 25, 1)


def test_names_that_nobody_has_are_refused(place: tuple[str, str]) -> None:
    source, out = place
    with pytest.raises(NotFoundError, match="must be an output"):
        stage.preview(out, ["x-0123456789ab"])
    fill(source, {"ant.png": 1})
    night(source, out)
    with pytest.raises(SettingsError, match=r"No image of .* has the key x-0123456789ab"):
        stage.forget(out, ["x-0123456789ab"])
    with pytest.raises(SettingsError, match="at least a bucket or a folder"):
        stage.forget(out, ["s3://"])
    with pytest.raises(SettingsError, match="is empty"):
        stage.forget(out, [""])
    fill(source, {"deep/bee.png": 2})
    night(source, out)
    with pytest.raises(SettingsError, match=r"but 1 lie below it, such as .*/deep/bee.png"):
        stage.forget(out, [f"{source}/deep"])
    storage.write(f"{out}/_forgotten/x.json", b"{}")
    with pytest.raises(SettingsError, match=r"record .* cannot be read"):
        night(source, out)
    assert len(live(out)) == 2


def test_an_output_on_a_store_forgets_a_prefix_and_rewrites_each_object_once(
    bucket: str, tiny: Tiny, tmp_path: Path
) -> None:
    for n in range(6):
        draw(tmp_path / f"{n}.png", n)
        folder = "theirs" if n % 2 else "ours"
        storage.write(f"{bucket}/in/{folder}/{n}.png", (tmp_path / f"{n}.png").read_bytes())
    out = f"{bucket}/out"
    whole_night(f"{bucket}/in", out, tiny)
    rows = [row for row in rows_of(out) if "/theirs/" in row["source_uri"]]
    written: list[str] = []
    real = storage.write

    def counted(url: str, *parts: bytes) -> None:
        written.append(url)
        real(url, *parts)

    with patch.object(storage, "write", side_effect=counted):
        done = stage.forget(out, [f"{bucket}/in/theirs/"])
    assert done.ok
    assert len(rows) == 3
    assert len(written) == len(set(written))
    assert traces(out, rows) == []
    assert verify.verify(out, mode="full").ok
    assert whole_night(f"{bucket}/in", out, tiny, dt="2026-11-21")[1].live == 3
    assert traces(out, rows) == []


def test_dead_bytes_below_a_prefix_go_whosever_they_are(place: tuple[str, str]) -> None:
    """An image that left the output long ago has no row; its bytes lie in its tar still."""
    source, out = place
    fill(source, {"x/ant.png": 1, "x/bee.png": 2, "y/cat.png": 3})
    night(source, out)
    old = row_of(out, "ant.png")
    storage.delete(f"{source}/x/ant.png")
    night(source, out, dt="2026-11-21")
    for info in storage.listed(f"{out}/_plans"):
        storage.delete(info.url)  # as the nightly flow does in the end
    assert {path.partition("/")[0] for path, _ in traces(out, [old])} == {"shards"}
    assert stage.forget(out, [f"{source}/y/*"]).ok
    assert stage.forget(out, [f"{source}/x/"]).ok
    assert traces(out, [old]) == []
    assert live(out) == []


def test_images_left_in_tars_of_the_source_are_told(place: tuple[str, str]) -> None:
    source, out = place
    files = [(f"k{n}", "png", picture(n + 1)) for n in range(4)]
    tar = shards.pack(files)[0]
    storage.write(f"{source}/a.tar", tar)
    night(source, out, kind="tars")
    gone = row_of(out, "a.tar#k2.png")
    assert {path.partition("/")[0] for path, _ in traces(out, [gone])} == {
        "_listings", "_plans", "manifest"
    }  # fmt: skip
    done = stage.forget(out, [gone["source_uri"]])
    assert done.ok
    assert any("1 of the images lie in tars of the source" in note for note in done.notes)
    assert storage.read(f"{source}/a.tar") == tar
    storage.write(f"{source}/a.tar", shards.pack([*files, ("new", "png", picture(9))])[0])
    plan = night(source, out, dt="2026-11-21", kind="tars")
    assert plan.listed == 4
    assert traces(out, [gone]) == []
    assert [row["source_uri"].rpartition("#")[2] for row in live(out)] == [
        "k0.png", "k1.png", "k3.png", "new.png"
    ]  # fmt: skip
    stage.allow(out, [gone["image_id"]])
    assert night(source, out, dt="2026-11-22", kind="tars").listed == 5


def test_a_file_of_any_size_is_searched_across_its_pieces() -> None:
    image = Image(*("0123456789abcdef" * 2, "cat-0123456789ab", "s3://b/cat.png", ""))
    needles = Needles([image])
    for text in (image.image_id, image.key, image.source_uri):
        data = b"x" * 50 + text.encode() + b" y" * 50
        for cut in range(40, 90):
            assert traces_of.in_stream([data[:cut], data[cut:]], needles)
    assert not traces_of.in_stream([b"s3://b/cat.png.jpg s3://b/cat.pn"], needles)


def test_the_index_of_manifests_loses_its_parts(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    with patch.object(index, "_WORTH_STORING", 1):
        night(source, out)
        night(source, out, dt="2026-11-21")
    gone = row_of(out, "ant.png")
    assert "_index" in {path.partition("/")[0] for path, _ in traces(out, [gone])}
    assert stage.forget(out, [gone["key"]]).ok
    assert traces(out, [gone]) == []
    assert storage.listed(f"{out}/_index") == []
    assert night(source, out, dt="2026-11-22").unchanged == 1


def test_a_night_that_was_under_way_publishes_without_the_image(tmp_path: Path, tiny: Tiny) -> None:
    for n in range(5):
        draw(tmp_path / "in" / f"{n}.png", n)
    out = storage.canonical(str(tmp_path / "out"))
    run = Run("run-1", out, "2026-11-20")
    settings = SETTINGS.model_copy()
    plan = shard.plan(str(tmp_path / "in"), run=run, settings=settings)
    outcomes = [shard.shard(part.shard, run=run, settings=settings) for part in plan.planned]
    first, *others = manifest.shards(out)
    outcomes += over(first, run, tiny)
    gone = tables.read(layout.manifest(out, first)).to_pylist()[0]
    old = storage.read(outcomes[-1].url)
    assert stage.forget(out, [gone["key"]]).ok
    storage.write(outcomes[-1].url, old)  # labels that were being made of what was there before
    for one in others:
        outcomes += over(one, run, tiny)
    night_ = Night(run, "nightly", "test", 0.0, "{}", plan, tuple(outcomes))
    assert publish.publish(night_, settings=PUBLISH).live == 4
    assert stage.forget(out, []).ok
    assert traces(out, [gone]) == []
    assert verify.verify(out, mode="full").problems == ()
