"""What nothing names goes, what anybody may still need stays, and a stranger's file is told of."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from clipcap import layout, manifest, s3, storage
from clipcap.errors import ClipcapError, DamagedError
from clipcap.layout import Run, Shard
from clipcap.settings import digest
from clipcap.stages.vacuum import Vacuumed, VacuumSettings, vacuum
from clipcap.storage import ObjectInfo
from clipcap.verify import verify
from tests.clipcap.test_compact import Place, copied
from tests.clipcap.test_life import Crash, dies_at
from tests.nights import Tiny, draw, make_tiny, night
from tests.upkeep import a_run, computed, day, images, nights, seen, told

DAY_S = 86_400.0
GONE = Shard(day(0), "0123456789abcdef")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def worn(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Place:
    """An output of which each night's second image has gone; nobody changes it."""
    folder = tmp_path_factory.mktemp("worn")
    place = Place(folder / "in", folder / "out", tiny)
    nights(place.source, place.out, tiny, 3)
    for number in range(3):
        (place.source / f"night-{number:02d}-1.png").unlink()
    place.night(day(3))
    return place


@pytest.fixture
def own(worn: Place, tmp_path: Path) -> Place:
    return copied(worn, tmp_path / "out")


def clean(place: Place, *, write: bool = True, **chosen: float) -> Vacuumed:
    """Vacuum an output."""
    settings = VacuumSettings.model_validate(chosen)
    return vacuum(a_run(place.out), settings=settings, write=write)


def put(place: Place, path: str, *, days: float = 40, data: bytes = b"something") -> str:
    """Write an object that seems so many days old; return its path."""
    storage.write(f"{place.url}/{path}", data)
    age(place, path, days)
    return path


def age(place: Place, path: str, days: float) -> None:
    """Let an object seem so many days old."""
    then = time.time() - days * DAY_S
    os.utime(place.out / path, (then, then))


def paths(place: Place) -> set[str]:
    """Return every object of an output."""
    return {info.url.removeprefix(f"{place.url}/") for info in storage.list_objects(place.url)}


def tar_bytes(place: Place) -> int:
    """Return what the tars take."""
    return sum(info.size_bytes for info in storage.listed(layout.tars(place.url)))


def test_tars_with_many_dead_bytes_are_written_anew(own: Place) -> None:
    before, size = seen(own.out), tar_bytes(own)
    done = clean(own)
    assert len(done.merged) == len(done.hollow) == 3
    assert tar_bytes(own) == size - done.dead_bytes
    assert seen(own.out) == before
    assert verify(own.url, mode="full").problems == ()
    assert [url for url in told(own.out) if storage.info(url) is None] == []
    assert clean(own).hollow == ()
    assert computed(own.night(day(4))) == {}


def test_few_dead_bytes_and_files_that_came_with_images_are_no_reason(
    tiny: Tiny, tmp_path: Path
) -> None:
    place = Place(tmp_path / "in", tmp_path / "out", tiny)
    for number in range(6):
        draw(place.source / f"{number}.png", number)
        (place.source / f"{number}.txt").write_text("a word or two " * 400)
    night(place.source, place.out, tiny, max_images=6)
    (place.source / "0.png").unlink()
    (place.source / "0.txt").unlink()
    place.night(day(60))
    assert clean(place).hollow == ()
    (found,) = clean(place, dead=0.05, write=False).hollow
    assert 5_000 < found.dead_bytes < 9_000


def test_a_tar_of_a_shard_that_has_only_rejects_goes(tiny: Tiny, tmp_path: Path) -> None:
    place = Place(tmp_path / "in", tmp_path / "out", tiny)
    nights(place.source, place.out, tiny, 2)
    for number in range(2):
        (place.source / f"night-00-{number}.png").unlink()
    place.night(day(3))
    before = seen(place.out)
    assert len(clean(place).merged) == 1
    assert len(storage.listed(layout.tars(place.url))) == 1
    assert seen(place.out) == before
    assert computed(place.night(day(4))) == {}


def litter(place: Place) -> set[str]:
    """Leave one object of each kind that may go; return their paths."""
    run = Run("killed", "", day(0))
    gone = [
        layout.tar("", GONE),
        layout.rejects("", GONE),
        layout.embeddings("", GONE, model_id="m"),
        layout.captions("", GONE, captioner_id="c"),
        layout.labels("", GONE, label_set="l"),
        layout.plan(run, GONE),
        layout.retirement(run, GONE),
        layout.group(run, "describe-0123456789abcdef"),
        layout.run_manifest("", "killed"),
        layout.report(run),
        layout.listing("", "s3://other", container="a.tar", etag="1"),
        layout.training("", "forsaken"),
        "/_probe-0123abcd",
    ]
    storage.write(f"{place.url}{layout.run_manifest('', 'killed')}", b'{"objects": []}')
    found = {put(place, path[1:]) for path in gone}
    storage.write(f"{place.url}{layout.run_manifest('', 'killed')}", b'{"objects": []}')
    age(place, layout.run_manifest("", "killed")[1:], 40)
    return found


def test_what_nothing_names_goes_and_all_else_stays(own: Place) -> None:
    standing = paths(own)
    gone = litter(own)
    kept = {
        put(own, "captioners/mine/card.json"),
        put(own, "_training/views/model=m/a.parquet"),
        put(own, "_labelsets/model=m/a.parquet"),
        put(own, "_canaries/model=m/a.parquet"),
        put(own, "_forgotten/a.json", data=b'{"at": "2026-01-01T00:00:00Z"}'),
        put(own, "_training/paused.safetensors", days=20),
        put(own, "_plans/young/a.parquet", days=3),
        put(own, layout.tar("", Shard(day(0), "fedcba9876543210"))[1:], days=3),
    }
    strange = {put(own, "holiday.jpg"), put(own, "embeddings/notes.parquet"), put(own, "_odd/a")}
    for path in standing:
        age(own, path, 40)
    with patch("clipcap.holdings.Holdings.is_told", lambda *_: False):  # no tar is written anew
        found = clean(own, keep=2).found
    assert {one.path for one in found.litter} >= gone
    assert set(found.unknown) == strange
    left = paths(own)
    assert left & gone == set()
    assert kept | strange <= left
    by_now = standing - left
    assert {path.split("/")[0] for path in by_now} == {"_manifests", "reports"}
    assert len([path for path in left if path.startswith("_manifests/")]) == 2
    assert [url for url in told(own.out) if storage.info(url) is None] == []
    assert computed(own.night(day(5))) == {}


def test_tables_of_another_model_of_shards_that_count_stay(own: Place) -> None:
    (shard, *_) = manifest.shards(own.url)
    path = put(own, layout.captions("", shard, captioner_id="older")[1:])
    clean(own)
    assert path in paths(own)


def test_what_a_kept_list_names_stays(own: Place) -> None:
    path = put(own, layout.tar("", GONE)[1:])
    listed = b'{"objects": [{"url": "%s", "etag": "", "size_bytes": 9}]}' % path.encode()
    storage.write(layout.run_manifest(own.url, "earlier"), listed)
    age(own, layout.run_manifest("", "earlier")[1:], 30)
    for one in list(paths(own)):
        if one.startswith("_manifests/") and "earlier" not in one:
            age(own, one, 35)
    clean(own, keep=2)
    assert path in paths(own)
    clean(own, keep=1)
    assert path not in paths(own)


def test_a_list_that_cannot_be_read_keeps_everything_and_is_named(own: Place) -> None:
    litter(own)
    storage.write(layout.run_manifest(own.url, "torn"), b'{"objects": [')
    before = paths(own)
    with pytest.raises(DamagedError, match=r"torn\.json must be a whole list of objects"):
        clean(own)
    assert paths(own) == before


def test_the_listing_of_a_source_that_is_still_there_stays(own: Place) -> None:
    source = storage.canonical(str(own.source))
    path = put(own, layout.listing("", source, container="a.tar", etag="1")[1:])
    clean(own)
    assert path in paths(own)
    assert path.split("/")[1] == digest(source)[:16]


def test_files_of_killed_writers_go_where_they_are_ours(own: Place) -> None:
    (shard, *_) = manifest.shards(own.url)
    tar = layout.tar("", shard)[1:]
    folder, _, name = tar.rpartition("/")
    ours = own.out / folder / f".{name}.123-0123abcd.tmp"
    young = own.out / folder / f".{name}.124-0123abcd.tmp"
    strange = own.out / ".holiday.jpg.123-0123abcd.tmp"
    for path in (ours, young, strange):
        path.write_bytes(b"half")
        then = time.time() - (0 if path == young else 3 * DAY_S)
        os.utime(path, (then, then))
    done = clean(own)
    assert [one.size_bytes for one in done.unfinished] == [4]
    assert [path.exists() for path in (ours, young, strange)] == [False, True, True]


def test_a_dry_run_changes_nothing(own: Place) -> None:
    litter(own)
    before = {info.url: info.etag for info in storage.list_objects(own.url)}
    said = clean(own, write=False, keep=1)
    assert len(said.found.litter) >= 12
    assert len(said.hollow) == 3
    assert {info.url: info.etag for info in storage.list_objects(own.url)} == before


def test_nothing_goes_where_the_output_is_not_whole(own: Place) -> None:
    litter(own)
    storage.delete(layout.tar(own.url, manifest.shards(own.url)[0]))
    before = paths(own)
    with pytest.raises(ClipcapError, match="The output is not whole"):
        clean(own)
    assert paths(own) == before
    with pytest.raises(ClipcapError, match="no output"):
        vacuum(a_run(own.out / "nothing"), settings=VacuumSettings(), write=True)


def test_an_object_that_somebody_writes_meanwhile_stays(own: Place) -> None:
    """A night makes the shard that a killed one had begun long ago."""
    gone = litter(own)
    real = storage.delete
    again: list[str] = []

    def delete(url: str) -> None:
        if not again:
            again.append(put(own, layout.tar("", GONE)[1:], days=0))
        real(url)

    with patch.object(storage, "delete", delete):
        clean(own, keep=1)
    assert paths(own) & gone == set(again)


@pytest.mark.slow
def test_a_crash_at_any_write_or_delete_is_mended_by_a_rerun(worn: Place, tmp_path: Path) -> None:
    wanted, ids = seen(worn.out), {one for one, _ in images(worn.url)}
    at, crashed = 0, True
    while crashed:
        at, crashed = at + 3, True
        other = copied(worn, tmp_path / f"out-{at}")
        gone = litter(other)
        with dies_at(at, after=at % 2 == 0), suppress(Crash):
            clean(other, keep=1)
            crashed = False
        assert {one for one, _ in images(other.url)} == ids
        assert [url for url in told(other.out) if storage.info(url) is None] == []
        clean(other, keep=1)
        assert seen(other.out) == wanted
        assert paths(other) & gone == set()
        shutil.rmtree(other.out)
    assert at > 30


def test_old_uploads_to_a_bucket_are_given_up(bucket: str) -> None:
    out = f"{bucket}/out"
    root = s3.bucket(bucket.partition("://")[2], s3.environment(), 60.0)
    keys = [f"out/shards/dt={day(0)}/{n:016x}.tar" for n in range(3)] + ["out/holiday.jpg"]
    for key in keys:
        root.request("POST", key, query={"uploads": ""})
    root.request("POST", "elsewhere/a.tar", query={"uploads": ""})
    assert storage.unfinished(out) == []  # none is a day old
    with patch.object(storage, "LEFT_OVER_S", -60.0):
        found = storage.unfinished(out)
        assert sorted(one.url for one in found) == sorted(f"{bucket}/{key}" for key in keys)
        for one in found:
            storage.discard(one)
            storage.discard(one)
        assert storage.unfinished(out) == []
        assert len(storage.unfinished(bucket)) == 1


@pytest.mark.slow
def test_a_bucket_is_cleaned_too(worn: Place, bucket: str) -> None:
    out = f"{bucket}/out"
    place = Path(str(worn.source))
    night(place, out, worn.tiny, dt=day(0))
    before = seen(out)
    old = layout.tar(out, GONE)
    storage.write(old, b"left")

    def aged(held: ObjectInfo) -> bool:
        return held.url == old

    with patch("clipcap.litter._Named.is_old", lambda _self, info, _days=0: aged(info)):
        done = vacuum(a_run(out), settings=VacuumSettings(), write=True)
    assert [one.path for one in done.found.litter] == [old.removeprefix(f"{out}/")]
    assert storage.info(old) is None
    assert seen(out) == before
