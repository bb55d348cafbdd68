"""Which batch is taken, when that is measured, and what is kept of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from clipcap import hardware, tuning
from clipcap.encoders import Encoder

MANY = 10**6


@dataclass
class Timed:
    """An encoder that needs, by a clock of its own, some seconds for a batch."""

    seconds: Callable[[int], float]
    model_id: str = "timed"
    sha256: str = "0" * 64
    precision: str = "fp32"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    preprocess_json: str = '{"size": [4, 6]}'
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    now: float = 0.0

    def encode_pixels(self, pixels_BHWC: Tensor) -> Callable[[], Tensor]:
        """Let the time pass at the wait."""
        assert pixels_BHWC.dtype == torch.uint8
        self.shapes.append(tuple(pixels_BHWC.shape))

        def wait() -> Tensor:
            self.now += self.seconds(len(pixels_BHWC))
            return torch.zeros(len(pixels_BHWC), 2)

        return wait


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clipcap" / "batch_size.json"


@pytest.fixture
def size_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the batch for an encoder, whose clock is the one that tuning reads."""

    def found(timed: Timed, wanted: int | None = None, images: int = MANY) -> int:
        monkeypatch.setattr(time, "perf_counter", lambda: timed.now)
        return tuning.batch_size(cast("Encoder", timed), wanted, images)

    return found


def even(size: int) -> float:
    """A device that is as fast with any batch."""
    return size / 100


def growing(size: int) -> float:
    """A device with a start that costs as much as 16 images."""
    return (16 + size) / 100


def test_what_a_person_sets_is_taken(size_of: Callable[..., int], cache: Path) -> None:
    timed = Timed(growing)
    assert size_of(timed, 5) == 5
    assert (timed.shapes, cache.exists()) == ([], False)


def test_a_kept_result_is_no_more_than_a_setting(size_of: Callable[..., int]) -> None:
    timed = Timed(growing)
    assert size_of(timed) == 128
    assert size_of(timed, 5) == 5


@pytest.mark.parametrize(("images", "expected"), [(0, 64), (62_000 - 1, 64), (62_000, 8)])
def test_it_is_measured_only_where_that_is_two_percent_of_the_run(
    size_of: Callable[..., int], images: int, expected: int
) -> None:
    timed = Timed(even)
    assert size_of(timed, images=images) == expected
    assert (not timed.shapes) == (expected == 64)
    assert sum(shape[0] for shape in timed.shapes) <= 0.02 * images


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (even, 8),
        (growing, 128),
        (lambda size: growing(min(size, 32)) + max(size - 32, 0) / 20, 32),
        (lambda size: 1 if size == 16 else even(size), 8),
    ],
)
def test_the_smallest_of_the_fastest_is_taken(
    size_of: Callable[..., int], seconds: Callable[[int], float], expected: int
) -> None:
    assert size_of(Timed(seconds)) == expected


def test_one_slow_batch_ends_nothing(size_of: Callable[..., int]) -> None:
    """Another process had the CPU for a moment, while the best size was tried."""
    timed = Timed(growing)
    steady = timed.seconds

    def disturbed(size: int) -> float:
        return steady(size) * (50 if size == 128 and len(timed.shapes) % 5 == 3 else 1)

    timed.seconds = disturbed
    assert size_of(timed) == 128


def test_larger_batches_are_not_tried_where_they_do_not_pay(size_of: Callable[..., int]) -> None:
    timed = Timed(even)
    size_of(timed)
    assert {shape[0] for shape in timed.shapes} == {8, 16, 32}
    assert {shape[1:] for shape in timed.shapes} == {(4, 6, 3)}


def test_it_is_measured_once_for_each_model_format_and_machine(
    size_of: Callable[..., int], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def is_measured(**changes: Any) -> bool:  # noqa: ANN401
        timed = Timed(growing, **changes)
        size_of(timed)
        return bool(timed.shapes)

    assert [is_measured(), is_measured()] == [True, False]
    assert [is_measured(precision="bf16"), is_measured(sha256="1" * 64)] == [True, True]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert [is_measured(), is_measured()] == [True, False]
    monkeypatch.setattr(hardware, "name", lambda _: "another CPU")
    assert [is_measured(), is_measured()] == [True, False]
    assert set(json.loads(cache.read_text()).values()) == {128}


@pytest.mark.parametrize("nonsense", [0, -8, 7, 10**9, 8.5])
def test_a_kept_number_that_nobody_kept_is_measured_again(
    size_of: Callable[..., int], cache: Path, nonsense: float
) -> None:
    size_of(Timed(growing))
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), nonsense)))
    assert size_of(Timed(growing)) == 128


def test_a_kept_result_does_for_a_short_run(size_of: Callable[..., int]) -> None:
    size_of(Timed(even))
    timed = Timed(even)
    assert size_of(timed, images=3) == 8
    assert not timed.shapes
