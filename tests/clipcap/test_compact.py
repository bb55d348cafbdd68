"""Many small shards become few: readers see the same, no model runs, and any crash is mended."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from unittest.mock import patch

import pytest

from clipcap import forgotten, layout, manifest, merging, shards, storage, tables
from clipcap.errors import ClipcapError, SettingsError, StorageError
from clipcap.layout import Shard
from clipcap.outcomes import Night
from clipcap.stages import forget
from clipcap.stages.compact import Compacted, CompactSettings, compact
from clipcap.verify import verify
from tests.clipcap.test_forget import traces
from tests.clipcap.test_life import Crash, dies_at
from tests.nights import Tiny, draw, make_tiny, night
from tests.servers import S3Address
from tests.upkeep import a_run, computed, day, images, nights, seen, told

MONTH = CompactSettings(within="month", settled_days=0)
NIGHTS = 30


@dataclass(frozen=True)
class Place:
    """A source and an output of its nights."""

    source: Path
    out: Path
    tiny: Tiny

    @property
    def url(self) -> str:
        return storage.canonical(str(self.out))

    def night(self, dt: str) -> Night:
        return night(self.source, self.out, self.tiny, dt=dt)[0]

    def compact(self, settings: CompactSettings = MONTH, *, write: bool = True) -> Compacted:
        return compact(a_run(self.out), settings=settings, write=write)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Place:
    """A month of nights; nobody changes it."""
    folder = tmp_path_factory.mktemp("month")
    nights(folder / "in", folder / "out", tiny, NIGHTS)
    return Place(folder / "in", folder / "out", tiny)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Place:
    """Four nights; nobody changes them."""
    folder = tmp_path_factory.mktemp("few")
    nights(folder / "in", folder / "out", tiny, 4)
    return Place(folder / "in", folder / "out", tiny)


def copied(made: Place, to: Path) -> Place:
    """Return the same output at another place; the source is the same one."""
    shutil.copytree(made.out, to)
    return Place(made.source, to, made.tiny)


@pytest.fixture
def own(few: Place, tmp_path: Path) -> Place:
    """Four nights, of a test's own."""
    return copied(few, tmp_path / "out")


@pytest.mark.slow
def test_thirty_nights_become_one_shard_and_readers_see_the_same(
    month: Place, tmp_path: Path
) -> None:
    place = copied(month, tmp_path / "out")
    before = seen(place.out)
    done = place.compact()
    assert (done.shards, done.sources, len(done.merged), done.untouched) == (NIGHTS, NIGHTS, 1, 0)
    (shard,) = manifest.shards(place.url)
    assert (shard.dt, shard.generation) == (day(0), 1)
    assert seen(place.out) == before
    assert verify(place.url, mode="full").problems == ()
    assert [url for url in told(place.out) if storage.info(url) is None] == []
    again = place.compact()
    assert (again.sources, again.finished) == (0, 0)


def test_files_that_came_with_an_image_go_with_it(own: Place) -> None:
    own.compact()
    (shard,) = manifest.shards(own.url)
    names = [member.name for member in shards.members(storage.read(layout.tar(own.url, shard)))]
    assert names == sorted(names)
    assert len([name for name in names if name.endswith(".txt")]) == 4


def test_the_night_after_computes_what_changed_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    place = Place(tmp_path / "in", tmp_path / "out", tiny)
    nights(place.source, place.out, tiny, 4)
    place.compact()
    assert computed(place.night(day(4))) == {}
    draw(place.source / "night-00-0.png", 70)
    draw(place.source / "new.png", 71)
    (place.source / "night-01-0.png").unlink()
    (place.source / "broken-03.jpg").unlink()
    done = place.night(day(5))
    plan = done.plan
    assert plan
    assert (plan.new, plan.changed, plan.deleted) == (1, 1, 2)
    assert computed(done) == {"shard": 2, "embed": 2, "caption": 2, "label": 2}
    assert verify(place.url, mode="full").problems == ()
    place.compact()
    (shard,) = manifest.shards(place.url)
    assert shard.generation == 2
    assert computed(place.night(day(6))) == {}
    assert verify(place.url, mode="full").problems == ()


def test_a_dry_run_changes_nothing_and_says_the_same(own: Place) -> None:
    before = {info.url: info.etag for info in storage.list_objects(own.url)}
    said = own.compact(write=False)
    assert (said.sources, len(said.groups), said.merged) == (4, 1, ())
    assert {info.url: info.etag for info in storage.list_objects(own.url)} == before


def test_by_default_only_shards_of_one_date_are_merged(tiny: Tiny, tmp_path: Path) -> None:
    place = Place(tmp_path / "in", tmp_path / "out", tiny)
    for number in range(3):
        draw(place.source / f"{number}.png", number)
        place.night(day(0))
    draw(place.source / "later.png", 9)
    place.night(day(1))
    before = seen(place.out)
    done = place.compact(CompactSettings())
    assert (done.shards, done.sources, done.untouched) == (4, 3, 1)
    assert [shard.dt for shard in manifest.shards(place.url)] == [day(0), day(1)]
    assert seen(place.out) == before
    assert computed(place.night(day(0))) == {}


def test_dates_that_readers_may_not_have_reached_stay(own: Place) -> None:
    done = own.compact(CompactSettings(within="month", settled_days=2))
    assert ([one.dt for one in done.groups], done.unsettled, done.untouched) == ([day(0)], 2, 0)
    assert [shard.dt for shard in manifest.shards(own.url)] == [day(0), day(2), day(3)]


def test_shards_with_other_tables_are_not_mixed(own: Place, tmp_path: Path) -> None:
    """Two nights have captions of an older captioner too: the others have none."""
    url = own.url
    for shard in manifest.shards(url)[:2]:
        (found,) = [
            one.url
            for one in storage.listed(layout.table(url, "captions"))
            if layout.shard_of(one.url) == shard
        ]
        older = found.replace("/captioner=", "/captioner=older-")
        storage.write(older, storage.read(found))
    assert own.compact(write=False).waiting == 2
    own.night(day(4))
    before = seen(own.out)
    done = own.compact()
    assert [len(one.parts) for one in done.groups] == [2, 2]
    assert seen(own.out) == before
    assert computed(own.night(day(5))) == {}


def standing(place: Place) -> list[str]:
    """Return every object of an output, but those that tell what runs did."""
    found = [info.url.removeprefix(place.url) for info in storage.list_objects(place.url)]
    return sorted(path for path in found if not path.startswith(("/runs/", "/shard_runs/")))


@pytest.mark.slow
def test_what_a_crash_left_is_whole_for_readers_and_a_rerun_gives_the_same(
    few: Place, tmp_path: Path
) -> None:
    """After every write and every delete, which is before the next one."""
    place = copied(few, tmp_path / "whole")
    wanted, ids = seen(place.out), {one for one, _ in images(place.url)}
    place.compact()
    names = standing(place)
    at, crashed = 0, True
    while crashed:
        at, crashed = at + 1, True
        other = copied(few, tmp_path / f"out-{at}")
        with dies_at(at, after=True), suppress(Crash):
            other.compact()
            crashed = False
        assert {one for one, _ in images(other.url)} == ids
        assert [url for url in told(other.out) if storage.info(url) is None] == []
        other.compact()
        assert seen(other.out) == wanted
        assert standing(other) == names, at
        shutil.rmtree(other.out)
    assert at > 20


@pytest.mark.slow
def test_a_night_in_the_middle_mends_what_a_crash_left(few: Place, tmp_path: Path) -> None:
    wanted = {one for one, _ in images(few.url)}
    for at in range(2, 30, 2):
        other = copied(few, tmp_path / f"out-{at}")
        with dies_at(at, after=True), suppress(Crash):
            other.compact()
        done = other.night(day(4))
        assert computed(done) == {}, at
        assert sorted(one for one, _ in images(other.url)) == sorted(wanted)
        assert verify(other.url, mode="full").ok
        other.compact()
        assert len(manifest.shards(other.url)) == 1
        assert sorted(one for one, _ in images(other.url)) == sorted(wanted)


def test_whatever_night_and_compaction_take_out_at_once_no_image_is_lost(
    few: Place, tmp_path: Path
) -> None:
    """A night planned while images stood twice takes out the very rows that compact does."""
    from clipcap.stages import shard as stage
    from tests.nights import sharded

    wanted = sorted(one for one, _ in images(few.url))
    place = copied(few, tmp_path / "out")
    real = merging.settle

    def meanwhile(*args: object, **named: object) -> int:
        run = a_run(place.out, day(4), "night")
        plan = stage.plan(str(place.source), run=run, settings=stage.ShardSettings())
        left = real(*args, **named)  # type: ignore[arg-type]
        sharded(plan, run, stage.ShardSettings())
        return left

    with patch.object(merging, "settle", meanwhile):
        place.compact()
    assert sorted(one for one, _ in images(place.url)) == wanted


def test_a_shard_that_changes_meanwhile_is_left_alone(own: Place) -> None:
    real = merging._described

    def changed(*args: object, **named: object) -> merging.Made:
        shard = manifest.shards(own.url)[0]
        row = tables.read(layout.manifest(own.url, shard)).to_pylist()[0]
        manifest.retire(shard, run=a_run(own.out), live={row["image_id"]}, rejects=set())
        return real(*args, **named)  # type: ignore[arg-type]

    with patch.object(merging, "_described", changed):
        done = own.compact()
    assert done.merged == ()
    assert len(manifest.shards(own.url)) == 4
    assert not any(shard.generation for shard in manifest.shards(own.url))
    left = [one.url for one in storage.list_objects(own.url) if "-m1" in one.url]
    assert left == []


def test_two_compactions_at_once_do_no_harm(own: Place) -> None:
    before = seen(own.out)
    failed: list[Exception] = []

    def once() -> None:
        try:
            own.compact()
        except ClipcapError as error:  # the other one was faster: run again
            failed.append(error)

    threads = [Thread(target=once) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own.compact()
    assert seen(own.out) == before
    assert len(manifest.shards(own.url)) == 1


def test_a_damaged_tar_is_not_copied(own: Place) -> None:
    shard = manifest.shards(own.url)[0]
    row = tables.read(layout.manifest(own.url, shard)).to_pylist()[0]
    path = storage.local_path(layout.tar(own.url, shard))
    assert path
    with path.open("r+b") as stream:
        stream.seek(row["member_offset"] + 30)
        stream.write(b"flip")
    before = sorted(manifest.shards(own.url))
    with pytest.raises(StorageError, match="as its manifest says, but does not"):
        _with_told_etags(own)
    assert sorted(manifest.shards(own.url)) == before


def _with_told_etags(place: Place) -> None:
    """Compact although the tar is another file than readers were told of."""
    with patch("clipcap.holdings.Holdings.is_told", lambda *_: True):
        place.compact()


def test_an_output_that_is_not_whole_is_refused(own: Place, tmp_path: Path) -> None:
    shard = manifest.shards(own.url)[0]
    storage.delete(layout.manifest(own.url, shard))
    with pytest.raises(ClipcapError, match="The output is not whole: 1 objects"):
        own.compact(write=False)
    storage.delete(layout.latest(own.url))
    with pytest.raises(SettingsError, match=r"has no `_latest.json`"):
        own.compact()
    with pytest.raises(StorageError, match="There is no output"):
        compact(a_run(tmp_path / "nothing"), settings=MONTH, write=True)


def test_beside_a_run_nothing_is_done(own: Place) -> None:
    run = a_run(own.out, day(9), "other")
    storage.write(layout.retirement(run, Shard(day(0), "abc")), b"{}")
    with pytest.raises(ClipcapError, match=r"The run other over .* is under way"):
        own.compact()
    assert own.compact(write=False).sources == 4
    storage.delete(layout.retirement(run, Shard(day(0), "abc")))
    storage.write(f"{layout.unfinished(own.url)}/a.json", b"{}")
    with pytest.raises(ClipcapError, match="must not be copied"):
        own.compact()


def test_images_that_stayed_in_the_tars_of_the_source_stay_there(
    tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
        data, _ = shards.pack([(f"key-{number}", "png", (tmp_path / f"{number}.png").read_bytes())])
        (tmp_path / "in" / f"{number}.tar").write_bytes(data)
    place = Place(tmp_path / "in" / "*.tar", tmp_path / "out", tiny)
    place.night(day(0))
    assert place.compact().sources == 0
    assert len(manifest.shards(place.url)) == 3


def _forgotten_while_merging(own: Place, name: str) -> None:
    """Take an image out when a function of the merging is called, which no lease keeps apart."""
    gone = tables.read(layout.manifest(own.url, manifest.shards(own.url)[0])).to_pylist()[0]
    real, first = getattr(merging, name), [True]

    def meanwhile(*args: object, **named: object) -> object:
        if first and first.pop():
            assert forget.forget(own.url, [gone["key"]]).ok
        return real(*args, **named)

    with patch.object(merging, name, meanwhile), suppress(ClipcapError):
        own.compact()
    assert traces(own.url, [gone]) == []
    assert len(list(images(own.url))) == 7
    assert verify(own.url, mode="full").ok
    own.night(day(4))
    assert traces(own.url, [gone]) == []
    assert verify(own.url, mode="full").problems == ()


@pytest.mark.parametrize("name", ["_moved", "_described", "_beside"])
def test_what_is_forgotten_before_a_merged_shard_counts_is_not_in_it(own: Place, name: str) -> None:
    _forgotten_while_merging(own, name)
    assert not any(shard.generation for shard in manifest.shards(own.url))


def test_what_is_forgotten_as_a_merged_shard_begins_to_count_leaves_it(own: Place) -> None:
    _forgotten_while_merging(own, "MergedFrom")
    assert [shard.generation for shard in manifest.shards(own.url)] == [1]


def test_all_that_a_merged_shard_has_may_be_forgotten_meanwhile(own: Place) -> None:
    real = manifest.MergedFrom

    def meanwhile(*args: object) -> object:
        assert forget.forget(own.url, [f"{own.source}/"]).ok
        return real(*args)  # type: ignore[arg-type]

    with patch.object(merging, "MergedFrom", meanwhile):
        assert own.compact().merged == ()
    assert manifest.shards(own.url) == []
    assert [one.url for one in storage.list_objects(own.url) if "-m1" in one.url] == []


def test_images_that_are_kept_out_are_not_copied(own: Place) -> None:
    """Whoever forgets has written its record and was killed before a journal was needed."""
    row = tables.read(layout.manifest(own.url, manifest.shards(own.url)[0])).to_pylist()[0]
    at = datetime(2026, 11, 21, tzinfo=UTC)
    forgotten.keep_out(own.url, forgotten.Record(at=at, images={row["image_id"]: ()}))
    assert own.compact().merged == ()
    assert [one.url for one in storage.list_objects(own.url) if "-m1" in one.url] == []


@pytest.mark.slow
def test_an_image_is_forgotten_wherever_a_merging_was_killed(few: Place, tmp_path: Path) -> None:
    """After every fourth write or delete."""
    gone = tables.read(layout.manifest(few.url, manifest.shards(few.url)[0])).to_pylist()[0]
    crashed, at = True, -1
    while crashed:
        at, crashed = at + 4, True
        other = copied(few, tmp_path / f"out-{at}")
        with dies_at(at, after=True), suppress(Crash):
            other.compact()
            crashed = False
        assert forget.forget(other.url, [gone["key"]]).ok, at
        assert traces(other.url, [gone]) == [], at
        other.night(day(4))
        other.compact()
        assert traces(other.url, [gone]) == [], at
        assert len(list(images(other.url))) == 7, at
        found = verify(other.url, mode="full").problems
        assert {(one.kind, one.severity) for one in found} <= {("orphan", "warning")}, at
        shutil.rmtree(other.out)
    assert at > 20


@pytest.mark.slow
def test_a_bucket_is_compacted_too(few: Place, bucket: str, s3: S3Address) -> None:
    del s3
    place = Place(few.source, few.out, few.tiny)
    out = f"{bucket}/out"
    for number in range(3):
        night(place.source, out, place.tiny, dt=day(number), max_images=2)
    before = seen(out)
    run = a_run(out)
    assert len(compact(run, settings=MONTH, write=True).merged) == 1
    assert seen(out) == before
    assert verify(out, mode="full").problems == ()
    last, _ = night(place.source, out, place.tiny, dt=day(3))
    assert computed(last) == {}
