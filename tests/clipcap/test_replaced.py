"""Sources that change under a night, and outputs that refuse: no row says what is not so."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from clipcap import layout, manifest, planning, storage, tables
from clipcap.errors import AccessDeniedError
from clipcap.footers import Footers
from clipcap.layout import Run, Shard
from clipcap.plans import Plan
from clipcap.stages import forget
from clipcap.stages import shard as stage
from clipcap.stages.shard import ShardSettings
from tests.inventories import Entry, write
from tests.pictures import picture

DAY, NEXT_DAY, THIRD_DAY = "2026-11-20", "2026-11-21", "2026-11-22"
SETTINGS = ShardSettings()


def planned(source: str, out: str, dt: str) -> tuple[Plan, Run]:
    run = Run(secrets.token_hex(4), out, dt)
    return stage.plan(source, run=run, settings=SETTINGS), run


def done(plan: Plan, run: Run) -> None:
    for part in plan.planned:
        stage.shard(part.shard, run=run, settings=SETTINGS)
    for shard in plan.retired:
        stage.retire(shard, run=run)


def night(source: str, out: str, dt: str) -> Plan:
    plan, run = planned(source, out, dt)
    done(plan, run)
    return plan


def live(out: str) -> dict[str, tuple[str | None, bytes]]:
    """Return the version that each live image is said to have, and its bytes."""
    found = {}
    for shard in manifest.shards(out):
        for row in tables.read(layout.manifest(out, shard)).to_pylist():
            data = storage.read_range(
                layout.tar(out, shard), row["member_offset"], row["member_bytes"]
            )
            found[row["source_uri"].rpartition("/")[2]] = row["source_etag"], data
    return found


class TestReplaced:
    """An object that is another one when it is read than when it was listed."""

    def require_never_taken_for_the_old_one(self, source: str, out: str) -> None:
        old, new = (picture(n, form="BMP") for n in (1, 2))
        assert len(old) == len(new)
        storage.write(f"{source}/a.png", old)
        storage.write(f"{source}/b.png", picture(3))
        plan, run = planned(source, out, DAY)
        storage.write(f"{source}/a.png", new)
        done(plan, run)
        etag, data = live(out)["a.png"]
        assert (etag, data) == (None, new), "the old version must not be claimed"
        assert live(out)["b.png"][0]
        storage.write(f"{source}/a.png", old)
        plan = night(source, out, NEXT_DAY)
        assert (plan.changed, plan.unchanged) == (1, 1)
        etag, data = live(out)["a.png"]
        assert etag
        assert data == old
        assert night(source, out, THIRD_DAY).unchanged == 2

    def test_a_file_is_known_by_the_time_of_what_was_open(self, tmp_path: Path) -> None:
        source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
        self.require_never_taken_for_the_old_one(source, out)

    def test_a_store_says_which_version_it_sends(self, bucket: str) -> None:
        """Back again, its etag is the one that was listed at first."""
        self.require_never_taken_for_the_old_one(f"{bucket}/in", f"{bucket}/out")

    def test_without_a_version_its_size_tells(self) -> None:
        name = secrets.token_hex(6)
        source, out = f"memory://source-{name}", f"memory://out-{name}"
        storage.write(f"{source}/a.png", picture(1))
        plan, run = planned(source, out, DAY)
        new = picture(1, size=(48, 32))
        storage.write(f"{source}/a.png", new)
        done(plan, run)
        assert live(out) == {"a.png": (None, new)}

    def test_it_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
        storage.write(f"{source}/a.png", picture(1))
        plan, run = planned(source, out, DAY)
        storage.write(f"{source}/a.png", b"no picture any more")
        done(plan, run)
        assert "1 objects" in caplog.text
        assert "replaced after they were listed" in caplog.text
        storage.write(f"{source}/a.png", picture(1))
        assert night(source, out, NEXT_DAY).unchanged == 0
        assert live(out)["a.png"][1] == picture(1)

    def test_one_that_is_gone_is_a_reject_and_then_nothing(self, tmp_path: Path) -> None:
        source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
        for n in "ab":
            storage.write(f"{source}/{n}.png", picture(ord(n)))
        plan, run = planned(source, out, DAY)
        storage.delete(f"{source}/a.png")
        done(plan, run)
        (shard,) = manifest.shards(out)
        (reject,) = manifest.read_rejects(out, shard).to_pylist()
        assert reject["reason"] == "not_found"
        night(source, out, NEXT_DAY)
        assert set(live(out)) == {"b.png"}
        assert manifest.read_rejects(out, shard).num_rows == 0

    def test_one_that_became_huge_is_not_read_whole(self, tmp_path: Path) -> None:
        source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
        storage.write(f"{source}/a.png", picture(1))
        plan, run = planned(source, out, DAY)
        with (tmp_path / "in" / "a.png").open("r+b") as stream:
            stream.truncate(2**40)
        done(plan, run)
        (shard,) = manifest.shards(out)
        (reject,) = manifest.read_rejects(out, shard).to_pylist()
        assert reject["reason"] == "too_large"


def test_a_copy_of_a_bucket_has_the_versions_of_its_inventory(tmp_path: Path) -> None:
    """The copy's own etags are others; that makes none of its objects a replaced one."""
    copy, out = (storage.canonical(str(tmp_path / name)) for name in ("copy", "out"))
    storage.write(f"{copy}/a.png", picture(1))
    entry = Entry("a.png", "md5-of-the-bucket", len(picture(1)))
    url = write(str(tmp_path / "inventory"), [entry], made_at=None)
    settings = ShardSettings(kind="inventory", options={"bucket_url": copy})
    for dt, unchanged in ((DAY, 0), (NEXT_DAY, 1)):
        run = Run(dt, out, dt)
        plan = stage.plan(url, run=run, settings=settings)
        assert plan.unchanged == unchanged
        for part in plan.planned:
            stage.shard(part.shard, run=run, settings=settings)
    assert live(out) == {"a.png": ("md5-of-the-bucket", picture(1))}


@pytest.mark.parametrize("refused", ["shards", "rejects", "manifest"])
def test_an_output_that_refuses_a_write_keeps_nothing_half_done(
    tmp_path: Path, refused: str
) -> None:
    source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
    storage.write(f"{source}/a.png", picture(1))
    storage.write(f"{source}/b.png", b"no picture")
    real = storage.write

    def full(url: str, *parts: bytes) -> None:
        if f"/{refused}/" in url:
            raise AccessDeniedError(f"Cannot put {url}: access denied.")
        real(url, *parts)

    plan, run = planned(source, out, DAY)
    refusal = pytest.raises(AccessDeniedError, match=f"Cannot put .*/{refused}/")
    with patch.object(storage, "write", full), refusal:
        done(plan, run)
    assert manifest.shards(out) == []
    night(source, out, DAY)
    assert set(live(out)) == {"a.png"}
    (shard,) = manifest.shards(out)
    assert manifest.read_rejects(out, shard).num_rows == 1


class TestTwoRuns:
    """What one run reads another may find changed; each shard is that of one of them, wholly."""

    @pytest.fixture
    def places(self) -> tuple[str, str]:
        name = secrets.token_hex(6)
        source, out = f"memory://source-{name}", f"memory://out-{name}"
        for n in range(3):
            storage.write(f"{source}/{n}.png", picture(n, form="BMP"))
        return source, out

    def let_both_write(
        self, places: tuple[str, str], meanwhile: Callable[[], object], at: str
    ) -> None:
        """Run two nights of one plan; the second goes on where the first writes a kind of object.

        It ends before the first one does, which so leaves the last of some objects only.
        """
        source, out = places
        (first, run), (second, other) = (planned(source, out, DAY) for _ in range(2))
        assert [part.shard for part in first.planned] == [part.shard for part in second.planned]
        real, waits = storage.write, [True]

        def write(url: str, *parts: bytes) -> None:
            if f"/{at}/" in url and waits:
                waits.clear()
                meanwhile()
                done(second, other)
            real(url, *parts)

        with patch.object(storage, "write", write):
            done(first, run)
        assert not waits, "the second night was never let in"
        require_whole(out)

    def require_next_is_right(self, places: tuple[str, str]) -> None:
        source, out = places
        night(source, out, DAY)
        require_whole(out)
        rows = [
            (row["source_uri"], row["source_etag"])
            for shard in manifest.shards(out)
            for row in tables.read(layout.manifest(out, shard)).to_pylist()
        ]
        listed = storage.listed(source)
        assert sorted(rows) == sorted((one.url, one.etag) for one in listed)
        assert night(source, out, NEXT_DAY).unchanged == len(rows)

    @pytest.mark.parametrize("at", ["shards", "manifest"])
    def test_an_image_that_is_replaced(self, places: tuple[str, str], at: str) -> None:
        """The tar of one stayed beside the manifest of the other."""
        other = picture(9, form="BMP")
        replace = partial(storage.write, f"{places[0]}/1.png", other)
        self.let_both_write(places, replace, at)
        self.require_next_is_right(places)

    @pytest.mark.parametrize("at", ["shards", "rejects", "manifest"])
    def test_an_image_that_one_of_them_cannot_read(
        self, places: tuple[str, str], at: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = [f"{places[0]}/1.png"]
        real = storage.read_part

        def read(url: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if url in refused:
                raise AccessDeniedError(f"Cannot get {url}: access denied.")
            return real(url, *args, **kwargs)

        monkeypatch.setattr(storage, "read_part", read)
        self.let_both_write(places, refused.clear, at)
        self.require_next_is_right(places)
        rejects = [manifest.read_rejects(places[1], one) for one in manifest.shards(places[1])]
        assert sum(map(len, rejects)) == 0


def require_whole(out: str) -> None:
    """Check that each image has its own bytes in the tar of its shard."""
    for shard in manifest.shards(out):
        for row in tables.read(layout.manifest(out, shard)).to_pylist():
            start, size = row["member_offset"], row["member_bytes"]
            data = storage.read_range(layout.tar(out, shard), start, size)
            assert hashlib.sha256(data).hexdigest() == row["content_sha256"]


def test_a_later_try_finds_what_was_written_under_another_name(tmp_path: Path) -> None:
    """A worker was killed; an image that it could not read is there for the next one."""
    source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
    storage.write(f"{source}/a.png", picture(1))
    storage.write(f"{source}/b.png", picture(2))
    plan, run = planned(source, out, DAY)
    storage.delete(f"{source}/b.png")
    done(plan, run)
    (shard,) = manifest.shards(out)
    assert shard != plan.planned[0].shard
    assert planning.planned(shard) == plan.planned[0].shard
    before = {info.url: info.etag for info in storage.listed(f"{out}/shards")}
    storage.write(f"{source}/b.png", picture(2))
    outcome = stage.shard(plan.planned[0].shard, run=run, settings=SETTINGS)
    assert (outcome.shard, outcome.rows, outcome.rejected) == (shard, 1, 1)
    assert manifest.shards(out) == [shard]
    assert {info.url: info.etag for info in storage.listed(f"{out}/shards")} == before
    assert plan.first([shard, Shard("1999-01-01", "a")])[0] == shard


def test_a_try_that_died_before_it_wrote_may_write_something_else(tmp_path: Path) -> None:
    source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
    for n in "ab":
        storage.write(f"{source}/{n}.png", picture(ord(n)))
    plan, run = planned(source, out, DAY)
    storage.delete(f"{source}/b.png")
    killed = patch.object(manifest, "publish", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        done(plan, run)
    storage.write(f"{source}/b.png", picture(ord("b")))
    for _ in range(2):
        done(plan, run)
        assert live(out).keys() == {"a.png", "b.png"}
    assert len(manifest.shards(out)) == 1


class TestForgottenMeanwhile:
    """A takedown takes an image out of manifest, tar and plan while another try is to come."""

    @pytest.fixture(params=[False, True], ids=["alone", "with texts"])
    def places(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, str]:
        source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
        for n in range(4):
            storage.write(f"{source}/{n}.png", picture(n, size=(64 + 8 * n, 48)))
            if request.param:
                storage.write(f"{source}/{n}.txt", b"a text")
        return source, out

    def test_a_run_of_the_same_plan_leaves_what_is_there(self, places: tuple[str, str]) -> None:
        """It wrote a tar without the image, and died: each place in the manifest was wrong."""
        source, out = places
        (first, run), (second, other) = (planned(source, out, DAY) for _ in range(2))
        done(first, run)
        forget.forget(out, [f"{source}/0.png"])
        killed = patch.object(manifest, "publish_rejects", side_effect=KeyboardInterrupt)
        with killed, suppress(KeyboardInterrupt):
            done(second, other)
        require_whole(out)
        assert set(live(out)) == {"1.png", "2.png", "3.png"}

    def test_one_that_was_before_its_manifest(self, places: tuple[str, str]) -> None:
        """What is left of the plan is not what its name says."""
        source, out = places
        storage.write(f"{source}-old/old.png", picture(9))
        night(f"{source}-old", out, "2026-11-19")
        (first, run), (second, other) = (planned(source, out, DAY) for _ in range(2))
        killed = patch.object(manifest, "publish", side_effect=KeyboardInterrupt)
        with killed, pytest.raises(KeyboardInterrupt):
            done(first, run)
        forget.forget(out, [f"{source}/0.png"])
        done(second, other)
        (shard,) = (one for one in manifest.shards(out) if one.dt == DAY)
        assert shard != second.planned[0].shard
        require_whole(out)
        assert set(live(out)) == {"1.png", "2.png", "3.png", "old.png"}

    def test_the_same_run_has_each_image_once(self, places: tuple[str, str]) -> None:
        """The manifest bore the name of the takedown, and its images were written once more."""
        source, out = places
        plan, run = planned(source, out, DAY)
        done(plan, run)
        forget.forget(out, [f"{source}/0.png"])
        done(plan, run)
        assert len(manifest.shards(out)) == 1
        assert set(live(out)) == {"1.png", "2.png", "3.png"}


def test_rejects_of_a_try_that_died_are_nobodys(tmp_path: Path) -> None:
    """An outage: an image, then the manifest. The next try reads everything."""
    source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
    for n in range(3):
        storage.write(f"{source}/{n}.png", picture(n))
    plan, run = planned(source, out, DAY)
    storage.delete(f"{source}/1.png")
    killed = patch.object(manifest, "publish", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        done(plan, run)
    assert manifest.orphan_rejects(out)
    left = [one["url"] for one in Footers(out).entries() if "/rejects" in f"/{one['url']}"]
    storage.write(f"{source}/1.png", picture(1))
    done(plan, run)
    assert manifest.objects(out, "rejects") == []
    told = sorted(one["url"].partition("/")[0] for one in Footers(out).entries())
    assert (left, told) == ([], ["manifest", "shards", "shards"])
    require_whole(out)


def test_what_is_made_smaller_is_named_by_what_it_became(tmp_path: Path) -> None:
    """Libraries of another machine make other bytes of it."""
    source, out = (storage.canonical(str(tmp_path / name)) for name in ("in", "out"))
    storage.write(f"{source}/a.png", picture(1, size=(300, 200)))
    settings = ShardSettings(resize_px=64)
    run = Run("run", out, DAY)
    plan = stage.plan(source, run=run, settings=settings)
    outcome = stage.shard(plan.planned[0].shard, run=run, settings=settings)
    assert planning.planned(outcome.shard) == plan.planned[0].shard != outcome.shard
