"""A source, an output and settings in; what kills at many points left different, as JSON, out.

    python -m tests.killed SOURCE OUT SETTINGS.json POINTS

Runs as a process of its own: it imports everything, does no work itself, and forks a child for
each night. A child ends itself with SIGKILL before or after its n-th write or delete; nothing in
the library can catch that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flows.nightly
from clipcap import inspection, storage
from clipcap.feed import PIXELS
from flows.settings import NightlySettings
from tests.forks import forked, import_here, workers_are_forked
from tests.tables import differences

CHANGES = ("write", "delete")
"""Everything that changes an output goes through these two functions."""


def main(source: str, out: str, settings: NightlySettings, points: int) -> dict[str, Any]:
    """Kill a night at `points` places, run it again, compare with one that was not killed."""
    workers_are_forked(inspection.__name__, PIXELS)
    warm(night(source, f"{out}/warm", settings))  # else it may last so long that a lease beats
    whole = f"{out}/whole"
    changes = _count(night(source, whole, settings))
    found: list[str] = []
    for n in range(points):
        at = 1 + n * (changes - 1) // max(points - 1, 1)
        target, where = f"{out}/killed-{n}", f"{'after' if n % 2 else 'before'} {at} of {changes}"
        again = night(source, target, settings)
        code = forked(_dying(again, at, after=bool(n % 2)))
        if code != -signal.SIGKILL:
            found.append(f"{where}: the night was not killed, but ended with {code}")
        if forked(again):
            found.append(f"{where}: the rerun failed")
        found += [f"{where}: {one}" for one in told(partial(differences, target, whole))]
    return {"changes": changes, "points": points, "differences": found}


def night(source: str, out: str, settings: NightlySettings) -> Callable[[], object]:
    """Give a night that is not run yet."""
    return lambda: flows.nightly.nightly.fn(source, out, settings)


def _counted(change: Callable[[str, Callable[..., Any], Any], Any]) -> None:
    """Send every change of an output through `change(name, function, *arguments)`."""
    for name in CHANGES:
        real = getattr(storage, name)
        setattr(storage, name, lambda *args, name=name, real=real: change(name, real, *args))


def told(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Return what `work` gives in a child: this process opens no store, so that forks stay safe."""
    with tempfile.NamedTemporaryFile() as told:
        if forked(lambda: Path(told.name).write_text(json.dumps(work()))):
            sys.exit("a night, or a look at its tables, failed that nobody killed")
        return json.loads(Path(told.name).read_text())


def warm(work: Callable[[], object]) -> None:
    """Import in this process what a night imports as it goes: others need not, each again."""

    def imported() -> list[str]:
        before = set(sys.modules)
        work()
        return sorted(set(sys.modules) - before)

    import_here(told(imported))


def _count(work: Callable[[], object]) -> int:
    """Return how many changes a whole night makes."""
    made: list[str] = []

    def change(name: str, real: Callable[..., Any], *args: Any) -> None:  # noqa: ANN401
        real(*args)
        made.append(name)

    def counted() -> int:
        _counted(change)
        work()
        return len(made)

    return int(told(counted))


def _dying(work: Callable[[], object], at: int, *, after: bool) -> Callable[[], None]:
    left = [at]

    def change(_name: str, real: Callable[..., Any], *args: Any) -> None:  # noqa: ANN401
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying() -> None:
        _counted(change)
        work()

    return dying


if __name__ == "__main__":
    given = NightlySettings.model_validate_json(Path(sys.argv[3]).read_text())
    json.dump(main(sys.argv[1], sys.argv[2], given, int(sys.argv[4])), sys.stdout, indent=1)
