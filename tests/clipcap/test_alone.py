"""What is done outside of a night: alone to its end, else untold; Delta logs follow it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from clipcap import delta, leases, snapshots, storage
from clipcap.alone import alone
from clipcap.errors import LeaseError, StorageError
from clipcap.layout import Run
from clipcap.leases import Times

QUICK = Times(beat_s=0.02, quiet_s=30, watch_s=30)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run over a place that is not empty; its lease is looked at all the time."""
    monkeypatch.setattr(leases, "held", partial(leases.held, times=QUICK))
    (tmp_path / "README.md").write_text("mine")
    return Run("run-1", storage.canonical(str(tmp_path)), "2026-11-20")


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call that brings Delta logs to what is there."""
    calls: list[str] = []

    def follow(_out: str, *, run_id: str) -> int:
        calls.append(run_id)
        return 0

    monkeypatch.setattr(delta, "follow", follow)
    return calls


def lose(run: Run) -> None:
    """Let another one take the lease over, and this one see it."""
    assert leases.release(run.out) is not None
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            leases.require(run.out)
        except LeaseError:
            return
        time.sleep(0.01)
    pytest.fail("the loss was not seen")


def test_whoever_lost_the_lease_tells_nobody(run: Run, followed: list[str]) -> None:
    with pytest.raises(LeaseError, match="no longer holds"), alone(run, "test"):
        lose(run)
    assert followed == []

    def tell() -> None:
        lose(run)
        snapshots.publish(run, [])

    with pytest.raises(LeaseError, match="no longer holds"), alone(run, "test"):
        tell()
    assert storage.listed(f"{run.out}/_manifests") == []
    leases.require(run.out)  # nothing is held any more
    with alone(run, "test"):
        snapshots.publish(run, [])
    assert followed == ["run-1"]


def test_delta_follows_what_an_error_left_behind(
    run: Run, followed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyError), alone(run, "test"):
        raise KeyError
    assert followed == ["run-1"]

    def fails(_out: str, *, run_id: str) -> int:
        raise StorageError(run_id)

    monkeypatch.setattr(delta, "follow", fails)
    with pytest.raises(KeyError, match="first"), alone(run, "test"):
        raise KeyError("first")
    with pytest.raises(StorageError), alone(run, "test"):
        pass
