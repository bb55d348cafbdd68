"""A failed test tells what the workers said who did its runs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

LAST = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of each log to the report: a worker that takes nothing says nothing elsewhere."""
    report = yield
    found = getattr(item, "funcargs", {})
    if report.failed:
        folders = {found[name] for name in ("deployed", "tmp_path") if name in found}
        for log in sorted(log for place in folders for log in Path(place).rglob("worker.log")):
            lines = log.read_text(errors="replace").splitlines()[-LAST:]
            report.sections.append((f"{log.parent.name}'s log", "\n".join(lines)))
    return report
