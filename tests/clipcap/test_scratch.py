"""The scratch folder: what goes in comes out, and nothing stays behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipcap import scratch
from clipcap.errors import SettingsError
from clipcap.scratch import ScratchSettings

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.list_(pa.string()))])


def batch(first: int, rows: int) -> pa.RecordBatch:
    numbers = range(first, first + rows)
    columns = [list(numbers), [f"x{n}" for n in numbers], [["y"] * (n % 3) for n in numbers]]
    return pa.record_batch(columns, schema=SCHEMA)


@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("rows", [5, 300])
def test_a_spool_gives_back_what_it_took_in(
    tmp_path: Path, size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "ROWS", rows)
    with scratch.opened(ScratchSettings(folder=str(tmp_path))) as place:
        spool = place.spool("some", SCHEMA)
        spool.extend(batch(at, min(size, 1_000 - at)) for at in range(0, 1_000, size))
        spool.close()
        whole = spool.read().read_all()
        assert whole.select(["a", "b", "c"]).equals(pa.Table.from_batches([batch(0, 1_000)]))
        assert whole["n"].to_pylist() == list(range(1_000))
        assert spool.rows == 1_000
        assert spool.read(["b"]).schema.names == ["b", "n"]
        places = np.array([0, 3, 4, 299, 300, 999], dtype=np.int64)
        taken = spool.take(places).read_all()
        assert taken["a"].to_pylist() == taken["n"].to_pylist() == places.tolist()
        assert spool.take(places[:0]).read_all().num_rows == 0


def test_an_empty_spool_is_read_as_empty(tmp_path: Path) -> None:
    with scratch.opened(ScratchSettings(folder=str(tmp_path))) as place:
        spool = place.spool("some", SCHEMA)
        spool.close()
        assert spool.read().read_all().num_rows == 0


def test_rows_come_as_they_are_found_while_others_are_asked_for(tmp_path: Path) -> None:
    with scratch.opened(ScratchSettings(folder=str(tmp_path))) as place:
        place.rows("CREATE TABLE t AS SELECT range AS n FROM range(300000)")
        seen = 0
        for found in place.batches("SELECT n FROM t WHERE n >= ? ORDER BY n", 10):
            seen += found.num_rows
            assert place.number("SELECT count(*) FROM t") == 300_000
        assert seen == 299_990


def test_a_memory_that_does_not_do_is_said_in_a_sentence(tmp_path: Path) -> None:
    settings = ScratchSettings(memory_bytes=2**27, folder=str(tmp_path))
    with (
        pytest.raises(SettingsError, match=r"did not fit into 0\.1 GB.*`scratch\.memory_bytes`"),
        scratch.opened(settings) as place,
    ):
        place.rows("SELECT list(range) FROM range(100000000)")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_a_sentence_and_another_error_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    settings = ScratchSettings(folder=str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(SettingsError, match=r"the disk of .*No space left"),
        scratch.opened(settings),
    ):
        raise full
    with pytest.raises(FileNotFoundError), scratch.opened(settings):
        raise FileNotFoundError("something else")


def test_what_killed_runs_left_goes_after_a_day_and_not_before(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("clipcap-scratch-a", "clipcap-scratch-b", "c"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "spool.arrow").write_bytes(b"half")
    yesterday = time.time() - 25 * 3_600
    for folder in (old, other):
        os.utime(folder, (yesterday, yesterday))
    with scratch.opened(ScratchSettings(folder=str(tmp_path))):
        assert not old.exists()
    assert sorted(tmp_path.iterdir()) == [other, new]


KEPT_ERROR = """
import sys
import pyarrow as pa
from clipcap import comparison, scratch
from clipcap.errors import SettingsError
from clipcap.scratch import ScratchSettings
try:
    with scratch.opened(ScratchSettings()) as place:
        place.rows("CREATE TABLE numbers AS SELECT 7 AS n")
        assert place.integers("FROM numbers").tolist() == [7]
        raise SettingsError("kept")
except SettingsError as error:
    sys.kept = error
"""


def test_an_error_that_somebody_keeps_keeps_no_database(tmp_path: Path) -> None:
    """Prefect keeps the error of a failed run; DuckDB then told of its leaks for forty lines."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT_ERROR],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
