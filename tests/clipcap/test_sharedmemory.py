"""Bytes that two processes see, and none that stay behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from clipcap import sharedmemory
from clipcap.sharedmemory import SharedMemory

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and memfd")


@pytest.fixture(params=["memory", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Both ways: Linux's, and the temporary file of other systems."""
    kind: str = request.param
    if kind == "file":
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elif sys.platform != "linux":
        pytest.skip("needs memfd")
    return kind


def in_another_process(code: str, *given: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom clipcap import sharedmemory\n{code}", *given],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.usefixtures("kind")
class TestMemory:
    """What is written here is read there, and the other way round."""

    def test_another_process_reads_it(self) -> None:
        with SharedMemory(10) as memory:
            memory.map[2:5] = b"abc"
            code = "sys.stdout.write(str(sharedmemory.part(sys.argv[1], 1, 5)))"
            assert in_another_process(code, memory.path) == str(b"\0abc\0")

    def test_another_process_writes_it(self) -> None:
        with SharedMemory(10) as memory:
            code = "sharedmemory.opened(sys.argv[1])[3] = 7"
            in_another_process(code, memory.path)
            assert bytes(memory.map) == bytes([0, 0, 0, 7, 0, 0, 0, 0, 0, 0])

    def test_writing_is_seen_in_the_map(self) -> None:
        with SharedMemory(10) as memory:
            seen = memory.map
            memory.write(b"xyz", 4)
            assert bytes(seen[3:8]) == b"\0xyz\0"

    def test_it_is_refilled_with_parts(self) -> None:
        with SharedMemory(0) as memory:
            for parts in ([b"abc", b"", b"de"], [b"x" * 5000, b"y"], [b"z"], []):
                places = memory.refilled(parts)
                assert [sharedmemory.part(*place) for place in places] == parts
                assert Path(memory.path).stat().st_size == max(sum(map(len, parts)), 1)

    def test_a_part_ends_where_the_file_does(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"0123456789")
        assert sharedmemory.part(str(tmp_path / "file"), 7, 100) == b"789"
        assert sharedmemory.part(str(tmp_path / "file"), 70, 1) == b""

    def test_none_is_as_good_as_one(self) -> None:
        with SharedMemory(0) as memory:
            assert len(memory.map) == 1

    def test_arrays_outlive_it(self) -> None:
        memory = SharedMemory(100)
        seen = np.frombuffer(memory.map, np.uint8)
        memory.write(b"\5" * 100)
        memory.close()
        assert seen.sum() == 500

    def test_it_is_gone_when_it_is_closed(self, kind: str, tmp_path: Path) -> None:
        memory = SharedMemory(10)
        assert Path(memory.path).exists()
        memory.close()
        memory.close()
        assert not list(tmp_path.iterdir())
        assert kind != "file" or not Path(memory.path).exists()
        with pytest.raises(ValueError, match="closed"):
            memory.map  # noqa: B018 - a property
        with pytest.raises(OSError, match="Bad file"):
            memory.write(b"x")

    @LINUX
    def test_nothing_stays_open(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def held() -> int:
            return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as the kernel has it

        before = held()
        for _ in range(3):
            with SharedMemory(10) as memory:
                memory.map[0] = 1
                sharedmemory.part(memory.path, 0, 1)
                sharedmemory.opened(memory.path)
        assert held() == before

        def full(_handle: int, _size: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "truncate", full)
        with pytest.raises(OSError, match="No space"):
            SharedMemory(10)
        assert held() == before
        assert not list(tmp_path.iterdir())


@LINUX
def test_on_linux_nobody_but_the_owner_keeps_it() -> None:
    """It has no name: whatever kills its process takes it along."""
    with SharedMemory(10) as memory:
        assert "memfd:clipcap" in str(Path(memory.path).readlink())
