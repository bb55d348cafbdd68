"""Images that stay in the tars of their source: every row finds its bytes, no tar is touched."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from clipcap import layout, manifest, storage, tables, verify
from clipcap.errors import SettingsError, TransientStorageError
from clipcap.footers import Footers
from clipcap.layout import Run
from clipcap.planning import PackSettings
from clipcap.plans import Plan
from clipcap.report.cards import Seen, cards
from clipcap.stages import shard as stage
from clipcap.stages.shard import ShardSettings
from tests.nights import shard_night
from tests.pictures import picture

DAY, NEXT_DAY, THIRD_DAY = "2026-11-20", "2026-11-21", "2026-11-22"


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, str]:
    """A folder of two tars of four pictures each, every picture with a caption; and an output."""
    for k, name in enumerate("ab"):
        write(tmp_path / "in" / f"{name}.tar", {f"{name}{n}": 10 * k + n for n in range(4)})
    return tmp_path / "in", storage.canonical(str(tmp_path / "out"))


def tar_of(numbers: dict[str, int]) -> bytes:
    """Return a tar as `tarfile` writes it: folders in its names, captions beside the pictures."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, number in numbers.items():
            for ending, data in (("png", picture(number)), ("txt", f"a {name}".encode())):
                entry = tarfile.TarInfo(f"größe/{name}.{ending}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def write(path: Path, numbers: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(numbers))


def night(source: object, out: str, dt: str = DAY, **chosen: object) -> Plan:
    """Run the shard stage once, as the nightly flow does."""
    settings = ShardSettings.model_validate({"kind": "tars", **chosen})
    return shard_night(str(source), out, settings, dt=dt)


def rows(out: str) -> list[dict[str, object]]:
    """Return every row of the manifests, with the tar that it counts in."""
    found = []
    for shard in manifest.shards(out):
        table = tables.read(layout.manifest(out, shard))
        tar = manifest.tar_url(out, shard, tables.metadata(table))
        found += [{**row, "tar": tar, "of": shard} for row in table.to_pylist()]
    return sorted(found, key=lambda row: str(row["source_uri"]))


def require_bytes(out: str) -> None:
    """Check that every row finds the bytes that it says."""
    for row in rows(out):
        data = storage.read_range(row["tar"], row["member_offset"], row["member_bytes"])  # type: ignore[arg-type]
        assert hashlib.sha256(data).hexdigest() == row["content_sha256"]
        assert row["source_bytes"] == len(data)


@contextmanager
def counted(calls: list[tuple[str, int, int | None]]) -> Iterator[None]:
    """Note what is read of sources."""
    real = storage.read_part

    def noted(url: str, offset: int, length: int | None) -> storage.Part:
        calls.append((url, offset, length))
        return real(url, offset, length)

    with patch.object(storage, "read_part", noted):
        yield


class TestNights:
    """What nights leave in the output, and in the source."""

    def test_nothing_is_written_but_tables_and_every_row_finds_its_bytes(
        self, place: tuple[Path, str]
    ) -> None:
        source, out = place
        assert [part.images for part in night(source, out).planned] == [4, 4]
        assert storage.listed(layout.tars(out)) == []
        found = rows(out)
        assert len(found) == 8
        require_bytes(out)
        first = found[0]
        assert first["tar"] == storage.canonical(str(source / "a.tar"))
        assert (first["member"], first["reference_captions"]) == ("größe/a0.png", ["a a0"])

    def test_the_footer_names_the_version_that_was_listed(self, place: tuple[Path, str]) -> None:
        source, out = place
        night(source, out)
        for shard in manifest.shards(out):
            footer, _ = tables.footer(layout.manifest(out, shard))
            tar = manifest.source_tar(footer)
            assert tar is not None
            found = storage.info(tar.url)
            assert found is not None
            assert tar.etag == found.etag

    def test_they_are_copied_where_that_is_asked_for(self, place: tuple[Path, str]) -> None:
        source, out = place
        night(source, out, pack=PackSettings(in_place=False))
        assert len(storage.listed(layout.tars(out))) == 1
        assert {row["tar"] for row in rows(out)} == {
            layout.tar(out, shard) for shard in manifest.shards(out)
        }
        require_bytes(out)
        assert night(source, out, NEXT_DAY).unchanged == 8, "unchanged images are not moved"

    def test_only_tars_can_stay_where_they_are(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(picture(1))
        with pytest.raises(SettingsError, match=r"in_place.*kind folder"):
            night(tmp_path, str(tmp_path / "out"), kind="folder", pack={"in_place": True})

    def test_a_tar_that_was_written_anew_is_a_new_shard_and_the_old_one_goes(
        self, place: tuple[Path, str]
    ) -> None:
        source, out = place
        night(source, out)
        old = {row["of"] for row in rows(out) if "/b.tar" in str(row["tar"])}
        write(source / "b.tar", {"b0": 10, "b9": 77})
        plan = night(source, out, NEXT_DAY)
        assert (plan.new, plan.changed, plan.deleted, plan.unchanged) == (1, 1, 3, 4)
        assert set(plan.retired) == old
        assert [row["source_uri"].rpartition("/")[2] for row in rows(out)] == [  # type: ignore[attr-defined]
            "a0.png", "a1.png", "a2.png", "a3.png", "b0.png", "b9.png",
        ]  # fmt: skip
        require_bytes(out)

    def test_no_tar_of_the_source_is_ever_written_or_removed(self, place: tuple[Path, str]) -> None:
        source, out = place
        night(source, out)
        before = (source / "b.tar").read_bytes()
        with patch.object(storage, "delete", wraps=storage.delete) as deleted:
            night(f"{source}/a*.tar", f"{out}-other")
            plan = night(source, out, NEXT_DAY, options={"leave_out": str(source / "x")})
            (source / "a.tar").rename(source / "c.tar")
            plan = night(source, out, THIRD_DAY, max_delete_rate=1.0)
            assert (plan.deleted, plan.new) == (4, 4)
            for shard in manifest.shards(out):
                manifest.remove(out, shard)
        assert {call.args[0] for call in deleted.call_args_list if ".tar" in call.args[0]}
        assert not any(str(source) in call.args[0] for call in deleted.call_args_list)
        assert (source / "b.tar").read_bytes() == before
        assert (source / "c.tar").is_file()

    def test_what_was_refused_a_moment_is_a_second_shard_of_the_same_tar(
        self, place: tuple[Path, str]
    ) -> None:
        source, out = place
        real = storage.read_part

        def later(url: str, offset: int, length: int | None) -> storage.Part:
            if url.endswith("a.tar"):
                raise TransientStorageError("Cannot get it: the store did not answer in time.")
            return real(url, offset, length)

        with patch.object(storage, "read_part", later):
            night(source, out)
        assert len(rows(out)) == 4
        plan = night(source, out, NEXT_DAY, limit=1)
        assert sum(part.images for part in plan.planned) == 4, "a limit takes whole tars"
        assert len(rows(out)) == 8
        require_bytes(out)

    def test_an_image_that_leaves_a_shard_leaves_its_footer_as_it_is(
        self, place: tuple[Path, str]
    ) -> None:
        source, out = place
        night(source, out)
        shard = manifest.shards(out)[0]
        before, count = tables.footer(layout.manifest(out, shard))
        run = Run("r", out, DAY)
        first = tables.read(layout.manifest(out, shard))["image_id"][0].as_py()
        assert manifest.retire(shard, run=run, live=[first], rejects=[]) == count - 1
        after, _ = tables.footer(layout.manifest(out, shard))
        assert manifest.source_tar(after) == manifest.source_tar(before) is not None

    def test_a_refused_tar_is_one_reject_of_an_empty_shard(self, place: tuple[Path, str]) -> None:
        source, out = place
        cut = (source / "b.tar").read_bytes()[:2_500]
        (source / "b.tar").write_bytes(cut)
        plan = night(source, out)
        assert plan.listed == 5
        assert len(rows(out)) == 4
        rejects = [
            row
            for shard in manifest.shards(out)
            for row in manifest.read_rejects(out, shard).to_pylist()
        ]
        assert [(row["reason"], row["source_uri"]) for row in rejects] == [
            ("not_an_image", storage.canonical(str(source / "b.tar")))
        ]


class TestReplaced:
    """A tar that changes between listing and reading."""

    @pytest.mark.parametrize("how", ["replaced", "cut"])
    def test_its_images_are_rejects_for_another_night(
        self, place: tuple[Path, str], how: str
    ) -> None:
        source, out = place
        run, settings = Run("r1", out, DAY), ShardSettings(kind="tars")
        plan = stage.plan(str(source), run=run, settings=settings)
        path = source / "b.tar"
        if how == "replaced":
            write(path, {f"b{n}": 30 + n for n in range(4)})
        else:
            os.truncate(path, 3_000)
        outcomes = [stage.shard(part.shard, run=run, settings=settings) for part in plan.planned]
        assert sorted((one.rows, one.rejected) for one in outcomes) == [(0, 4), (4, 0)]
        require_bytes(out)
        for shard in manifest.shards(out):
            for row in manifest.read_rejects(out, shard).to_pylist():
                assert (row["reason"], row["retryable"]) == ("timeout", True)
                assert "replaced after it was listed" in row["error_message"]
        write(path, {f"b{n}": 30 + n for n in range(4)})
        night(source, out, NEXT_DAY)
        assert len(rows(out)) == 8
        require_bytes(out)


class TestReading:
    """What is asked of the store, and what is held."""

    def test_members_beside_each_other_are_read_by_one_request(
        self, place: tuple[Path, str]
    ) -> None:
        source, out = place
        calls: list[tuple[str, int, int | None]] = []
        with counted(calls):
            night(source, out)
        assert sorted(url.rpartition("/")[2] for url, _, _ in calls) == ["a.tar", "b.tar"]

    def test_a_large_tar_is_never_held_as_a_whole(self, tmp_path: Path) -> None:
        """48 MB of bitmaps; two requests at a time of 4 MiB, each of them there three times."""
        path = tmp_path / "in" / "a.tar"
        path.parent.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (512, 682, 3), dtype=np.uint8)
        with tarfile.open(path, "w") as archive:
            for n in range(46):
                stream = io.BytesIO()
                Image.fromarray(np.roll(noise, n, axis=0)).save(stream, "BMP")
                entry = tarfile.TarInfo(f"{n}.bmp")
                entry.size = stream.tell()
                stream.seek(0)
                archive.addfile(entry, stream)
        out = storage.canonical(str(tmp_path / "out"))
        run, settings = Run("r", out, DAY), ShardSettings(kind="tars", decode={"processes": 1})
        (planned,) = stage.plan(str(path), run=run, settings=settings).planned
        with patch.object(storage, "IN_FLIGHT", 2):
            tracemalloc.start()
            done = stage.shard(planned.shard, run=run, settings=settings)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert (done.rows, done.rejected) == (46, 0)
        assert path.stat().st_size > 48e6
        assert peak < 34e6


class TestReaders:
    """Verify, the report and the list of objects."""

    @pytest.mark.parametrize("mode", ["fast", "full"])
    def test_a_sound_one_has_no_finding(self, place: tuple[Path, str], mode: verify.Mode) -> None:
        source, out = place
        night(source, out)
        found = verify.verify(out, mode=mode)
        assert found.ok
        assert found.images == 8

    @pytest.mark.parametrize("how", ["changed", "removed", "one byte"])
    def test_a_tar_that_is_not_the_one_that_was_read_is_named(
        self, place: tuple[Path, str], how: str
    ) -> None:
        source, out = place
        night(source, out)
        path = source / "a.tar"
        status = path.stat()
        if how == "changed":
            write(path, {"a0": 0})
        elif how == "removed":
            path.unlink()
        else:
            data = bytearray(path.read_bytes())
            data[int(str(rows(out)[0]["member_offset"])) + 50] ^= 1
            path.write_bytes(data)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        words = {"changed": "was changed since", "removed": "is not there", "one byte": "a0.png"}
        assert verify.verify(out, mode="fast").ok == (how == "one byte")
        (problem,) = verify.verify(out, mode="full").errors
        assert problem.place.startswith("manifest/")
        assert words[how] in problem.message
        assert str(path.name) in problem.message

    def test_the_report_shows_their_pictures(self, place: tuple[Path, str]) -> None:
        source, out = place
        night(source, out)
        empty = {"caption": "", "clip_score": None, "review_reasons": (), "candidates": ()}
        seen = [Seen(row["of"], row | empty, ()) for row in rows(out)]  # type: ignore[arg-type]
        assert all(card.picture.startswith("data:image/jpeg") for card in cards(out, seen))

    def test_the_list_of_objects_names_their_tar(self, place: tuple[Path, str]) -> None:
        source, out = place
        night(source, out)
        listed = Footers(out).entries()
        assert sorted(one["tar"].rpartition("/")[2] for one in listed) == ["a.tar", "b.tar"]
        assert all(one["tar_etag"] for one in listed)


def test_a_bucket_gives_members_by_range_and_says_which_version(bucket: str) -> None:
    source, out = f"{bucket}/in", f"{bucket}/out"
    storage.write(f"{source}/a.tar", tar_of({f"a{n}": n for n in range(4)}))
    run, settings = Run("r1", out, DAY), ShardSettings(kind="tars")
    stage.plan(source, run=run, settings=settings)
    night(source, out)
    require_bytes(out)
    assert verify.verify(out, mode="full").ok
    storage.write(f"{source}/b.tar", tar_of({f"b{n}": 10 + n for n in range(4)}))
    run = Run("r2", out, NEXT_DAY)
    (planned,) = stage.plan(source, run=run, settings=settings).planned
    storage.write(f"{source}/b.tar", tar_of({f"b{n}": 20 + n for n in range(4)}))
    done = stage.shard(planned.shard, run=run, settings=settings)
    assert (done.rows, done.reasons) == (0, (("timeout", 4),))
    night(source, out, THIRD_DAY)
    assert len(rows(out)) == 8
    require_bytes(out)
