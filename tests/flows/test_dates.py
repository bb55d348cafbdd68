"""When a run is due and when it begins in, the date out under which its shards are filed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import _ledger

MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("begins", "dt"),
    [
        (timedelta(), "2026-03-02"),
        (timedelta(hours=30), "2026-03-02"),  # late: it keeps its date
        (timedelta(seconds=-0.3), "2026-03-02"),  # let go a little early, or by a clock behind
        (timedelta(minutes=-5), "2026-03-02"),
        (timedelta(hours=-20), "2026-03-01"),  # told to begin at once, long before it is due
    ],
)
def test_a_night_has_the_date_of_when_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: timedelta, dt: str
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            assert tz is UTC
            moment = MIDNIGHT + begins
            return cls.fromtimestamp(moment.timestamp(), tz)

    run = SimpleNamespace(scheduled_start_time=MIDNIGHT, id=None, name="")
    monkeypatch.setattr(_ledger, "flow_run", run)
    monkeypatch.setattr(_ledger, "datetime", Clock)
    assert _ledger.Ledger("nightly", str(tmp_path), {}, logical_date=None).run.dt == dt
