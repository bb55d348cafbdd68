"""Takedowns that meet nights, kills and each other: what was forgotten is in no object then."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from clipcap import (
    forgotten,
    holdings,
    keys,
    layout,
    manifest,
    planning,
    rewriting,
    shards,
    snapshots,
    storage,
    targets,
)
from clipcap.errors import SettingsError
from clipcap.footers import Footers
from clipcap.forgotten import Record
from clipcap.layout import Run
from clipcap.plans import Plan
from clipcap.settings import Settings
from clipcap.stages import forget as stage
from clipcap.stages import shard
from tests.clipcap.test_forget import NOW, crashes, place, records, row_of, rows_of, traces
from tests.clipcap.test_life import SETTINGS, Crash, fill, live, night, picture, rejected

__all__ = ["place"]


def told(out: str, run_id: str) -> None:
    """Tell readers of what is there, as a whole run does in the end."""
    snapshots.publish(Run(run_id, out, "2026-11-20"), Footers(out).entries())


def tars(source: str, names: str) -> None:
    """Write tars of two pictures each."""
    for name in names:
        files = [(f"{name}{n}", "png", picture(2 * ord(name) % 50 + n + 1)) for n in range(2)]
        storage.write(f"{source}/{name}.tar", shards.pack(files)[0])


def a_row(uri: str, colour: int) -> dict[str, Any]:
    """Return the names of an image."""
    content = hashlib.sha256(picture(colour)).hexdigest()
    names = {"image_id": keys.image_id(uri), "key": keys.sample_key(uri), "source_uri": uri}
    return names | {"content_sha256": content}


def names(out: str) -> list[str]:
    """Return the file names of all live images."""
    return [row["uri"].rpartition("/")[2] for row in live(out)]


def saying(out: str, text: str) -> list[str]:
    """Return what says a text, but for the record."""
    found = (info.url.removeprefix(f"{out}/") for info in storage.listed(out))
    found = (path for path in found if not path.startswith("_forgotten/"))
    return [path for path in found if text.encode() in storage.read(f"{out}/{path}")]


def test_lists_of_earlier_runs_name_no_tar_of_what_is_forgotten(place: tuple[str, str]) -> None:
    source, out = place
    tars(source, "ab")
    night(source, out, kind="tars")
    told(out, "run-1")
    told(out, "run-2")
    rows = [row for row in rows_of(out) if "/a.tar" in row["source_uri"]]
    assert len(saying(out, f"{source}/a.tar")) > 2
    done = stage.forget(out, [f"{source}/a*"])
    assert done.left == ()
    assert saying(out, f"{source}/a.tar") == []
    assert traces(out, rows) == []
    left = {layout.manifest("", one)[1:] for one in manifest.shards(out)}
    for run_id in ("run-1", "run-2"):
        assert left == set(snapshots.listed(out, run_id))
    holdings.held(out)
    for info in storage.listed(layout.plans(out)):
        storage.delete(info.url)
    rewriting.require_rest(out)


def test_a_list_that_is_damaged_and_says_a_name_is_told(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    night(source, out)
    told(out, "run-1")
    for name, text in (("cut", "{%s"), ("other", '{"objects": {"url": "%s"}}')):
        url = layout.run_manifest(out, name)
        storage.write(url, (text % f"{source}/ant.png").encode())
    done = stage.forget(out, [f"{source}/ant.png"])
    assert done.left == ("_manifests/cut.json: says a name", "_manifests/other.json: says a name")


@pytest.mark.parametrize("words", ["{}/dog.png", "{}/dog*"])
def test_what_a_night_brings_in_before_the_record_is_there_goes(
    place: tuple[str, str], words: str
) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    night(source, out)
    fill(source, {"dog.png": 4, "twin.png": 4})
    real, between = forgotten.keep_out, [True]

    def late(*args: Any) -> None:  # noqa: ANN401
        if between and between.pop():
            night(source, out, dt="2026-11-21")
        real(*args)

    with patch.object(forgotten, "keep_out", side_effect=late):
        done = stage.forget(out, [words.format(source)])
    assert (done.ok, done.twins) == (True, 1)
    assert names(out) == ["ant.png", "bee.png"]
    rows = [a_row(f"{source}/{name}.png", 4) for name in ("dog", "twin")]
    assert traces(out, rows) == []
    assert [url for url in records(out) if "unfinished" in url] == []
    night(source, out, dt="2026-11-22")
    assert names(out) == ["ant.png", "bee.png"]
    assert rejected(out) == [f"{source}/twin.png"]


def test_a_version_that_a_night_takes_in_meanwhile_goes_as_well(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    night(source, out)
    old = row_of(out, "ant.png")
    fill(source, {"ant.png": 7})
    real, between = forgotten.begin, [True]

    def late(*args: Any) -> Any:  # noqa: ANN401
        if between and between.pop():
            night(source, out, dt="2026-11-21")
        return real(*args)

    with patch.object(forgotten, "begin", side_effect=late):
        done = stage.forget(out, [old["key"]])
    assert (done.ok, done.image_ids) == (True, (old["image_id"],))
    assert traces(out, [old, a_row(old["source_uri"], 7)]) == []
    contents = {old["content_sha256"], hashlib.sha256(picture(7)).hexdigest()}
    assert forgotten.load(out).contents == contents


def killed_before_it_looks(source: str, out: str, run: Run) -> Plan:
    """Write the first shard of a run, and end before it looks at the records once more."""
    plan = shard.plan(source, run=run, settings=SETTINGS)
    with patch.object(forgotten, "has_changed", side_effect=Crash), pytest.raises(Crash):
        shard.shard(plan.planned[0].shard, run=run, settings=SETTINGS)
    return plan


@pytest.mark.parametrize("gone", ["b.png", ""])
def test_the_next_try_of_a_shard_takes_out_what_was_forgotten(
    place: tuple[str, str], gone: str
) -> None:
    source, out = place
    fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abc")})
    run = Run("run-1", out, "2026-11-20")
    plan = killed_before_it_looks(source, out, run)
    forgotten.keep_out(out, Record(at=NOW, prefixes={f"{source}/{gone}": ()}))
    (done,) = [shard.shard(part.shard, run=run, settings=SETTINGS) for part in plan.planned]
    left = [f"{name}.png" for name in "abc" if gone and name != "b"]
    assert (names(out), done.rows) == (left, len(left))
    rows = [a_row(f"{source}/{name}.png", n + 1) for n, name in enumerate("abc")]
    gone_rows = [row for row in rows if row["source_uri"].rpartition("/")[2] not in left]
    assert {path.partition("/")[0] for path, _ in traces(out, gone_rows)} == {"_plans"}


def test_the_same_bytes_in_a_shard_that_is_looked_at_go_too(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"a.png": 1, "b.png": 2, "twin.png": 2})
    run = Run("run-1", out, "2026-11-20")
    plan = killed_before_it_looks(source, out, run)
    forgotten.keep_out(out, Record(at=NOW, images={keys.image_id(f"{source}/b.png"): ()}))
    shard.shard(plan.planned[0].shard, run=run, settings=SETTINGS)
    assert [(row["uri"], row["data"]) for row in live(out)] == [(f"{source}/a.png", picture(1))]


def test_the_next_night_empties_the_tar_of_a_shard_that_was_never_looked_at(
    place: tuple[str, str],
) -> None:
    source, out = place
    fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abc")})
    killed_before_it_looks(source, out, Run("run-1", out, "2026-11-20"))
    forgotten.keep_out(out, Record(at=NOW, images={keys.image_id(f"{source}/b.png"): ()}))
    night(source, out, dt="2026-11-21")
    assert names(out) == ["a.png", "c.png"]
    found = traces(out, [a_row(f"{source}/b.png", 2)])
    assert {path.partition("/")[0] for path, _ in found} == {"_plans"}


def test_a_kill_while_a_shard_is_looked_at_leaves_no_bytes(place: tuple[str, str]) -> None:
    source, _ = place
    fill(source, {f"{name}.png": n + 1 for n, name in enumerate("abc")})
    run = Run("run-1", "", "2026-11-20")

    def prepare() -> str:
        out = f"memory://out-{secrets.token_hex(6)}"
        here = Run(run.run_id, out, run.dt)
        killed_before_it_looks(source, out, here)
        forgotten.keep_out(out, Record(at=NOW, images={keys.image_id(f"{source}/b.png"): ()}))
        return out

    def again(out: str) -> None:
        (written,) = manifest.shards(out)
        target = planning.planned(written)
        shard.shard(target, run=Run(run.run_id, out, run.dt), settings=SETTINGS)

    checked = 0
    for out, _ in crashes(again, prepare):
        again(out)
        assert names(out) == ["a.png", "c.png"]
        found = traces(out, [a_row(f"{source}/b.png", 2)])
        assert {path.partition("/")[0] for path, _ in found} == {"_plans"}
        checked += 1
    assert checked == 2  # the tar, then the manifest


def let_in_again(source: str, out: str) -> str:
    """Make an output that keeps out an image and its twin, and return the image's URI."""
    fill(source, {"ant.png": 1, "bee.png": 2})
    storage.delete(f"{source}/twin.png")
    night(source, out)
    stage.forget(out, [f"{source}/bee.png"])
    fill(source, {"twin.png": 2})
    night(source, out, dt="2026-11-21")
    for info in storage.listed(layout.plans(out)):
        storage.delete(info.url)
    told(out, "run-1")
    return f"{source}/bee.png"


def test_letting_in_leaves_a_list_that_is_true(place: tuple[str, str]) -> None:
    source, out = place
    uri = let_in_again(source, out)
    assert stage.allow(out, [uri]) == [keys.image_id(uri)]
    assert rejected(out) == []
    holdings.held(out)  # else the newest list names what is gone
    night(source, out, dt="2026-11-22")
    assert names(out) == ["ant.png", "bee.png", "twin.png"]


def test_letting_in_may_be_killed_anywhere() -> None:
    source = f"memory://source-{secrets.token_hex(6)}"

    def prepare() -> str:
        out = f"memory://out-{secrets.token_hex(6)}"
        let_in_again(source, out)
        return out

    uri = f"{source}/bee.png"
    checked = 0
    for out, _ in crashes(lambda out: stage.allow(out, [uri]), prepare):
        if forgotten.load(out):
            assert stage.allow(out, [uri]) == [keys.image_id(uri)]
        holdings.held(out)
        night(source, out, dt="2026-11-22")
        assert names(out) == ["ant.png", "bee.png", "twin.png"]
        checked += 1
    assert checked > 4


def crashed_on_tars(source: str, words: list[str]) -> Iterator[tuple[str, int]]:
    """Yield outputs of images left in tars, with lists and what is derived, half forgotten."""

    def prepare() -> str:
        out = f"memory://out-{secrets.token_hex(6)}"
        night(source, out, kind="tars")
        for run_id in ("run-1", "run-2"):
            told(out, run_id)
        storage.write(layout.drift(out, "2026-11-20"), b"{}")
        storage.write(layout.training(out, "mine"), b"weights")
        return out

    return crashes(lambda out: stage.forget(out, [word.format(source) for word in words]), prepare)


@pytest.mark.parametrize("word", ["{}/a*", "{}/a.tar#a1.png"])
def test_a_kill_anywhere_leaves_no_trace_in_lists_and_in_what_is_derived(word: str) -> None:
    source = f"memory://source-{secrets.token_hex(6)}"
    tars(source, "ab")
    ends = [f"a.tar#a{n}.png" for n in range(2)] if word.endswith("*") else ["a.tar#a1.png"]
    checked = 0
    for out, n in crashed_on_tars(source, [word]):
        if n % 2:
            night(source, out, dt="2026-11-21", kind="tars")
        words = [word.format(source)] if n % 3 else []
        if not words and not forgotten.unfinished(out) and not forgotten.load(out):
            words = [word.format(source)]
        assert stage.forget(out, words).left == ()
        rows = [a_row(f"{source}/{end}", 2 * 97 % 50 + int(end[7]) + 1) for end in ends]
        assert traces(out, rows) == [], n
        assert len(ends) == 1 or saying(out, f"{source}/a.tar") == []
        assert storage.info(layout.training(out, "mine")) is None
        assert storage.info(layout.drift(out, "2026-11-20")) is None
        assert [url for url in records(out) if "unfinished" in url] == []
        holdings.held(out)
        for info in storage.listed(layout.run_manifests(out)):
            json.loads(storage.read(info.url))
        checked += 1
    assert checked > 8


@pytest.mark.parametrize("key", ["a.jpg?sig=5", "http://host/a.jpg?signature=5", "a&token_token=5"])
def test_an_image_is_named_by_the_uri_under_which_an_output_holds_it(key: str) -> None:
    uri = f"s3://crawl/{key}"
    assert targets.wanted([uri]).image_ids == {keys.image_id(uri)}
    assert targets.wanted([f"{uri}*"]).prefixes == (uri,)


@pytest.mark.parametrize(
    "word", ["https://me:secret@host/a", "s3://me:secret@b/a?sig=5", "abfs://c@d/a"]
)
def test_a_login_names_no_image(word: str) -> None:
    with pytest.raises(SettingsError) as refused:
        targets.wanted([word])
    assert "secret" not in str(refused.value).replace("SECRET", "")


def test_a_record_is_no_settings_and_is_read_whatever_it_says(place: tuple[str, str]) -> None:
    """A prefix is given by a person, and refused there if it has a secret in it."""
    source, out = place
    fill(source, {"ant.png": 1})
    night(source, out)
    assert not issubclass(Record, Settings)
    kept = Record(at=NOW, prefixes={"https://host/a?token=1/": ()})
    forgotten.keep_out(out, kept)
    assert forgotten.load(out).prefixes == ("https://host/a?token=1/",)
    with pytest.raises(SettingsError, match="must not carry credentials") as refused:
        stage.forget(out, ["https://me:secret@host/*"])
    assert "secret" not in str(refused.value).replace("SECRET", "")
    assert len(records(out)) == 1


def asked(out: str) -> list[str]:
    """Return the names of the objects that are read to know what is kept out."""
    with patch.object(storage, "read", side_effect=storage.read) as found:
        forgotten.load(out)
    return sorted(call.args[0].rpartition("/")[2] for call in found.call_args_list)


def test_a_record_is_read_once_and_what_is_let_in_again_is_not_remembered(
    place: tuple[str, str],
) -> None:
    """Each shard that was written or retired read every record of all times."""
    out = place[1]
    made = [Record(at=NOW, images={f"{n:032x}": (f"{n:064x}",)}) for n in range(3)]
    for one in made[:2]:
        forgotten.keep_out(out, one)
    forgotten.load(out)
    assert asked(out) == []
    forgotten.keep_out(out, made[2])
    assert asked(out) == [layout.forgotten_record(out, made[2].name).rpartition("/")[2]]
    assert forgotten.load(out).contents == {f"{n:064x}" for n in range(3)}
    assert forgotten.let_in(out, [f"{1:032x}"]) == [f"{1:032x}"]
    assert asked(out) == []
    assert forgotten.load(out).image_ids == {f"{0:032x}", f"{2:032x}"}


def test_a_record_that_was_put_back_is_read_again(place: tuple[str, str]) -> None:
    out = place[1]
    forgotten.keep_out(out, Record(at=NOW, images={"a": ()}))
    forgotten.load(out)
    (url,) = records(out)
    whole = storage.read(url)
    storage.write(url, b"{")
    with pytest.raises(SettingsError, match="Put it back"):
        forgotten.load(out)
    storage.write(url, whole)
    assert forgotten.load(out).image_ids == {"a"}


def test_only_so_many_bytes_of_records_are_kept(place: tuple[str, str]) -> None:
    out = place[1]
    for n in range(4):
        forgotten.keep_out(out, Record(at=NOW, images={f"{n:032x}": ()}))
    (size,) = {info.size_bytes for info in storage.listed(f"{out}/_forgotten")}
    with patch.object(forgotten, "KEPT_BYTES", 2 * size + 1):
        forgotten.load(out)
        assert len(asked(out)) == 2
        assert len(forgotten.load(out).image_ids) == 4
