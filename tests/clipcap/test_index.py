"""The index of an output: whatever happens to it, manifests are what counts."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipcap import index, keys, layout, manifest, scratch, storage, verify
from clipcap.footers import Footers
from clipcap.index import Known
from clipcap.layout import Run, Shard
from clipcap.scratch import ScratchSettings
from tests.clipcap.test_life import Crash, dies_at
from tests.known import Held, Row, index_parts, many, remove, shard, write

OURS = "s3://b"


@pytest.fixture(autouse=True)
def stores_at_once() -> Iterator[None]:
    """Let a part be worth storing for a single object."""
    with patch.object(index, "_WORTH_STORING", 1):
        yield


@pytest.fixture
def out() -> str:
    """Give an output in memory that nobody else has."""
    return f"memory://out-{secrets.token_hex(6)}"


@contextmanager
def loaded(out: str) -> Iterator[Known]:
    with scratch.opened(ScratchSettings()) as place:
        yield index.load(out, place)


def stored(out: str) -> int:
    """Bring the index of an output up to date; return how many parts were written."""
    with loaded(out) as known:
        return index.store(known)


def told(out: str) -> list[tuple[Any, ...]]:
    """Return everything that is known."""
    with loaded(out) as known:
        return known.place.rows(
            "SELECT replace(id::VARCHAR, '-', ''), version, is_live, dt, shard, source, retryable, "
            "attempts, limits, epoch_us(first_seen_at) "
            "FROM indexed JOIN entries USING (part, object) ORDER BY ALL"
        )


def version(etag: str) -> int:
    return int.from_bytes(hashlib.md5(etag.encode(), usedforsecurity=False).digest()[8:], "little")


def expected(shards: dict[Shard, Held]) -> list[tuple[Any, ...]]:
    """Return the same from the rows that were written."""
    return sorted(
        (
            keys.image_id(row.uri),
            version(row.etag),
            row.is_live,
            at.dt,
            at.name,
            held.source,
            None if row.is_live else row.retryable,
            None if row.is_live else row.attempts,
            None if row.is_live else row.limits,
            int(row.first_seen_at.timestamp() * 1e6),
        )
        for at, held in shards.items()
        for row in held.rows
    )


def manifests_read(out: str) -> list[str]:
    """Return what is read of an output's tables to know it."""
    real = storage.read
    seen: list[str] = []

    def noted(url: str) -> bytes:
        seen.append(url)
        return real(url)

    with patch.object(storage, "read", noted):
        told(out)
    return sorted(url.removeprefix(f"{out}/") for url in seen if "/_index/" not in url)


THREE = {
    shard(0): Held(OURS, [Row("s3://b/a"), Row("s3://b/b", is_live=False, limits="x", seen=2)]),
    shard(1): Held("s3://c", [Row("s3://c/a", "y", seen=1)]),
    shard(2): Held(OURS),
}


def test_what_is_read_once_is_not_read_again(out: str) -> None:
    write(out, THREE)
    assert told(out) == expected(THREE)
    assert stored(out) == 1
    assert manifests_read(out) == []
    assert told(out) == expected(THREE)
    assert stored(out) == 0
    with loaded(out) as known:
        assert known.shards == set(THREE)
        assert (known.live(OURS), known.live("s3://c"), known.rows) == (1, 1, 3)


def test_a_manifest_that_is_new_replaced_or_gone_is_noticed(out: str) -> None:
    write(out, THREE)
    stored(out)
    now = {
        shard(0): Held(OURS, [Row("s3://b/z", "new")]),
        shard(1): THREE[shard(1)],
        shard(3): Held(OURS, [Row("s3://b/new", is_live=False)]),
    }
    write(out, now)
    remove(out, shard(2))
    assert told(out) == expected(now)
    stored(out)
    assert told(out) == expected(now)


def test_rejects_without_their_manifest_do_not_count(out: str) -> None:
    write(out, THREE)
    stored(out)
    storage.delete(layout.manifest(out, shard(0)))
    assert told(out) == expected({shard(1): THREE[shard(1)]})


def test_a_retired_image_is_known_no_more(out: str) -> None:
    write(out, THREE)
    stored(out)
    run = Run("r", out, shard(3).dt)
    manifest.retire(shard(0), run=run, live={keys.image_id("s3://b/a")}, rejects=set())
    left = {**THREE, shard(0): Held(OURS, THREE[shard(0)].rows[1:])}
    assert told(out) == expected(left)
    assert len(manifests_read(out)) == 1


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


@pytest.mark.parametrize("damage", [cut, flipped, bytes, lambda _: b"no Parquet"])
def test_a_damaged_part_is_not_believed_and_goes(out: str, damage: Any) -> None:  # noqa: ANN401
    write(out, THREE)
    stored(out)
    (part,) = index_parts(out)
    storage.write(part, damage(storage.read(part)))
    assert told(out) == expected(THREE)
    stored(out)
    assert len(manifests_read(out)) == 0
    storage.delete(index_parts(out)[0])
    assert told(out) == expected(THREE)


def test_a_part_of_another_version_is_not_read(out: str) -> None:
    write(out, THREE)
    stored(out)
    with patch.object(index, "VERSION", 2):
        assert len(manifests_read(out)) == 4
        stored(out)
        assert manifests_read(out) == []
        assert len(index_parts(out)) == 1


def test_what_is_soon_read_again_is_not_worth_a_part(out: str) -> None:
    write(out, THREE)
    with patch.object(index, "_WORTH_STORING", 5):
        assert stored(out) == 0
    with patch.object(index, "_WORTH_STORING", 4):
        assert stored(out) == 1


def test_small_parts_are_joined_and_large_ones_left_alone(out: str) -> None:
    shards: dict[Shard, Held] = {}
    with patch.object(index, "_PART_ROWS", 100):
        for day in range(30):
            shards[shard(day)] = Held(OURS, list(many(60 if day == 0 else 9)))
            write(out, {shard(day): shards[shard(day)]})
            stored(out)
            assert len(index_parts(out)) <= 8 + 60 // 10 + 1
            assert told(out) == expected(shards)
    rows = [pq.read_metadata(_opened(url)).num_rows for url in index_parts(out)]
    assert sum(rows) == 60 + 29 * 9
    assert 60 in rows
    assert max(rows) <= 100


def test_a_part_holds_no_more_rows_than_fit(out: str) -> None:
    shards = {shard(0, str(n)): Held(OURS, list(many(40))) for n in range(5)}
    write(out, shards)
    with patch.object(index, "_PART_ROWS", 100):
        assert stored(out) == 3
    assert told(out) == expected(shards)


def test_a_part_most_of_whose_objects_are_gone_is_joined_too(out: str) -> None:
    with patch.object(index, "_PART_ROWS", 100), patch.object(index, "_MOST_SMALL", 1):
        shards = {shard(0, str(n)): Held(OURS, list(many(20))) for n in range(5)}
        write(out, shards)
        stored(out)
        for n in range(3):
            remove(out, shard(0, str(n)))
            del shards[shard(0, str(n))]
        shards[shard(1)] = Held(OURS, [Row("s3://b/x")])
        write(out, {shard(1): shards[shard(1)]})
        stored(out)
    (part,) = index_parts(out)
    assert pq.read_metadata(_opened(part)).num_rows == 41
    assert told(out) == expected(shards)


def _opened(url: str) -> io.BytesIO:
    return io.BytesIO(storage.read(url))


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_point_of_storing_does_no_harm(out: str, *, after: bool) -> None:
    shards = {shard(n): Held(OURS, list(many(n + 1))) for n in range(12)}
    with patch.object(index, "_PART_ROWS", 20), patch.object(index, "_MOST_SMALL", 2):
        for crash_at in range(1, 26):
            at = shard(crash_at % 12)
            shards[at] = Held(OURS, list(many(crash_at % 7, etag=str(crash_at))))
            write(out, {at: shards[at]} if crash_at > 12 else shards)
            with suppress(Crash), dies_at(1 + crash_at % 5, after=after):
                stored(out)
            assert told(out) == expected(shards)
        stored(out)
        assert manifests_read(out) == []


ROWS = st.lists(
    st.builds(
        Row, st.sampled_from([f"s3://b/{name}" for name in "abcd"]), st.sampled_from("xy"),
        st.booleans(), st.booleans(), st.integers(1, 3), st.sampled_from([None, "x"]),
        st.integers(0, 3),
    ),
    max_size=3, unique_by=lambda row: (row.uri, row.is_live),
)  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.dictionaries(st.builds(shard, st.integers(0, 3)), st.none() | ROWS, max_size=3),
        st.sampled_from(["store", "look", "lose a part", "damage a part"]),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_after_any_life_it_says_what_the_manifests_say(
    changes: list[tuple[dict[Shard, list[Row] | None], str]],
) -> None:
    out = f"memory://out-{secrets.token_hex(6)}"
    shards: dict[Shard, Held] = {}
    for changed, then in changes:
        for at, rows in changed.items():
            if rows is None:
                remove(out, at)
                shards.pop(at, None)
            else:
                shards[at] = Held(OURS, rows)
                write(out, {at: shards[at]})
        parts = index_parts(out)
        if then == "store":
            stored(out)
        elif parts and then == "lose a part":
            storage.delete(parts[0])
        elif parts and then == "damage a part":
            storage.write(parts[0], cut(storage.read(parts[0])))
        assert told(out) == expected(shards)


def test_an_image_takes_24_bytes(out: str) -> None:
    write(out, {shard(n): Held(OURS, list(many(2_000, source=f"s3://{n}"))) for n in range(10)})
    stored(out)
    (part,) = index_parts(out)
    assert len(storage.read(part)) / 20_000 < 25


def test_verify_and_readers_do_not_mind_it(tmp_path: Path) -> None:
    out = storage.canonical(str(tmp_path))
    write(out, {shard(0): Held(OURS, [Row("s3://b/b", is_live=False)])})
    stored(out)
    assert len(index_parts(out)) == 1
    found = verify.verify(out)
    assert [one for one in found.problems if "_index" in one.place] == []
    assert [one for one in Footers(out).entries() if one["url"].startswith("_")] == []
