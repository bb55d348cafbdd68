"""The row of a run: what it says of the devices that models ran on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clipcap import records, storage
from clipcap.layout import Run, Shard
from clipcap.outcomes import Night, Outcome, StageName
from tests.tables import glob


def done(stage: StageName, device: str = "", model_s: float = 0.0, peak: int = 0) -> Outcome:
    """Return what a stage did on a device."""
    return Outcome(
        stage=stage,
        shard=Shard("2026-01-01", "a"),
        state="written",
        rows=1,
        url="file:///nowhere",
        fingerprint="",
        started_at=time.time(),
        duration_s=model_s,
        model_s=model_s,
        device=device,
        peak_gpu_bytes=peak,
    )


@pytest.mark.parametrize(
    ("outcomes", "device", "gpu_seconds", "peak_gpu_bytes"),
    [
        ([done("shard"), done("label")], None, None, None),
        ([done("embed", "cpu", 3.0), done("caption", "cpu", 2.0)], "cpu", None, None),
        ([done("embed", "cuda", 3.0, 7), done("caption", "cuda", 2.0, 5)], "cuda", 5.0, 7),
        ([done("embed", "cuda:1", 3.0, 7), done("caption", "cpu", 2.0)], "cpu, cuda:1", 3.0, 7),
    ],
)
def test_a_run_says_what_its_models_ran_on_and_how_long_on_a_gpu(
    tmp_path: Path,
    outcomes: list[Outcome],
    device: str | None,
    gpu_seconds: float | None,
    peak_gpu_bytes: int | None,
) -> None:
    run = Run("20260101T000000Z-abcdef", storage.canonical(str(tmp_path)), "2026-01-01")
    night = Night(run, "nightly", "test", time.time(), "{}", None, tuple(outcomes))

    records.write(night, state="Completed", seconds={})

    (row,) = glob(str(tmp_path), "runs").to_pylist()
    found = (row["device"], row["gpu_seconds"], row["peak_gpu_bytes"])
    assert found == (device, gpu_seconds, peak_gpu_bytes)
