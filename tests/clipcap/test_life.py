"""The life of an output, on a store in memory: any changes, a crash at any write, one more run."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipcap import keys, layout, manifest, scratch, shards, storage, tables
from clipcap.errors import SettingsError, TransientStorageError
from clipcap.planning import PackSettings
from clipcap.plans import Plan
from clipcap.stages import shard as stage
from tests.chaos.standins import Shared
from tests.nights import shard_night

SETTINGS = stage.ShardSettings(pack=PackSettings(max_images=3))
NAMES = [f"{name}.png" for name in ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")]


class Crash(BaseException):
    """Stands for SIGKILL: nothing in the library may catch it."""


def picture(colour: int) -> bytes:
    """Return a small PNG whose bytes depend on `colour`; 0 gives bytes that are no image."""
    if colour == 0:
        return b"this is no picture"
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (colour * 9 % 256, colour * 31 % 256, 40)).save(stream, "PNG")
    return stream.getvalue()


def night(source: str, out: str, dt: str = "2026-11-20", **changed: object) -> Plan:
    """Run the shard stage once, as the nightly flow does; `changed` are settings of the stage."""
    return shard_night(source, out, SETTINGS.model_copy(update=changed), dt=dt)


def live(out: str) -> list[dict[str, Any]]:
    """Return source, content and shard of every live image, once per row."""
    found = []
    for shard in manifest.shards(out):
        table = tables.read(layout.manifest(out, shard))
        url = manifest.tar_url(out, shard, tables.metadata(table))
        tar = storage.read(url) if table.num_rows else b""
        for row in table.to_pylist():
            data = tar[row["member_offset"] : row["member_offset"] + row["member_bytes"]]
            found.append({"uri": row["source_uri"], "data": data, "shard": str(shard), **row})
    return sorted(found, key=lambda row: row["uri"])


def rejected(out: str) -> list[str]:
    """Return the source of every reject, once per row."""
    return sorted(
        row["source_uri"]
        for shard in manifest.shards(out)
        for row in manifest.read_rejects(out, shard).to_pylist()
    )


def require_exact(source: str, out: str, bucket: dict[str, bytes]) -> None:
    """Check that tables say what the bucket holds: each object once, live or rejected."""
    good = {name: data for name, data in bucket.items() if not data.startswith(b"this is no")}
    rows = live(out)
    assert [row["uri"] for row in rows] == [f"{source}/{name}" for name in sorted(good)]
    assert [row["data"] for row in rows] == [good[name] for name in sorted(good)]
    assert [row["image_id"] for row in rows] == [keys.image_id(row["uri"]) for row in rows]
    assert rejected(out) == [f"{source}/{name}" for name in sorted(bucket.keys() - good.keys())]
    assert manifest.orphan_rejects(out) == []


@pytest.fixture
def place() -> tuple[str, str]:
    """Give a source and an output in memory that nobody else has."""
    name = secrets.token_hex(6)
    return f"memory://source-{name}", f"memory://out-{name}"


changes = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(min_value=-1, max_value=20)),
    min_size=1,
    max_size=6,
)


@patch.object(scratch, "Scratch", Shared)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    nights=st.lists(
        st.tuples(changes, st.integers(min_value=0, max_value=12), st.booleans(), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_after_any_changes_and_crashes_one_more_run_gives_exactly_the_bucket(
    nights: list[tuple[list[tuple[str, int]], int, bool, bool]],
) -> None:
    name = secrets.token_hex(6)
    source, out = f"memory://source-{name}", f"memory://out-{name}"
    bucket: dict[str, bytes] = {"zebra.png": picture(99)}  # an empty bucket is an error of its own
    storage.write(f"{source}/zebra.png", bucket["zebra.png"])
    for n, (changed, crash_at, after, same_day) in enumerate(nights):
        for path, colour in changed:
            if colour < 0:
                bucket.pop(path, None)
                storage.delete(f"{source}/{path}")
            else:
                bucket[path] = picture(colour)
                storage.write(f"{source}/{path}", bucket[path])
        with dies_at(crash_at, after=after):
            try:
                night(source, out, dt="2026-11-20" if same_day else f"2026-11-{21 + n}")
            except Crash:
                continue
    night(source, out, dt="2026-11-28")
    require_exact(source, out, bucket)
    written = writes_of(source, out)
    assert written == 0
    forget(f"/source-{name}/", f"/out-{name}/")


def forget(*folders: str) -> None:
    """Remove what lies in memory, where each listing looks at all that was ever written there."""
    store = MemoryFileSystem.store
    for path in [path for path in store if path.startswith(folders)]:
        del store[path]


def writes_of(source: str, out: str) -> int:
    """Return how many objects a run writes when nothing has changed."""
    with patch.object(storage, "write", side_effect=AssertionError("a run of nothing wrote")):
        plan = night(source, out, dt="2026-11-29")
    return len(plan.planned) + len(plan.retired)


class dies_at:  # noqa: N801 - reads as a sentence
    """Raise `Crash` before or after the n-th write or delete."""

    def __init__(self, n: int, *, after: bool) -> None:
        self.left, self.after = n, after
        self.real = {name: getattr(storage, name) for name in ("write", "delete")}

    def __enter__(self) -> None:
        for name in self.real:
            setattr(storage, name, self.call(name))

    def __exit__(self, *_: object) -> None:
        for name, function in self.real.items():
            setattr(storage, name, function)

    def call(self, name: str) -> Callable[..., None]:
        """Return the function of that name, counted."""

        def counted(*args: object) -> None:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Crash
            self.real[name](*args)
            if self.left == 0:
                raise Crash

        return counted


def fill(source: str, colours: dict[str, int]) -> dict[str, bytes]:
    """Write pictures to a source."""
    bucket = {name: picture(colour) for name, colour in colours.items()}
    for name, data in bucket.items():
        storage.write(f"{source}/{name}", data)
    return bucket


def test_a_second_run_reads_no_image(place: tuple[str, str]) -> None:
    source, out = place
    bucket = fill(source, {name: n + 1 for n, name in enumerate(NAMES)})
    night(source, out)
    with patch("clipcap.intake.take_in", side_effect=AssertionError("read an image")):
        plan = night(source, out)
    assert (plan.new, plan.changed, plan.deleted, plan.unchanged) == (0, 0, 0, len(NAMES))
    require_exact(source, out, bucket)


def test_added_replaced_and_deleted_images_are_exactly_the_ones_processed(
    place: tuple[str, str],
) -> None:
    source, out = place
    bucket = fill(source, {name: n + 1 for n, name in enumerate(NAMES[:6])})
    night(source, out)
    first = {row["uri"]: row for row in live(out)}
    bucket |= fill(source, {"bee.png": 50, "gnu.png": 51})
    storage.delete(f"{source}/fox.png")
    bucket.pop("fox.png")
    plan = night(source, out, dt="2026-11-21")
    assert (plan.new, plan.changed, plan.deleted, plan.unchanged) == (1, 1, 1, 4)
    assert sum(planned.images for planned in plan.planned) == 2
    require_exact(source, out, bucket)
    now = {row["uri"]: row for row in live(out)}
    bee = f"{source}/bee.png"
    assert now[bee]["image_id"] == first[bee]["image_id"]
    assert now[bee]["shard"] != first[bee]["shard"]
    assert now[bee]["first_seen_at"] == first[bee]["first_seen_at"]


def test_a_replaced_image_that_no_longer_decodes_leaves_the_manifest(
    place: tuple[str, str],
) -> None:
    source, out = place
    bucket = fill(source, {"ant.png": 1, "bee.png": 2})
    night(source, out)
    bucket |= fill(source, {"bee.png": 0})
    night(source, out, dt="2026-11-21")
    require_exact(source, out, bucket)
    bucket |= fill(source, {"bee.png": 3})
    night(source, out, dt="2026-11-22")
    require_exact(source, out, bucket)


def test_a_killed_night_makes_the_same_shards_when_it_runs_again(place: tuple[str, str]) -> None:
    """Packing starts from the whole night, so no shard depends on which were written before."""
    source, out = place
    fill(source, {name: n + 1 for n, name in enumerate(NAMES)})
    night(source, out)
    whole = [str(shard) for shard in manifest.shards(out)]
    for crash_at in range(4, 12):
        other = f"{out}-{crash_at}"
        with dies_at(crash_at, after=True), pytest.raises(Crash):
            night(source, other)
        night(source, other)
        assert [str(shard) for shard in manifest.shards(other)] == whole


def test_a_limit_puts_the_rest_off_and_keeps_what_waits(place: tuple[str, str]) -> None:
    source, out = place
    bucket = fill(source, {name: n + 1 for n, name in enumerate(NAMES)})
    plan = night(source, out, limit=3)
    assert (plan.listed, plan.new) == (3, 3)
    assert len(live(out)) == 3
    night(source, out)
    require_exact(source, out, bucket)
    fill(source, {"ant.png": 60, "bee.png": 61})
    night(source, out, limit=1)
    assert [row["uri"] for row in live(out)] == [f"{source}/{name}" for name in sorted(NAMES)]


def test_an_empty_source_is_refused_and_takes_nothing_away(place: tuple[str, str]) -> None:
    source, out = place
    bucket = fill(source, {"ant.png": 1})
    night(source, out)
    storage.delete(f"{source}/ant.png")
    with pytest.raises(SettingsError, match=r"The source has no files.*Nothing was changed"):
        night(source, out)
    require_exact(source, out, bucket)


def test_the_same_images_from_another_source_are_refused(place: tuple[str, str]) -> None:
    source, out = place
    fill(f"{source}/deep", {"ant.png": 1})
    night(source, out)
    with pytest.raises(SettingsError, match=r"already, from another source \(\S+, shard "):
        night(f"{source}/deep", out)


def test_a_retryable_reject_is_tried_again_and_counts_its_attempts(place: tuple[str, str]) -> None:
    source, out = place
    fill(source, {"ant.png": 1, "bee.png": 2})
    real = storage.read_part

    def slow(url: str, offset: int, length: int | None) -> storage.Part:
        if url.endswith("bee.png"):
            raise TransientStorageError("Cannot get it: the store did not answer in time.")
        return real(url, offset, length)

    for n in (1, 2):
        with patch.object(storage, "read_part", side_effect=slow):
            night(source, out, dt=f"2026-11-2{n}")
        rows = [
            row for s in manifest.shards(out) for row in manifest.read_rejects(out, s).to_pylist()
        ]
        assert [(row["reason"], row["retryable"], row["attempts"]) for row in rows] == [
            ("timeout", True, n)
        ]
    night(source, out, dt="2026-11-23")
    assert [row["uri"].rpartition("/")[2] for row in live(out)] == ["ant.png", "bee.png"]
    assert rejected(out) == []


def test_a_tar_that_has_not_changed_is_not_read_again(place: tuple[str, str]) -> None:
    source, out = place
    files = [(name[:3], "png", picture(n + 1)) for n, name in enumerate(NAMES)]
    storage.write(f"{source}/a.tar", shards.pack(files[:4])[0])
    storage.write(f"{source}/b.tar", shards.pack(files[4:])[0])
    assert night(source, out, "2026-11-20", kind="tars").new == len(NAMES)
    with patch("clipcap.sources.tars.members", side_effect=AssertionError("walked a tar")):
        assert night(source, out, "2026-11-21", kind="tars").unchanged == len(NAMES)
    storage.write(f"{source}/b.tar", shards.pack(files[4:7])[0])
    plan = night(source, out, "2026-11-22", kind="tars")
    assert (plan.changed, plan.deleted, plan.unchanged) == (3, 1, 4)
    assert len(list(storage.list_objects(f"{out}/_listings"))) == 2
    assert len(live(out)) == 7
