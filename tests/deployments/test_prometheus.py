"""The rules for Prometheus ask for numbers that runs write, and count over all machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from clipcap.layout import Run
from clipcap.outcomes import Night
from flows._textfile import Textfile
from tests.deployments.files import FOLDER, README

(GROUP,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["groups"]
RULES = {one["alert"]: one["expr"] for one in GROUP["rules"]}
each = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.fixture
def written(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The labels of every number that a completed night writes, by its name."""
    night = Night(Run("r", "file:///out", "2026-11-20"), "nightly", "test", 0.0, "{}")
    Textfile(tmp_path, night).finish(night, None)
    return {
        sample.name: sample.labels
        for file in tmp_path.iterdir()
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }


@each
def test_a_rule_asks_for_numbers_that_a_night_writes(
    rule: str, written: dict[str, dict[str, str]]
) -> None:
    asked = re.findall(r"(clipcap_\w+)\{(\w+)=\"(\w+)\"\}", rule)
    assert len(asked) == rule.count("clipcap_")
    for name, label, value in asked:
        assert written[name][label] == value


@each
def test_a_rule_takes_the_newest_of_all_machines_for_each_output(
    rule: str, written: dict[str, dict[str, str]]
) -> None:
    """A machine that ran one night a month ago goes on showing it; one that is gone must, too.

    Prometheus forgets a number five minutes after its last scrape, unless it is asked for the past.
    """
    newest = re.findall(r"max by \(out\) \(last_over_time\(clipcap_\w+\{[^}]*\}\[30d\]\)\)", rule)
    assert len(newest) == rule.count("clipcap_") > 0
    assert all("out" in labels for labels in written.values())


def test_a_completed_night_is_no_failed_one(tmp_path: Path) -> None:
    """Both times are the same moment then: the second rule compares them."""
    night = Night(Run("r", "file:///out", "2026-11-20"), "nightly", "test", 0.0, "{}")
    Textfile(tmp_path, night).finish(night, None)
    text = "".join(file.read_text() for file in tmp_path.iterdir())
    ended = re.findall(
        r"^clipcap_last_run_(?:end|completed)_timestamp_seconds\S* (\S+)$", text, re.M
    )
    assert len(ended) == 2
    assert len(set(ended)) == 1


def test_the_readme_names_the_rules() -> None:
    assert "`prometheus.yaml`" in README
