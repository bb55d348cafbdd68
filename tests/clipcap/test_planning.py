"""Packing: which images share a shard, in which order, and that only a few shards are held."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipcap import index, planning, plans, samples, scratch, storage
from clipcap.comparison import Asked, Comparison, compare
from clipcap.layout import Run, Shard
from clipcap.planning import PackSettings, names, shards_to_write
from clipcap.sample import Bytes, Sample
from clipcap.scratch import ScratchSettings
from tests.known import Held, Row, shard, write

OURS = "s3://b"
RUN = Run("run", "memory://nowhere", shard(1).dt)


@contextmanager
def compared(listed: list[Sample], known: dict[Shard, Held]) -> Iterator[tuple[Comparison, str]]:
    out = f"memory://out-{secrets.token_hex(6)}"
    write(out, known)
    with scratch.opened(ScratchSettings()) as place:
        listing = place.spool("listing", samples.SCHEMA)
        listing.extend(samples.batches(listed))
        listing.close()
        asked = Asked(of=OURS, dt=RUN.dt, limits="")
        yield compare(listing, index.load(out, place), asked), out


def sample(name: str, size: int = 10, container: str = "") -> Sample:
    """Return one sample, of a container or an object of its own."""
    uri = f"{OURS}/{container}#{name}" if container else f"{OURS}/{name}"
    return Sample(uri, "a", size, Bytes(f"{OURS}/{container}" if container else uri))


def packed(
    listed: list[Sample],
    pack: PackSettings,
    *,
    known: dict[Shard, Held] | None = None,
    limit: int | None = None,
) -> list[list[str]]:
    """Return the names in each shard."""
    with compared(listed, known or {}) as (found, _):
        shards = shards_to_write(found, named=names(RUN.dt), pack=pack, limit=limit)
        return [
            [uri.removeprefix(f"{OURS}/") for uri in rows["source_uri"].to_pylist()]
            for _, rows in shards
        ]


def test_shards_are_full_by_count_or_by_bytes() -> None:
    listed = [sample("d"), sample("a"), sample("c", 90), sample("b", 20)]
    assert packed(listed, PackSettings(max_images=3)) == [["a", "b", "c"], ["d"]]
    assert packed(listed, PackSettings(max_bytes=100)) == [["a", "b"], ["c", "d"]]
    assert packed(listed, PackSettings(max_bytes=1)) == [["a"], ["b"], ["c"], ["d"]]


def test_what_a_night_wrote_in_part_is_packed_like_the_whole() -> None:
    """`b` and `d` lie in a shard of today: what is left of their groups goes last, together."""
    today = [Row(f"{OURS}/b"), Row(f"{OURS}/d")]
    known = {shard(1): Held(OURS, today), shard(0): Held(OURS, [Row(f"{OURS}/e")])}
    listed = [sample(name) for name in "abcdefgh"]
    assert packed(listed, PackSettings(max_images=2), known=known) == [
        ["f", "g"], ["h"], ["a", "c"],
    ]  # fmt: skip


def test_in_place_a_container_is_a_shard_and_never_shares_one() -> None:
    listed = [
        *(sample(name, container="y.tar") for name in "abc"),
        *(sample(name, container="x.tar") for name in "de"),
        sample("z", container="w.tar"),
    ]
    pack = PackSettings(max_images=2, max_bytes=15, in_place=True)
    whole = [["w.tar#z"], ["x.tar#d", "x.tar#e"], ["y.tar#a", "y.tar#b", "y.tar#c"]]
    assert packed(listed, pack) == whole
    known = {shard(1): Held(OURS, [Row(f"{OURS}/y.tar#b")])}
    assert packed(listed, pack, known=known) == [*whole[:2], ["y.tar#a", "y.tar#c"]]


def test_in_place_order_is_by_container_even_where_uris_are_not() -> None:
    listed = [
        Sample(f"{OURS}/{name}", "a", 1, Bytes(f"{OURS}/{'pq'[n % 2]}"))
        for n, name in enumerate("abcd")
    ]
    assert packed(listed, PackSettings(in_place=True)) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize(("limit", "shards"), [(1, 1), (3, 1), (4, 2), (5, 3), (9, 3)])
def test_in_place_a_limit_takes_whole_containers_and_one_at_least(limit: int, shards: int) -> None:
    listed = [
        *(sample(name, container="a") for name in "xy"),
        *(sample(name, container="b") for name in "xy"),
        sample("x", container="c"),
    ]
    found = packed(listed, PackSettings(in_place=True, max_images=1), limit=limit)
    assert found == [["a#x", "a#y"], ["b#x", "b#y"], ["c#x"]][:shards]


def test_a_limit_takes_new_images_before_those_that_failed() -> None:
    known = {shard(0): Held(OURS, [Row(f"{OURS}/a", is_live=False, retryable=True)])}
    listed = [sample(name) for name in "abc"]
    assert packed(listed, PackSettings(max_images=9), known=known, limit=2) == [["b", "c"]]
    assert packed(listed, PackSettings(max_images=9), known=known, limit=3) == [["b", "c", "a"]]


NAMES = st.lists(st.sampled_from("abcdefghijkl"), unique=True, min_size=1)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(NAMES, NAMES, st.integers(1, 4), st.integers(1, 40), st.integers(1, 3))
def test_rows_are_grouped_as_a_loop_would(
    names: list[str], today: list[str], max_images: int, max_bytes: int, rows: int
) -> None:
    """However many rows come at a time."""
    listed = [sample(name, size=ord(name) % 7 * 5) for name in names]
    known = {shard(1): Held(OURS, [Row(f"{OURS}/{name}") for name in today])}

    def grouped(some: list[Sample]) -> list[list[Sample]]:
        groups: list[list[Sample]] = []
        size = 0
        for one in some:
            more = one.size_bytes or 2**19
            if not groups or len(groups[-1]) == max_images or size + more > max_bytes:
                groups.append([])
                size = 0
            groups[-1].append(one)
            size += more
        return groups

    groups = grouped(sorted(listed, key=lambda one: one.source_uri))
    whole = [g for g in groups if not {one.source_uri[-1] for one in g} & set(today)]
    broken = [one for g in groups if g not in whole for one in g]
    rest = grouped([one for one in broken if one.source_uri[-1] not in today])
    expected = [[one.source_uri[-1] for one in g] for g in [*whole, *rest]]
    pack = PackSettings(max_images=max_images, max_bytes=max_bytes)
    real = scratch.Scratch.batches

    def cut(place: scratch.Scratch, query: str, *given: object) -> Iterator[pa.RecordBatch]:
        for batch in real(place, query, *given):
            yield from (batch.slice(at, rows) for at in range(0, batch.num_rows, rows))

    with patch.object(scratch.Scratch, "batches", cut):
        assert packed(listed, pack, known=known) == expected


def test_a_plan_is_read_as_it_was_written() -> None:
    """Also `form`, which says how an image is packed, and what a listing leaves out."""
    at = Bytes(f"{OURS}/x.zip", 7, 9, "zip")
    listed = [Sample(f"{OURS}/x.zip#a.png", "e", 9, at, None, ("one", "two")), sample("b")]
    with compared(listed, {}) as (found, out):
        run = Run("run", out, RUN.dt)
        shards = shards_to_write(found, named=names(run.dt), pack=PackSettings())
        plan = plans.write(found, shards, run=run, source=OURS)
        (planned,) = plan.planned
        work = plans.read(run, planned.shard)
        todo, source = work.todo, work.source
    assert [item.sample for item in todo] == [listed[1], listed[0]]
    assert (source, planned.images, planned.size_bytes) == (OURS, 2, 19)


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    listed = [sample("a")]
    with compared(listed, {}) as (found, _):

        def named(*taken: Shard) -> Shard:
            found_ = shards_to_write(found, named=names(RUN.dt, taken), pack=PackSettings())
            return next(name for name, _ in found_)

        first = named()
        second = named(first)
        assert named() == named(second) == first
        assert len({first, second, named(first, second)}) == 3
        assert named(planning.held(first, ["other bytes"])) == second
        others = shards_to_write(found, named=names(RUN.dt, how="smaller"), pack=PackSettings())
        assert next(name for name, _ in others) not in (first, second)


def test_shards_are_written_while_others_are_not_packed_yet() -> None:
    """A first night of millions holds a few shards at a time."""
    listed = [sample(f"{n:04d}") for n in range(400)]
    packing, writing = [0], []
    real = planning._grouped
    real_write = storage.write

    def counted(batches: Iterator[pa.RecordBatch], pack: PackSettings) -> Iterator[pa.Table]:
        for group in real(batches, pack):
            packing[0] += 1
            yield group

    def noted(url: str, *parts: bytes) -> None:
        writing.append(packing[0])
        real_write(url, *parts)

    with (
        compared(listed, {}) as (found, out),
        patch.object(planning, "_grouped", counted),
        patch.object(storage, "write", noted),
    ):
        run = Run("run", out, RUN.dt)
        pack = PackSettings(max_images=4)
        shards = shards_to_write(found, named=names(run.dt), pack=pack)
        plans.write(found, shards, run=run, source=OURS)
    ahead = [packed - written for written, packed in enumerate(writing)]
    assert len(writing) == 100
    assert max(ahead) <= storage.IN_FLIGHT
