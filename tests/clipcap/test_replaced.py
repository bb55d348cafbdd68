"""Sources that change under a night, and outputs that refuse: no row says what is not so."""

from __future__ import annotations

import secrets
from pathlib import Path
from unittest.mock import patch

import pytest

from clipcap import layout, manifest, storage, tables
from clipcap.errors import AccessDeniedError
from clipcap.layout import Run
from clipcap.plans import Plan
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
