"""What a night costs on paper is what the calculator says, and the calculator sums right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.capacity import Rates, rows, table, two
from tests.docs.test_docs import ROOT

USUAL = Rates()


def test_the_page_has_what_the_calculator_says() -> None:
    """By hand it had 2,008 task runs for ten billion images, which are a thousand more."""
    page = (ROOT / "docs" / "operations.md").read_text()
    assert "\n".join(table([1e6, 1e8, 1e10], USUAL)) in page


def test_task_runs_are_about_two_thousand_for_ten_million_images_of_any_size() -> None:
    for image_bytes in (20_000, 200_000, 2_000_000):
        found = rows(1e7, replace(USUAL, image_bytes=image_bytes))
        tasks = int(found["task runs, Prefect's database"].partition(", ")[0].replace(",", ""))
        assert tasks <= 2_008


def test_twice_the_machine_takes_half_the_time_and_costs_the_same() -> None:
    one, two_ = (rows(1e8, replace(USUAL, cpus=cpus)) for cpus in (10, 20))
    hours = [float(one["hours on 10 CPUs"]), float(two_["hours on 20 CPUs"])]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.05)
    assert one["dollars of CPU"] == two_["dollars of CPU"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.0049, "0.0049"), (3.64, "3.6"), (99.6, "100"), (1_234_567, "1,200,000")],
)
def test_a_number_is_said_with_two_digits(value: float, said: str) -> None:
    assert two(value) == said
