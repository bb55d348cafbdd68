"""Broken and malicious files: each gets an image or a reason, and does nobody else any harm."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from bench import damage, hostile
from bench.hostile import Report, Trial
from clipcap import inspection, pixels
from clipcap.errors import REASONS
from clipcap.workers import WorkerSettings
from tests import strangers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits of memory")

HOSTILE = Path(__file__).parents[3] / "shared" / "data" / "hostile"
SETTINGS = WorkerSettings(processes=2, seconds=10, memory_bytes=2**29)
MODULES = [inspection.__name__, pixels.__name__]
CASES = 400


def tried(module: str, cases: Iterator[hostile.Case], settings: WorkerSettings) -> Report:
    """Return what became of the cases, with a whole picture among each few of them."""
    trial = Trial(module, settings, damage.pictures()["JPEG with EXIF and ICC"])
    trial.run(cases, 0)
    trial.close()
    return trial.report


@pytest.mark.parametrize("module", MODULES)
def test_damaged_files_do_no_harm(module: str) -> None:
    report = tried(module, hostile.damaged([], 7, CASES), SETTINGS)
    assert report.harm == []
    assert report.cases == CASES == report.accepted + sum(report.rejected.values())
    assert set(report.rejected) <= set(REASONS)
    assert report.accepted > CASES // 10
    assert report.rejected["decode_failed"] > CASES // 10


@pytest.mark.skipif(not HOSTILE.is_dir(), reason=f"needs the hostile files in {HOSTILE}")
@pytest.mark.parametrize("module", MODULES)
def test_files_that_once_broke_decoders_do_no_harm(module: str) -> None:
    """994 odd, broken and malicious files: past crashes, hangs and bombs of many decoders."""
    report = tried(module, hostile.files_below(HOSTILE / "files"), SETTINGS)
    assert report.harm == []
    assert report.cases == 994
    assert set(report.rejected) <= set(REASONS)


@pytest.mark.skipif(not HOSTILE.is_dir(), reason=f"needs the hostile files in {HOSTILE}")
def test_the_usual_files_among_them_are_taken() -> None:
    with (HOSTILE / "manifest.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    usual = [
        row["file"]
        for row in rows
        if row["verdict"] == "ok" and row["magic"] in ("jpeg", "png", "webp") and row["width"]
        if min(int(row["width"]), int(row["height"])) >= 8
    ]
    assert len(usual) > 250
    cases = ((name, (HOSTILE / name).read_bytes()) for name in usual)
    report = tried(inspection.__name__, cases, SETTINGS)
    assert (report.accepted, report.harm) == (len(usual), [])


class TestCases:
    """Damage that everybody can make again."""

    def test_the_same_number_is_the_same_file(self) -> None:
        bases = list(damage.pictures().values())
        first = [damage.case(bases, 1, number) for number in range(300)]
        assert first == [damage.case(bases, 1, number) for number in range(300)]
        assert first != [damage.case(bases, 2, number) for number in range(300)]
        assert len(set(first)) > 290
        assert sum(data in bases for data in first) < 10

    def test_whole_ones_are_read_and_their_parts_are_all_of_them(self) -> None:
        for name, data in damage.pictures().items():
            assert b"".join(damage.chunks(data)) == data, name
        report = tried(inspection.__name__, iter(damage.pictures().items()), SETTINGS)
        assert (report.accepted, report.rejected) == (len(damage.pictures()), {})


class TestHarm:
    """The trial notices: without this, no news would be good news for ever."""

    HURRIED = WorkerSettings(processes=1, seconds=1, memory_bytes=2**28)

    @pytest.mark.parametrize(
        ("harm", "sentence"),
        [(b"bug", "bad: A worker process failed"), (b"neighbour", "neighbour lost among bad")],
    )
    def test_it_is_seen(self, harm: bytes, sentence: str) -> None:
        cases = chain(*([("good", b"%d" % n)] * 7 for n in range(3)), [("bad", harm)])
        report = tried(strangers.__name__, cases, self.HURRIED)
        [found] = report.harm
        assert found.startswith(sentence)

    @pytest.mark.parametrize(
        ("harm", "kind", "reason"),
        [(b"crash", "crashed", "decode_failed"), (b"spin", "hung", "timeout"),
         (b"allocate", "oom", "oom")],
    )  # fmt: skip
    def test_what_workers_are_for_is_none(self, harm: bytes, kind: str, reason: str) -> None:
        cases = iter([("good", b"1"), ("bad", harm), ("good", b"2")])
        report = tried(strangers.__name__, cases, self.HURRIED)
        assert (report.harm, report.accepted, report.rejected) == ([], 2, {reason: 1})
        assert set(report.replaced) == {kind}
        assert 0 < report.worker_peak_mb < report.worker_allowed_mb
