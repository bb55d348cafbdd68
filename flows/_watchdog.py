"""A run that takes no step any more in; where it stands, its row and the process's end out.

Heartbeats of a run come from a thread of their own and go on while the work hangs. Here silence
ends the process, at once and without cleaning up, so that the worker reports the run as Crashed
and the next one goes on from what is committed. A thread of Python watches first: it logs, and
writes the run's row. Native code that never gives the interpreter back keeps that thread from
running; then `faulthandler`, whose thread needs no interpreter, ends the process a little later.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import copy_context
from typing import IO, Final, Self

from prefect.context import FlowRunContext
from prefect.logging.handlers import APILogHandler

from clipcap import alive
from clipcap.errors import SettingsError, StalledError

VARIABLE: Final = "CLIPCAP_WATCHDOG_MINUTES"
DEFAULT_MINUTES: Final = 60.0
LAST_WORDS_S: Final = 30.0
"""What the row and the log lines may take: a store that hangs may be why they are written."""
_LOOKS: Final = 20
_MOST_LOOK_S: Final = 15.0
_SHOWN: Final = 12  # calls of each thread in the log; all of them go to standard error

log = logging.getLogger("clipcap.flows")


def limit_s() -> float | None:
    """Return how long a run may be silent, in seconds; None where nothing watches.

    A run of a deployment has a process of its own and is watched unless the variable says 0. Other
    runs share somebody's process, and are watched only where the variable is set.

    Raises:
        SettingsError: the variable is no number of minutes.
    """
    written = os.environ.get(VARIABLE)
    if written is None:
        return DEFAULT_MINUTES * 60 if _is_deployed() else None
    try:
        minutes = float(written)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise SettingsError(
            f"{VARIABLE} must be a number of minutes, or 0 to watch nothing, but is '{written}'."
        )
    return minutes * 60 or None


def _is_deployed() -> bool:
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


class Watchdog:
    """Watches while the block runs; `last_words` gets the error before the process ends."""

    def __init__(self, last_words: Callable[[StalledError], object]) -> None:
        self._last_words = last_words
        self._limit_s = limit_s()
        self._closed = threading.Event()
        self._arming = threading.Lock()
        self._stderr: IO[str] | None = None
        self._context = copy_context()  # whose flow run it is: Prefect takes no line without

    def __enter__(self) -> Self:
        if self._limit_s is not None:
            alive.beat()
            # A copy, of the real one: who runs the flow may have put something else in its place.
            self._stderr = os.fdopen(os.dup(2), "w")
            self._arm(self._limit_s, self._stderr)
            watch = threading.Thread(
                target=self._watch, args=(self._limit_s, self._stderr), daemon=True
            )
            watch.name = "watchdog"
            watch.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._closed.set()
        with self._arming:
            if self._stderr is not None:
                faulthandler.cancel_dump_traceback_later()
                self._stderr.close()

    def _arm(self, limit_s: float, stderr: IO[str]) -> None:
        """Let native code that holds the interpreter be ended, too, after what is left and more."""
        with self._arming:
            if not self._closed.is_set():
                left = max(limit_s - alive.silent_s(), 0.0) + 2 * LAST_WORDS_S
                faulthandler.dump_traceback_later(left, exit=True, file=stderr)

    def _watch(self, limit_s: float, stderr: IO[str]) -> None:
        look_s = min(limit_s / _LOOKS, _MOST_LOOK_S)
        while not self._closed.wait(look_s):
            if alive.silent_s() > limit_s:
                self._end(limit_s)
            self._arm(limit_s, stderr)

    def _end(self, limit_s: float) -> None:
        """Say everything that can be said in a bounded time, and end the process."""
        minutes = f"{limit_s / 60:g}"
        error = StalledError(
            f"Nothing moved for {minutes} minutes: no request, batch or step. The process ends; "
            "what is committed stays, and the next run goes on. Where its threads stood is in the "
            f"log. If single steps do take that long here, set {VARIABLE} higher."
        )
        speaker = threading.Thread(target=self._context.run, args=(self._speak, error), daemon=True)
        deadline = time.monotonic() + LAST_WORDS_S
        speaker.start()
        faulthandler.dump_traceback(file=2, all_threads=True)
        speaker.join(max(deadline - time.monotonic(), 0.0))
        os._exit(StalledError.exit_code)

    def _speak(self, error: StalledError) -> None:
        log.error("%s\n%s", error, stacks())
        sender = threading.Thread(target=APILogHandler().flush, daemon=True)
        sender.start()
        self._last_words(error)
        sender.join(LAST_WORDS_S / 2)


def stacks() -> str:
    """Return where every thread of this process stands, innermost calls last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = []
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            calls = "".join(traceback.format_stack(frame)[-_SHOWN:])
            told.append(f"thread {names.get(ident, ident)}:\n{calls}")
    return "\n".join(told)
