"""Leases: one holds at most, the dead are followed, the living never, whatever clocks say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clipcap import holders, layout, leases, processes, storage
from clipcap.errors import LeaseError, TransientStorageError
from clipcap.holders import Holder
from tests.racing import TIMES

ROOT = Path(__file__).parents[2]
SKEWS = [timedelta(0), timedelta(hours=-3), timedelta(hours=3), timedelta(seconds=-20)]


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an output on this disk, and in a bucket."""
    if request.param == "local":
        return storage.canonical(str(tmp_path / "out"))
    return f"{request.getfixturevalue('bucket')}/out"


@contextmanager
def racing(out: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process of `tests.racing`."""
    command = [sys.executable, "-m", "tests.racing", out, str(folder), *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def holding(out: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lease until it is killed."""
    with racing(out, folder, "hold") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def held(out: str, *, patient: bool = False) -> Any:  # noqa: ANN401 - a context
    return leases.held(out, what="test", run_id="run", patient=patient, times=TIMES)


def foreign(**changes: object) -> Holder:
    """Return a holder on another machine."""
    mine = holders.myself("nightly big-owl", "20261121T013000Z-abc")
    return mine.model_copy(update={"host": "far", "life": "boot:pid/1/2", **changes})


def left(out: str, number: int = 1, **changes: object) -> None:
    """Leave a lease as a run of another machine would."""
    storage.write(layout.lease(out, number), holders.written(foreign(**changes)))


def numbers(out: str) -> list[int]:
    return sorted(holders.numbers(out))


def test_a_lease_is_taken_shown_and_given_back(out: str) -> None:
    assert holders.newest(out) is None
    with held(out) as lease:
        found = holders.newest(out)
        assert found is not None
        assert found.holder is not None
        assert (lease.number, found.number, found.holder.run_id) == (1, 1, "run")
        assert not found.holder.is_gone
        lease.require()
    with held(out) as lease:
        assert lease.number == 2
        assert numbers(out) == [2]
    found = holders.newest(out)
    assert found is not None
    assert found.holder is not None
    assert found.holder.released


def test_a_second_run_is_told_who_holds_and_what_to_type(out: str) -> None:
    with held(out), pytest.raises(LeaseError) as refused, held(out):
        pass
    said = str(refused.value)
    for part in (
        f"process {os.getpid()}",
        "run run",
        "last sign of life",
        f"lease {out} --release",
    ):
        assert part in said
    assert LeaseError.exit_code == 7


def test_an_error_and_an_interruption_give_the_lease_back(out: str) -> None:
    for kind in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), held(out):
            raise kind
        found = holders.newest(out)
        assert found is not None
        assert found.holder is not None
        assert found.holder.released


def test_of_processes_that_race_one_holds_at_most(out: str, tmp_path: Path) -> None:
    rounds = 60 if out.startswith("file") else 25
    with (
        racing(out, tmp_path, str(rounds)) as one,
        racing(out, tmp_path, str(rounds)) as two,
        racing(out, tmp_path, str(rounds)) as three,
    ):
        told = [json.loads(process.communicate(timeout=120)[0]) for process in (one, two, three)]
    assert [found["together"] for found in told] == [0, 0, 0]
    assert all(found["held"] for found in told)
    assert len(numbers(out)) == 1


def test_threads_that_race_are_kept_apart(tmp_path: Path) -> None:
    out, inside = str(tmp_path / "out"), []

    def take() -> None:
        for _ in range(20):
            try:
                with held(out):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
            except LeaseError:
                pass

    most: list[int] = []
    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_killed_process_of_this_machine_is_followed_at_once(out: str, tmp_path: Path) -> None:
    with holding(out, tmp_path) as process:
        with pytest.raises(LeaseError), held(out):
            pass
        process.kill()  # not waited for yet: its parent has not looked
        began = time.monotonic()
        assert _taken(out) == 2
        assert time.monotonic() - began < 1.4


@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_a_dead_machine_is_followed_after_some_time(skew: timedelta, tmp_path: Path) -> None:
    out = storage.canonical(str(tmp_path))
    left(out, seen=datetime.now(UTC) + skew)
    began = time.monotonic()
    with held(out, patient=True) as lease:
        assert lease.number == 2
    assert time.monotonic() - began < TIMES.quiet_s + 1


@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_a_living_machine_is_never_followed_whatever_its_clock_says(
    skew: timedelta, patient: bool, tmp_path: Path
) -> None:
    out = storage.canonical(str(tmp_path))
    done = threading.Event()

    def live() -> None:
        beats = 0
        while not done.wait(TIMES.beat_s):
            beats += 1
            left(out, seen=datetime.now(UTC) + skew, beats=beats)

    left(out, seen=datetime.now(UTC) + skew)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(LeaseError, match="on far"), held(out, patient=patient):
            pass
    finally:
        done.set()
        thread.join()
    assert numbers(out) == [1]


def test_a_fresh_lease_of_another_machine_is_refused_at_once(out: str) -> None:
    left(out)
    began = time.monotonic()
    with pytest.raises(LeaseError, match="nightly big-owl"), held(out):
        pass
    assert time.monotonic() - began < 1


def test_a_frozen_holder_is_followed_and_stops_when_it_wakes(out: str, tmp_path: Path) -> None:
    with holding(out, tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with held(out, patient=True) as lease:
            assert lease.number == 2
            process.send_signal(signal.SIGCONT)
            time.sleep(3 * TIMES.beat_s)
            lease.require()
            found = holders.newest(out)
            assert found is not None
            assert found.number == 2


def test_a_holder_that_lost_its_lease_knows_it_and_stops(
    out: str, caplog: pytest.LogCaptureFixture
) -> None:
    with held(out) as lease:
        left(out, 2)
        _until(lambda: "Lost the lease" in caplog.text)
        with pytest.raises(LeaseError, match=r"no longer holds .* big-owl .* Run again"):
            lease.require()
    found = holders.newest(out)
    assert found is not None
    assert found.holder is not None
    assert (found.number, found.holder.host) == (2, "far")


def test_a_holder_whose_lease_was_removed_stops(out: str) -> None:
    with held(out) as lease:
        storage.delete(layout.lease(out, 1))
        time.sleep(3 * TIMES.beat_s)
        with pytest.raises(LeaseError, match="was removed"):
            lease.require()
    assert numbers(out) == []


def test_a_thread_that_died_is_noticed_where_the_run_can_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.Lease, "_keep", lambda _self: None)
    out = storage.canonical(str(tmp_path))
    with held(out) as lease:
        left(out, 2)
        lease.require()  # it was looked a moment ago
        time.sleep(TIMES.quiet_s + 0.1)
        with pytest.raises(LeaseError, match="took over"):
            lease.require()


def test_a_store_that_is_away_for_a_while_ends_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = storage.canonical(str(tmp_path)), storage.write
    with held(out) as lease:
        monkeypatch.setattr(storage, "write", _away)
        time.sleep(2 * TIMES.beat_s)
        lease.require()
        monkeypatch.setattr(storage, "write", real)
        time.sleep(2 * TIMES.beat_s)
        found = holders.newest(out)
        assert found is not None
        assert found.holder is not None
        assert found.holder.beats > 0


def test_a_lease_whose_giving_back_fails_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with held(str(tmp_path)):
        monkeypatch.setattr(storage, "write", _away)
    assert "was not given back" in caplog.text
    monkeypatch.undo()
    with held(str(tmp_path)) as lease:
        assert lease.number == 2


def test_an_answer_that_was_lost_is_found_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = storage.canonical(str(tmp_path)), storage.create
    lost = [True]

    def create(url: str, data: bytes) -> bool:
        found = real(url, data)
        if lost and lost.pop():
            raise TransientStorageError("the answer was lost")
        return found

    monkeypatch.setattr(storage, "create", create)
    me = holders.myself("test", "run")
    with pytest.raises(TransientStorageError):
        leases.acquire(out, me, patient=False, times=TIMES)
    lease = leases.acquire(out, me, patient=False, times=TIMES)
    assert lease.number == 1
    lease.release()


@pytest.mark.parametrize("data", [b"", b"\x00garbage", b"[]", b'{"format": 2, "beat": "x"}'])
def test_what_cannot_be_read_is_respected_until_it_is_quiet(data: bytes, tmp_path: Path) -> None:
    out = storage.canonical(str(tmp_path))
    storage.write(layout.lease(out, 7), data)
    began = time.monotonic()
    with held(out) as lease:
        assert lease.number == 8
        assert time.monotonic() - began >= TIMES.quiet_s
    assert numbers(out) == [8]


def test_names_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    out = storage.canonical(str(tmp_path))
    storage.write(f"{layout.leases(out)}/README.txt", b"hands off")
    with held(out) as lease:
        assert lease.number == 1
    assert storage.info(f"{layout.leases(out)}/README.txt") is not None


def test_a_stale_first_writer_finds_that_higher_ones_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked when 1 was free; 1 to 3 came and went, and 3 is held, before it writes 2."""
    out, real = storage.canonical(str(tmp_path)), holders.newest
    left(out, 1, released=True)
    stale = real(out)
    storage.delete(layout.lease(out, 1))
    left(out, 3)
    looks = [stale]
    monkeypatch.setattr(holders, "newest", lambda url: looks.pop() if looks else real(url))
    with pytest.raises(LeaseError, match="on far"), held(out):
        pass
    assert numbers(out) == [3]


def test_release_by_hand_ends_a_lease_and_its_holder(out: str) -> None:
    assert leases.release(out) is None
    with held(out) as lease:
        ended = leases.release(out)
        assert ended is not None
        assert ended.number == 1
        time.sleep(3 * TIMES.beat_s)
        with pytest.raises(LeaseError, match="--release"):
            lease.require()
    assert leases.release(out) is None
    with held(out) as lease:
        assert lease.number == 3


def test_the_switch_turns_leases_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leases.SWITCH, "off")
    with held(str(tmp_path)), held(str(tmp_path)) as lease:
        assert lease.number == 0
    assert list(tmp_path.iterdir()) == []


def test_a_life_is_over_when_its_process_is() -> None:
    life = processes.life()
    machine, pid, began = life.rsplit("/", 2)
    assert int(pid) == os.getpid()
    assert not processes.is_over(life)
    assert processes.is_over(f"{machine}/{pid}/{int(began) + 1}")  # the number went to another
    assert processes.is_over(f"{machine}/4194305/1")
    for other in ("", "elsewhere/1/1", f"{machine}/../1", "a/b", f"{machine}//"):
        assert not processes.is_over(other)


def _taken(out: str) -> int:
    """Take the lease as soon as nobody holds it, and return its number."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with suppress(LeaseError), held(out) as lease:
            return int(lease.number)
        time.sleep(0.01)
    return 0


def _away(*_args: object) -> None:
    raise TransientStorageError("the store is away")


def _until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.02)
