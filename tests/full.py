"""A source, an output and settings in; what full disks left different, as JSON, out.

    unshare --mount python -m tests.full SOURCE PLACE SETTINGS.json TRIALS

A disk of a few hundred kilobytes (tmpfs) is where the output lies in one trial, and what a night
keeps for itself (`TMPDIR`) in the next. It needs a mount namespace, which ends with the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from clipcap import inspection
from clipcap.errors import ClipcapError
from clipcap.feed import PIXELS
from flows.settings import NightlySettings
from tests.forks import forked, workers_are_forked
from tests.killed import night, told, warm
from tests.tables import differences

ROOM = 2**28  # bytes: more than a night needs
PAGE = 4096  # bytes
PAGES = 8  # what a night keeps for itself is more


def main(source: str, place: Path, settings: NightlySettings, trials: int) -> dict[str, Any]:
    """Let nights meet full disks, make room, run again, compare with one that had room."""
    workers_are_forked(inspection.__name__, PIXELS)
    warm(night(source, f"{place}/warm", settings))
    whole = place / "whole"
    if forked(night(source, str(whole), settings)):
        sys.exit("a night failed that had room")
    written = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    found: dict[str, Any] = {"differences": [], "refused": []}
    for n in range(2 * trials):
        small, target = place / f"small-{n}", place / f"out-{n}"
        size = written * (n // 2 + 1) // (trials + 1) if n % 2 else PAGE * (n // 2 * 3 % PAGES + 1)
        with disk(small, size):
            if n % 2:
                target = small / "out"
            again = night(source, str(target), settings)
            with_folder = again if n % 2 else partial(_kept_in, small, again)
            where = f"{'output' if n % 2 else 'scratch'} of {size} bytes"
            refused = told(partial(_refused, with_folder))
            found["refused"].append(f"{where}: {refused}")
            make_room(small)
            if forked(with_folder):
                found["differences"].append(f"{where}: the rerun failed")
            unlike = told(partial(differences, str(target), str(whole)))
            found["differences"] += [f"{where}: {one}" for one in unlike]
    return found


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """Give a disk with room for `size` bytes, rounded up to pages."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def make_room(folder: Path) -> None:
    """Make a disk larger, as one does who frees some."""
    subprocess.run(["mount", "-o", f"remount,size={ROOM}", folder], check=True)


def _kept_in(folder: Path, work: Callable[[], object]) -> None:
    """Do something whose temporary files lie in a folder."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    work()


def _refused(work: Callable[[], object]) -> str:
    """Return why a night ended early, or nothing; any other error than ours is one of this test."""
    try:
        work()
    except ClipcapError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    given = NightlySettings.model_validate_json(Path(sys.argv[3]).read_text())
    json.dump(main(sys.argv[1], Path(sys.argv[2]), given, int(sys.argv[4])), sys.stdout, indent=1)
