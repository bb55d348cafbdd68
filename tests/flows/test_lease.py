"""`clipcap lease`, and runs that meet: one goes on, the other ends with 7 and says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clipcap import holders, layout, leases, storage
from clipcap.errors import LeaseError
from flows import nightly as module
from flows import shard as sharding
from flows._ledger import Ledger
from flows.settings import NightlySettings
from tests.command import clipcap
from tests.nights import Tiny


@pytest.fixture
def asked(drawings: Path, tmp_path: Path, tiny: Tiny) -> list[str]:
    """The words of a run that would work."""
    return [
        "run", str(drawings), f"{tmp_path}/out", "--model", tiny.encoder.model,
        "--captioner", tiny.captioner.captioner, "--label-set", tiny.label_set, "--no-server",
    ]  # fmt: skip


def settings(tiny: Tiny) -> NightlySettings:
    night = NightlySettings(embed=tiny.encoder, caption=tiny.captioner)
    label = night.label.model_copy(update={"label_sets": (tiny.label_set,)})
    return night.model_copy(update={"label": label})


def test_a_second_run_ends_with_7_in_one_block(asked: list[str], tmp_path: Path) -> None:
    out = storage.canonical(f"{tmp_path}/out")
    with leases.held(out, what="nightly small-fox", run_id="20261121T013000Z-abc"):
        refused = clipcap(*asked)
        shown = clipcap("lease", out)
        told = json.loads(clipcap("lease", out, "--json").out)
    assert refused.code == 7
    for part in ("nightly small-fox", "20261121T013000Z-abc", str(os.getpid()), "--release"):
        assert part in refused.err
    assert "Traceback" not in refused.err
    assert storage.listed(f"{out}/runs") == []
    assert shown.out.startswith("Held by nightly small-fox")
    assert "Last sign of life" in shown.out
    assert (told["number"], told["held"], told["pid"]) == (1, True, os.getpid())
    assert "token" not in told
    assert clipcap(*asked).code == 0
    assert clipcap("lease", out).out.startswith("Nobody holds it. The last one was nightly")


def test_the_command_ends_the_lease_of_a_machine_that_is_gone(tmp_path: Path) -> None:
    out = storage.canonical(f"{tmp_path}/out")
    assert clipcap("lease", out).out == "Nobody holds it, and nobody ever did.\n"
    gone = holders.myself("nightly", "r").model_copy(update={"host": "far", "life": "x:y/1/1"})
    storage.write(layout.lease(out, 3), holders.written(gone))
    assert clipcap("lease", out).out.startswith("Held by nightly (run r")
    assert clipcap("lease", out, "--release").out.startswith("Ended: nightly")
    assert clipcap("lease", out, "--release").out == "Nobody holds it.\n"
    with leases.held(out, what="test", run_id="1") as lease:
        assert lease.number == 5
    storage.write(layout.lease(out, 9), b"from the future")
    assert "cannot read" in clipcap("lease", out).out
    assert clipcap("lease", out, "--release").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_gives_its_lease_back(
    number: signal.Signals, asked: list[str], tmp_path: Path
) -> None:
    out = storage.canonical(f"{tmp_path}/out")
    with subprocess.Popen(
        [sys.executable, "-m", "clipcap", *asked],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until = time.monotonic() + 60
        while holders.newest(out) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else 130)
    found = holders.newest(out)
    assert found is not None
    assert found.holder is not None
    assert found.holder.released
    assert clipcap(*asked).code == 0


def test_a_run_that_lost_its_lease_stops_before_it_publishes(
    drawings: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = storage.canonical(f"{tmp_path}/out")
    quick = leases.Times(beat_s=0.05, quiet_s=30, watch_s=30)
    real = leases.held
    monkeypatch.setattr(leases, "held", lambda *args, **how: real(*args, times=quick, **how))

    def take_in(ledger: Ledger, *args: object, **how: object) -> None:
        sharding.take_in(ledger, *args, **how)  # type: ignore[arg-type]
        assert leases.release(out) is not None
        time.sleep(0.5)

    monkeypatch.setattr(module, "take_in", take_in)
    with pytest.raises(LeaseError, match="no longer holds"):
        module.nightly.fn(str(drawings), out, settings(tiny))
    assert storage.info(layout.success(out)) is None
    assert len(storage.listed(f"{out}/runs")) == 1  # the run says that it failed
    monkeypatch.undo()
    module.nightly.fn(str(drawings), out, settings(tiny))
    assert storage.info(layout.success(out)) is not None


def test_a_finished_night_writes_no_more_than_its_record_and_its_lease(
    drawings: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = storage.canonical(f"{tmp_path}/out")
    module.nightly.fn(str(drawings), out, settings(tiny))
    written: list[str] = []
    for name in ("write", "create", "delete"):
        monkeypatch.setattr(storage, name, partial(_told, getattr(storage, name), written, name))
    module.nightly.fn(str(drawings), out, settings(tiny))
    of_lease = [one for one in written if one.endswith("_lease")]
    assert of_lease == ["create _lease", "create _lease", "delete _lease", "write _lease"]
    assert not {"embeddings", "captions", "labels", "manifest", "shards", "rejects"} & {
        one.split()[1] for one in written
    }


def _told(real: Callable[..., Any], told: list[str], name: str, url: str, *rest: Any) -> Any:  # noqa: ANN401
    told.append(f"{name} {url.rpartition('/out/')[2].partition('/')[0]}")
    return real(url, *rest)


def test_delta_by_option_and_refused_where_it_cannot_be(
    asked: list[str], tmp_path: Path, drawings: Path, tiny: Tiny
) -> None:
    pytest.importorskip("deltalake")
    assert clipcap(*asked, "--table-format", "delta").code == 0
    assert (tmp_path / "out" / "captions" / "_delta_log" / f"{0:020d}.json").is_file()
    words = [word.replace(f"{tmp_path}/out", "memory://e/out") for word in asked]
    refused = clipcap(*words, "--table-format", "delta")
    assert refused.code == 2
    assert "Delta tables lie on" in refused.err
