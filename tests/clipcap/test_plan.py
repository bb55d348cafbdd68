"""A night's plan by the shard stage: what it may change, and what it must leave as it was."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipcap import files, index, manifest, plans, registry, scratch, shards, storage
from clipcap.errors import NotFoundError, SettingsError, TransientStorageError
from clipcap.layout import Run
from clipcap.planning import PackSettings
from clipcap.scratch import ScratchSettings
from clipcap.stages import shard as stage
from tests.clipcap.test_life import (
    NAMES,
    SETTINGS,
    Crash,
    changes,
    dies_at,
    fill,
    live,
    night,
    picture,
    require_exact,
)
from tests.inventories import MADE_AT, Entry, write
from tests.known import index_parts

DAY, NEXT_DAY = "2026-11-20", "2026-11-21"


@pytest.fixture
def place() -> tuple[str, str]:
    """Give a source and an output in memory that nobody else has."""
    name = secrets.token_hex(6)
    return f"memory://source-{name}", f"memory://out-{name}"


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files that holds nothing yet."""
    with patch.object(tempfile, "tempdir", str(tmp_path)):
        yield tmp_path


def objects(out: str) -> dict[str, str]:
    """Return every object of an output with its version."""
    return {found.url: found.etag for found in storage.listed(out)}


def inventory_of(source: str, folder: str) -> str:
    """Write an inventory of what a folder in memory holds; return its manifest."""
    entries = [
        Entry(storage.name_below(found.url, source), found.etag, found.size_bytes)
        for found in storage.listed(source)
    ]
    return write(folder, entries, made_at=None)


class TestListing:
    """What goes wrong while the source is listed."""

    @pytest.mark.parametrize("kind", ["folder", "huggingface", "tars"])
    def test_an_output_inside_is_left_out_whatever_else_is(
        self, place: tuple[str, str], kind: str
    ) -> None:
        source, _ = place
        out = f"{source}/out"
        fill(source, {"a.png": 1, "b.png": 2, "x/c.png": 3, "y/d.png": 4})
        night(source, out, kind="folder")
        module = registry.load("clipcap.sources", kind)
        for more in (f"{source}/x", [f"{source}/x", f"{source}/y/"], "", []):
            chosen = SETTINGS.model_copy(update={"kind": kind, "options": {"leave_out": more}})
            _, asked = stage._source(source, run=Run("r", out, NEXT_DAY), settings=chosen)
            try:
                found = {one.source_uri.partition("#")[0] for one in module.samples(asked)}
            except NotFoundError:  # no tar but those of the output
                found = set()
            gone = [one.rstrip("/") for one in ([more] if isinstance(more, str) else more)]
            kept = [f"{source}/{name}" for name in ("a.png", "b.png", "x/c.png", "y/d.png")]
            wanted = {one for one in kept if one.rpartition("/")[0] not in gone}
            assert found == (set() if kind == "tars" else wanted)

    def test_one_that_ends_early_is_an_error_and_takes_nothing_away(
        self, place: tuple[str, str]
    ) -> None:
        source, out = place
        bucket = fill(source, {name: n + 1 for n, name in enumerate(NAMES)})
        night(source, out)
        before = objects(out)
        real = storage.list_batches

        def broken(url: str) -> Iterator[pa.RecordBatch]:
            for batch in real(url):
                yield batch.slice(0, 3)
                if url == source:
                    raise TransientStorageError("The store did not answer in time.")

        with (
            patch.object(storage, "list_batches", broken),
            pytest.raises(TransientStorageError, match="did not answer"),
        ):
            night(source, out, dt=NEXT_DAY)
        assert objects(out) == before
        require_exact(source, out, bucket)

    def test_an_image_that_goes_meanwhile_becomes_a_reject(self, place: tuple[str, str]) -> None:
        source, out = place
        fill(source, {"ant.png": 1, "bee.png": 2})
        run = Run("r", out, DAY)
        plan = stage.plan(source, run=run, settings=SETTINGS)
        storage.delete(f"{source}/bee.png")
        stage.shard(plan.planned[0].shard, run=run, settings=SETTINGS)
        (shard,) = manifest.shards(out)
        (row,) = manifest.read_rejects(out, shard).to_pylist()
        assert (row["source_uri"], row["reason"]) == (f"{source}/bee.png", "not_found")

    def test_an_object_that_is_listed_twice_is_one_sample(self, place: tuple[str, str]) -> None:
        source, out = place
        bucket = fill(source, {"ant.png": 1, "bee.png": 2})
        real = storage.list_batches

        def doubled(url: str) -> Iterator[pa.RecordBatch]:
            for batch in real(url):
                yield batch
                if url == source:
                    yield batch

        with patch.object(storage, "list_batches", doubled):
            assert night(source, out).listed == 2
            assert night(source, out, dt=NEXT_DAY).unchanged == 2
        require_exact(source, out, bucket)


class TestDryRun:
    """`write=False` says the same and leaves nothing."""

    def test_it_writes_nothing_and_says_what_a_night_does(self, place: tuple[str, str]) -> None:
        source, out = place
        fill(source, {name: n + 1 for n, name in enumerate(NAMES)})
        with patch.object(index, "_WORTH_STORING", 1):
            for dt, new in ((DAY, 8), (NEXT_DAY, 1)):
                before = objects(out)
                run = Run("dry", out, dt)
                with (
                    patch.object(storage, "write", side_effect=AssertionError("wrote")),
                    patch.object(storage, "delete", side_effect=AssertionError("deleted")),
                ):
                    said = stage.plan(source, run=run, settings=SETTINGS, write=False)
                assert objects(out) == before
                assert night(source, out, dt=dt) == said
                assert (said.new, said.changed, said.deleted) == (new, new % 8, new % 8)
                assert bool(index_parts(out)) == (dt == NEXT_DAY)
                fill(source, {"ant.png": 77, "new.png": 78})
                storage.delete(f"{source}/bee.png")

    def test_nor_does_it_write_down_what_a_container_holds(self, place: tuple[str, str]) -> None:
        source, out = place
        files_ = [(name[:3], "png", picture(n + 1)) for n, name in enumerate(NAMES)]
        storage.write(f"{source}/a.tar", shards.pack(files_)[0])
        chosen = SETTINGS.model_copy(update={"kind": "tars"})
        run = Run("dry", out, DAY)
        assert stage.plan(source, run=run, settings=chosen, write=False).new == len(NAMES)
        assert objects(out) == {}


class TestDeletions:
    """A night that would empty the output asks first."""

    @pytest.fixture
    def many(self, place: tuple[str, str]) -> tuple[str, str]:
        source, out = place
        fill(f"{source}/a", {f"{n:02d}.png": n + 1 for n in range(30)})
        fill(f"{source}/b", {f"{n:02d}.png": n + 40 for n in range(10)})
        night(source, out)
        return place

    def test_a_mistyped_glob_changes_nothing(self, many: tuple[str, str]) -> None:
        source, out = many
        before = objects(out)
        with pytest.raises(SettingsError, match=r"30 of the 40 .*75%, limit 50%.*Nothing was"):
            night(source, out, dt=NEXT_DAY, options={"glob": "b/*"})
        assert objects(out) == before

    def test_options_name_no_second_source(self, many: tuple[str, str]) -> None:
        source, out = many
        with pytest.raises(SettingsError, match=r"options\.url. names one too: drop it"):
            night(source, out, dt=NEXT_DAY, options={"url": f"{source}/b"})

    def test_it_can_be_allowed(self, many: tuple[str, str]) -> None:
        source, out = many
        plan = night(source, out, NEXT_DAY, options={"glob": "b/*"}, max_delete_rate=1.0)
        assert (plan.deleted, len(live(out))) == (30, 10)


class TestInventory:
    """An output may change from listing a bucket to its inventory, and back."""

    def test_nothing_is_embedded_again_nor_refused(self, place: tuple[str, str]) -> None:
        source, out = place
        bucket = fill(source, {"ant.png": 1, "x/bee ü+.png": 2})
        first = night(source, out)
        url = inventory_of(source, f"{source}-inventory")
        options = {"bucket_url": source}
        second = night(url, out, NEXT_DAY, options=options)
        assert (second.source, second.unchanged, second.deleted) == (first.source, 2, 0)
        bucket |= fill(source, {"cat.png": 3})
        storage.delete(f"{source}/ant.png")
        bucket.pop("ant.png")
        url = inventory_of(source, f"{source}-inventory")
        third = night(url, out, "2026-11-22", options=options)
        assert (third.new, third.deleted, third.unchanged) == (1, 1, 1)
        require_exact(source, out, bucket)
        assert night(source, out, "2026-11-23").unchanged == 2

    def test_one_that_is_older_than_an_image_does_not_take_it_away(
        self, place: tuple[str, str]
    ) -> None:
        source, out = place
        fill(source, {"ant.png": 1, "bee.png": 2})
        night(source, out)
        (ant, _) = storage.listed(source)
        for made_at, deleted in ((MADE_AT, 0), (datetime.now(UTC) + timedelta(days=1), 1)):
            url = write(
                f"{source}-inventory",
                [Entry("ant.png", ant.etag, ant.size_bytes)],
                made_at=made_at,
            )
            plan = night(url, out, NEXT_DAY, options={"bucket_url": source})
            assert (plan.deleted, plan.unchanged, len(live(out))) == (deleted, 1, 2 - deleted)

    def test_it_is_known_by_the_name_of_its_manifest(self, place: tuple[str, str]) -> None:
        source, out = place
        url = inventory_of(source, f"{source}-inventory")
        with pytest.raises(SettingsError, match="The source has no files"):
            stage.plan(url, run=Run("r", out, DAY), settings=SETTINGS)


class TestInPlace:
    """Tars that are read where they are."""

    def test_each_tar_is_one_shard(self, place: tuple[str, str]) -> None:
        source, out = place
        packed = [(name[:3], "png", picture(n + 1)) for n, name in enumerate(NAMES)]
        storage.write(f"{source}/a.tar", shards.pack(packed[:5])[0])
        storage.write(f"{source}/b.tar", shards.pack(packed[5:])[0])
        pack = PackSettings(max_images=2, in_place=True)
        plan = night(source, out, kind="tars", pack=pack)
        assert [part.images for part in plan.planned] == [5, 3]
        storage.write(f"{source}/c.tar", shards.pack(packed[2:4])[0])
        plan = night(source, out, NEXT_DAY, kind="tars", pack=pack)
        assert [part.images for part in plan.planned] == [2]


class TestScratch:
    """What a plan takes of the local disk."""

    def test_nothing_is_left_after_a_night_nor_after_an_error(
        self, place: tuple[str, str], temporary: Path
    ) -> None:
        source, out = place
        fill(source, {"ant.png": 1})
        storage.write(f"{source}/ant.txt", b"an ant")
        seen: list[int] = []
        real = plans.write

        def noted(*given: object, **named: object) -> object:
            seen.append(len(list(temporary.glob("clipcap-scratch-*"))))
            return real(*given, **named)  # type: ignore[arg-type]

        with patch.object(plans, "write", noted):
            night(source, out)
        assert seen == [1]
        assert list(temporary.iterdir()) == []
        with patch.object(plans, "write", side_effect=Crash), pytest.raises(Crash):
            night(source, out, dt=NEXT_DAY)
        with (
            patch.object(files, "_joined", side_effect=TransientStorageError("later")),
            pytest.raises(TransientStorageError),
        ):
            night(source, out, dt=NEXT_DAY)
        assert list(temporary.iterdir()) == []

    def test_another_folder_and_less_memory_may_be_chosen(
        self, place: tuple[str, str], temporary: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        source, out = place
        bucket = fill(source, {"ant.png": 1})
        folder = tmp_path_factory.mktemp("scratch")
        chosen = ScratchSettings(memory_bytes=2**27, folder=str(folder))
        with patch.object(scratch, "_remove_left_over") as looked:
            night(source, out, scratch=chosen)
        assert {call.args for call in looked.call_args_list} == {(folder,)}
        require_exact(source, out, bucket)
        missing = ScratchSettings(folder=str(folder / "nowhere"))
        with pytest.raises(SettingsError, match=r"scratch folder .* must be there"):
            night(source, out, scratch=missing)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(changes, st.integers(0, 14), st.sampled_from(["", "lose", "damage"])),
        min_size=1,
        max_size=5,
    )
)
def test_with_an_index_that_is_lost_damaged_or_half_written_an_output_lives_the_same(
    nights: list[tuple[list[tuple[str, int]], int, str]],
) -> None:
    name = secrets.token_hex(6)
    source, out = f"memory://source-{name}", f"memory://out-{name}"
    bucket: dict[str, bytes] = {"zebra.png": picture(99)}
    storage.write(f"{source}/zebra.png", bucket["zebra.png"])
    with patch.object(index, "_WORTH_STORING", 1), patch.object(index, "_MOST_SMALL", 2):
        for n, (changed, crash_at, then) in enumerate(nights):
            for path, colour in changed:
                if colour < 0:
                    bucket.pop(path, None)
                    storage.delete(f"{source}/{path}")
                else:
                    bucket[path] = picture(colour)
                    storage.write(f"{source}/{path}", bucket[path])
            with suppress(Crash), dies_at(crash_at, after=bool(n % 2)):
                night(source, out, dt=f"2026-11-{21 + n}")
            for part in index_parts(out)[:1]:
                if then == "lose":
                    storage.delete(part)
                elif then == "damage":
                    storage.write(part, storage.read(part)[:-9])
        night(source, out, dt="2026-11-28")
        require_exact(source, out, bucket)
        plan = night(source, out, dt="2026-11-29")
    assert (plan.planned, plan.retired, plan.unchanged) == ((), (), len(bucket))
    assert len(index_parts(out)) <= 3
