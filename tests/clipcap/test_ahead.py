"""Results in order, many calls at a time, few waiting; and what is logged belongs to the caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from clipcap.ahead import mapped

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def test_results_come_in_the_order_of_the_items() -> None:
    def slow(n: int) -> int:
        time.sleep(0.02 if n % 2 else 0)
        return n * n

    assert list(mapped(slow, range(20), threads=4)) == [n * n for n in range(20)]
    assert list(mapped(slow, [], threads=4)) == []


def test_calls_run_beside_each_other() -> None:
    barrier = threading.Barrier(3, timeout=10)
    assert len(list(mapped(lambda _: barrier.wait(), range(6), threads=3))) == 6


def test_items_are_asked_for_only_as_far_as_there_are_threads() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            asked.append(n)
            yield n

    for done, _ in enumerate(mapped(str, items(), threads=3)):
        assert len(asked) <= done + 3


def test_an_error_is_raised_in_its_turn_and_nothing_more_is_begun() -> None:
    begun = []

    def fails(n: int) -> int:
        begun.append(n)
        if n == 2:
            raise ValueError("two")
        return n

    found = mapped(fails, range(100), threads=2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(found)
    assert len(begun) <= 4


def test_whoever_stops_asking_leaves_no_thread() -> None:
    before = threading.active_count()
    found = mapped(lambda _: time.sleep(0.01), range(100), threads=4)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_call_knows_the_context_it_was_asked_in() -> None:
    """Prefect knows by it which task a line of log belongs to."""
    token = WHO.set("a task")
    try:
        assert list(mapped(lambda _: WHO.get(), range(2), threads=2)) == ["a task"] * 2
    finally:
        WHO.reset(token)
