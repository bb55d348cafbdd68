"""A folder and a way to hang in, a run that hangs so out: it ends only if its watchdog ends it.

CLIPCAP_WATCHDOG_MINUTES=0.05 python -m tests.hung sleep|native|steps|waits OUT
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from functools import partial

from clipcap import alive, leases
from flows import _watchdog
from flows._ledger import Ledger

LONG_S = 60
SHORT_S = 5.0


def main(how: str, out: str) -> None:
    """Begin a run, and hang."""
    _watchdog.LAST_WORDS_S = 3.0  # type: ignore[misc]
    leases.held = partial(leases.held, times=leases.Times(beat_s=0.1))  # no step of the run's
    with Ledger("embed", out, {}, logical_date=None) as ledger:
        ledger.confirm()
        with ledger.stage("embed"):
            hang(how)


def hang(how: str) -> None:
    """Hang in Python, in native code that holds the interpreter, or seem to hang."""
    if how == "sleep":
        threading.Event().wait(LONG_S)
    elif how == "native":
        ctypes.PyDLL(None).sleep(LONG_S)  # unlike CDLL, keeps the interpreter to itself
    elif how == "steps":
        until = time.monotonic() + SHORT_S
        while time.monotonic() < until:
            alive.beat()
            time.sleep(0.05)
    elif how == "waits":
        with alive.waiting():
            time.sleep(SHORT_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
