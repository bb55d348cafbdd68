"""A listing against what an output knows: the same answer as a plain loop over everything."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipcap import comparison, index, keys, samples, scratch
from clipcap.comparison import Asked, Comparison, compare
from clipcap.errors import SettingsError
from clipcap.layout import Shard
from clipcap.scratch import ScratchSettings
from tests.known import BEGIN, Held, Row, many, shard, write

OURS, OTHER = "s3://b", "s3://other"
ASKED = Asked(of=OURS, dt=shard(2).dt, limits="now")


@dataclass(frozen=True)
class Found:
    """One object of a listing; `written` counts hours."""

    uri: str
    etag: str = "a"
    written: int = 0
    archived: bool = False


@contextmanager
def compared(
    listed: list[Found], known: dict[Shard, Held], asked: Asked = ASKED
) -> Iterator[Comparison]:
    """Compare a listing with an output in memory that knows some rows."""
    out = f"memory://out-{secrets.token_hex(6)}"
    write(out, known)
    with scratch.opened(ScratchSettings()) as place:
        listing = place.spool("listing", samples.SCHEMA)
        rows = [
            {
                "source_uri": one.uri,
                "etag": one.etag,
                "size_bytes": 5,
                "modified_at": BEGIN + timedelta(hours=one.written),
                "archived": one.archived,
            }
            for one in listed
        ]
        listing.append(pa.RecordBatch.from_pylist(rows, schema=samples.SCHEMA))
        listing.close()
        yield compare(listing, index.load(out, place), asked)


Answer = tuple[dict[str, tuple[object, ...]], list[str], dict[Shard, dict[str, list[str]]], int]


def told(found: Comparison, limit: int | None = None) -> Answer:
    """Return what is to do, what is kept of today, what leaves which shard, what is gone."""
    batches = found.today(by_container=False)
    if limit is not None:
        batches = found.some(limit, by_container=False)
    rows = [row for batch in batches for row in batch.to_pylist()]
    todo: dict[str, tuple[object, ...]] = {
        row["source_uri"]: (row["etag"], row["first_seen_at"], row["attempts"], row["changed"])
        for row in rows
        if row["todo"]
    }
    kept = [row["source_uri"] for row in rows if not row["todo"]]
    leaving = {
        at: {kind: sorted(ids) for kind, ids in lists.items()} for at, lists in found.retired()
    }
    return todo, kept, leaving, found.deleted


class Naive:
    """The same question, asked in a loop."""

    def __init__(self, listed: list[Found], known: dict[Shard, Held], asked: Asked) -> None:
        newest: dict[str, Found] = {}
        for one in listed:
            if one.uri not in newest or one.written > newest[one.uri].written:
                newest[one.uri] = one
        self.rows = [
            (at, row) for at, held in known.items() if held.source == asked.of for row in held.rows
        ]
        if asked.as_of is not None:
            self.rows = [
                (at, row)
                for at, row in self.rows
                if row.uri in newest or row.first_seen_at <= asked.as_of
            ]
        self.asked = asked
        self.keep = {uri: kept for uri, one in newest.items() if (kept := self._kept(one))}
        self.unread = sorted(uri for uri in newest if newest[uri].archived and uri not in self.keep)
        self.listed = {uri: one for uri, one in newest.items() if uri not in self.unread}

    def _again(self, row: Row) -> bool:
        return row.retryable or row.limits not in (None, self.asked.limits)

    def _kept(self, one: Found) -> tuple[bool, Shard] | None:
        found = [
            (not row.is_live, at)
            for at, row in self.rows
            if row.uri == one.uri and row.etag == one.etag
            if row.is_live or not self._again(row)
        ]
        return min(found, default=None)

    def todo(self) -> dict[str, tuple[object, ...]]:
        """Return what has to be read."""
        answer: dict[str, tuple[object, ...]] = {}
        for uri, one in self.listed.items():
            if uri in self.keep:
                continue
            of = [row for _, row in self.rows if row.uri == uri]
            tried = [row.attempts for row in of if not row.is_live and row.etag == one.etag]
            seen: datetime | None = min((row.first_seen_at for row in of), default=None)
            answer[uri] = (one.etag, seen, max(tried, default=0), bool(of) and not tried)
        return answer

    def some(self, limit: int) -> list[str]:
        """Return what a limit leaves, new ones first."""
        todo = self.todo()
        return sorted(todo, key=lambda uri: (todo[uri][2] != 0, uri))[:limit]

    def today(self) -> list[str]:
        """Return what is kept in a shard of this date."""
        return sorted(uri for uri, (_, at) in self.keep.items() if at.dt == self.asked.dt)

    def retired(self, taken: set[str]) -> dict[Shard, dict[str, list[str]]]:
        """Return the ids that leave each shard; one row of what waits stays."""
        leaving = [
            (at, row)
            for at, row in self.rows
            if self.keep.get(row.uri) != (not row.is_live, at) or (row.uri not in self.listed)
        ]
        waiting = set(self.todo()) - taken
        for uri in waiting:
            own = [(at, row) for at, row in leaving if row.uri == uri]
            live = [found for found in own if found[1].is_live] or own
            if live:
                leaving.remove(max(live, key=lambda found: found[0]))
        lists: dict[Shard, dict[str, list[str]]] = {}
        for at, row in leaving:
            of = lists.setdefault(at, {"live": [], "rejects": []})
            of["live" if row.is_live else "rejects"].append(keys.image_id(row.uri))
        return {at: {kind: sorted(ids) for kind, ids in of.items()} for at, of in lists.items()}

    def deleted(self) -> int:
        """Return how many known images are not listed."""
        return len({row.uri for _, row in self.rows} - set(self.listed))


SHARDS = [shard(day, name) for day in range(3) for name in "pq"]
ELSEWHERE = shard(1, "elsewhere")
KEPT = st.tuples(
    st.sampled_from(SHARDS),
    st.builds(
        Row, st.just(""), st.sampled_from("xy"), st.booleans(), st.booleans(), st.integers(1, 3),
        st.sampled_from([None, "now", "then"]), st.integers(0, 3),
    ),
)  # fmt: skip
LISTED = st.builds(Found, st.just(""), st.sampled_from("xyz"), st.integers(0, 50), st.booleans())
IMAGES = st.lists(
    st.tuples(
        st.lists(LISTED, max_size=3, unique_by=lambda one: one.written),
        st.lists(KEPT, max_size=3, unique_by=lambda kept: (kept[0], kept[1].is_live)),
        st.booleans(),
    ),
    max_size=12,
)
"""What is listed of each image, what is known of it, and whether another source has it as well."""


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(IMAGES, st.sampled_from([None, 0, 1, 2]), st.sampled_from([None, None, 1, 3]))
def test_it_gives_the_answer_of_a_loop_over_everything(
    images: list[tuple[list[Found], list[tuple[Shard, Row]], bool]],
    day: int | None,
    limit: int | None,
) -> None:
    listed = [Found(f"{OURS}/always")]
    known = {at: Held(OURS) for at in SHARDS} | {ELSEWHERE: Held(OTHER)}
    for n, (found, rows, elsewhere) in enumerate(images):
        uri = f"{OURS}/{n}"
        listed += [replace(one, uri=uri) for one in found]
        for at, row in rows:
            known[at].rows.append(replace(row, uri=uri))
        if elsewhere and not found:
            known[ELSEWHERE].rows.append(Row(uri, "x"))
    as_of = None if day is None else BEGIN + timedelta(days=day)
    asked = replace(ASKED, as_of=as_of)
    naive = Naive(listed, known, asked)
    with compared(listed, known, asked) as compare_:
        todo, kept, retired, deleted = told(compare_, limit)
        counted = (compare_.listed, compare_.todo, compare_.unread)
    expected = naive.todo()
    assert counted == (len(naive.listed), len(expected), len(naive.unread))
    taken = list(expected) if limit is None else naive.some(limit)
    assert todo == {uri: expected[uri] for uri in taken}
    assert limit is not None or kept == naive.today()
    assert retired == naive.retired(set(taken))
    assert deleted == naive.deleted()


def test_what_killed_nights_tried_twice_counts_its_tries() -> None:
    tried = [Row(f"{OURS}/a", is_live=False, retryable=True, attempts=n) for n in (2, 3, 1)]
    known = {shard(0, str(n)): Held(OURS, [row]) for n, row in enumerate(tried)}
    with compared([Found(f"{OURS}/a")], known) as found:
        todo, _, _, _ = told(found)
    assert todo == {f"{OURS}/a": ("a", BEGIN, 3, False)}


def test_an_image_that_waits_for_its_turn_keeps_its_live_row_before_a_newer_reject() -> None:
    known = {
        shard(0): Held(OURS, [Row(f"{OURS}/z", "old")]),
        shard(1): Held(OURS, [Row(f"{OURS}/z", "broken", is_live=False)]),
    }
    with compared([Found(f"{OURS}/a"), Found(f"{OURS}/z", "new")], known) as found:
        todo, _, retired, _ = told(found, limit=1)
    assert list(todo) == [f"{OURS}/a"]
    assert retired == {shard(1): {"live": [], "rejects": [keys.image_id(f"{OURS}/z")]}}


@pytest.mark.parametrize("etag", ["a", "b"], ids=["the same", "changed, and put off"])
def test_of_an_image_that_stands_twice_the_one_of_merged_shards_stays(etag: str) -> None:
    """Whatever the dates and names: else a merging and a night might take out one each."""
    old = [shard(1, "0aaa"), shard(3, "faaa-m1"), shard(4, "ffff-m9")]
    new = shard(1, "bbbb-m10")
    known = {one: Held(OURS, [Row(f"{OURS}/1"), Row(f"{OURS}/0")]) for one in [*old, new]}
    with compared([Found(f"{OURS}/1", etag), Found(f"{OURS}/0")], known) as found:
        list(found.some(0, by_container=False))
        assert [one for one, _ in found.retired()] == old
        assert all(len(lists["live"]) == 2 for _, lists in found.retired())


@pytest.mark.parametrize("is_live", [True, False])
@pytest.mark.parametrize("etag", ["a", "b"])
def test_an_image_of_another_source_is_refused_whatever_its_version(
    etag: str, *, is_live: bool
) -> None:
    known = {shard(0): Held(OTHER, [Row(f"{OURS}/a", etag, is_live)])}
    with (
        pytest.raises(SettingsError, match=rf"{OURS}/a is in this output .* another .*shard s\)"),
        compared([Found(f"{OURS}/a")], known),
    ):
        pass


def test_what_is_settled_is_not_looked_at_in_full() -> None:
    """Ten million rows that are as they were must not be sorted, joined and read again."""
    known = {
        shard(0): Held(OURS, [Row(f"{OURS}/a"), Row(f"{OURS}/b", is_live=False)]),
        shard(1): Held(OTHER, [Row(f"{OTHER}/c")]),
    }
    listed = [Found(f"{OURS}/a", archived=True), Found(f"{OURS}/b"), Found(f"{OURS}/d")]
    with compared(listed, known) as found:
        assert found.place.number("SELECT count(*) FROM candidates") == 1
        assert found.place.number("SELECT count(*) FROM k") == 0
        assert found.listed == 3


@pytest.mark.parametrize("passes", [1, 5])
def test_what_does_not_fit_into_memory_is_compared_in_parts(passes: int) -> None:
    known = {shard(0): Held(OURS, list(many(3_000)))}
    listed = [Found(row.uri, "b" if n % 100 == 0 else "a") for n, row in enumerate(many(2_999))]
    bytes_per_row = (passes - 1) * ScratchSettings().memory_bytes // 5_999 + 1
    with (
        patch.object(comparison, "_BYTES_PER_ROW", bytes_per_row),
        compared(listed, known) as found,
    ):
        todo, _, _, deleted = told(found)
        assert sorted(todo) == [f"{OURS}/{n:06d}.jpg" for n in range(0, 2_999, 100)]
        assert (found.listed, deleted) == (2_999, 1)


def test_of_an_object_that_changed_while_it_was_listed_the_newest_counts() -> None:
    """Ranges of a bucket are listed beside each other; one key may come twice."""
    known = {shard(0): Held(OURS, [Row(f"{OURS}/a"), Row(f"{OURS}/b", "new")])}
    listed = [
        *(Found(f"{OURS}/a", "a", 1), Found(f"{OURS}/a", "new", 2)),
        *(Found(f"{OURS}/b", "new", 2), Found(f"{OURS}/b", "old", 1), Found(f"{OURS}/b", "old", 1)),
    ]
    with compared(listed, known) as found:
        todo, _, _, deleted = told(found)
        assert (found.listed, deleted) == (2, 0)
        assert list(todo) == [f"{OURS}/a"]
        assert todo[f"{OURS}/a"][0] == "new"


def test_what_is_archived_is_kept_if_it_is_known_and_else_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = {shard(0): Held(OURS, [Row(f"{OURS}/a")])}
    listed = [Found(f"{OURS}/{name}", archived=True) for name in "abc"]
    with caplog.at_level(logging.WARNING), compared(listed, known) as found:
        todo, _, retired, deleted = told(found)
    assert (found.listed, found.unread, todo, retired, deleted) == (1, 2, {}, {}, 0)
    assert "2 of 3 listed images are archived" in caplog.text


def test_an_older_inventory_takes_nothing_away_that_came_after_it() -> None:
    known = {shard(0): Held(OURS, [Row(f"{OURS}/a"), Row(f"{OURS}/b"), Row(f"{OURS}/c", seen=3)])}
    as_of = replace(ASKED, as_of=BEGIN + timedelta(days=2))
    with compared([Found(f"{OURS}/a")], known, as_of) as found:
        assert told(found)[2:] == ({shard(0): {"live": [keys.image_id(f"{OURS}/b")],
                                              "rejects": []}}, 1)  # fmt: skip


LEFT_OUT = [Row(f"{OURS}/r{n}", is_live=False) for n in range(50)]
KNOWN = {shard(0): Held(OURS, [*many(100), *LEFT_OUT])}
HALF = [Found(row.uri) for row in many(50)]


class TestDeletions:
    """A listing that lacks most of the output is a mistake more often than a wish."""

    def test_more_than_the_limit_stops_the_night(self) -> None:
        with (
            pytest.raises(
                SettingsError, match=r"51 of the 100 .* s3://b .*listing of 49 \(51%, limit 50%\)"
            ),
            compared(HALF[:49], KNOWN, replace(ASKED, max_delete_rate=0.5)),
        ):
            pass

    def test_half_may_go_and_rejects_do_not_count(self) -> None:
        with compared(HALF, KNOWN, replace(ASKED, max_delete_rate=0.5)) as found:
            assert found.deleted == 100

    def test_1_is_off(self) -> None:
        with compared(HALF[:1], KNOWN, replace(ASKED, max_delete_rate=1.0)) as found:
            assert found.deleted == 149

    def test_a_few_may_always_go(self) -> None:
        known = {shard(0): Held(OURS, list(many(21)))}
        with compared(HALF[:1], known, replace(ASKED, max_delete_rate=0.0)) as found:
            assert found.deleted == 20

    def test_those_of_another_source_are_not_counted(self) -> None:
        known = {
            shard(0): Held(OURS, list(many(40))),
            shard(1): Held(OTHER, list(many(400, source=OTHER))),
        }
        with (
            pytest.raises(SettingsError, match="25 of the 40 "),
            compared(HALF[:15], known, replace(ASKED, max_delete_rate=0.5)),
        ):
            pass
