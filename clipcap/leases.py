"""An output in, the right to work on it alone out, as long as the holder shows signs of life.

Each number is written only if there is none, and the highest holds. The next one is taken once it
is released, its process is known to be over, or nothing of it changed while somebody looked on:
clocks alone never end a lease. What is right never depends on one: two runs at once do work twice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from clipcap import alive, conditions, holders, layout, storage
from clipcap.errors import ClipcapError, LeaseError, StorageError
from clipcap.holders import Found, Holder

log = logging.getLogger(__name__)

SWITCH: Final = "CLIPCAP_LEASE"
"""An environment variable: with `off`, runs neither take nor heed leases."""
_ROUNDS: Final = 20  # of others who came first and were done at once
_AHEAD_S: Final = 5.0  # two good clocks differ by less
_JOIN_S: Final = 10.0
_HELD: Final[dict[str, Lease]] = {}  # by output, of this process


@dataclass(frozen=True, slots=True)
class Times:
    """How often a holder shows that it lives, and how long others look on before they take over."""

    beat_s: float = 20.0
    quiet_s: float = 90.0
    watch_s: float = 60.0
    """The same for a lease whose last sign of life is older than `quiet_s` by the clocks."""


@contextmanager
def held(
    out: str, *, what: str, run_id: str, patient: bool = False, times: Times = Times()
) -> Iterator[Lease]:
    """Hold the lease of an output, where its store can keep one; elsewhere say so in the log.

    Args:
        out: URL of the output.
        what: What is done, for people.
        run_id: Of the run that does it.
        patient: Look on for a while even where the holder seems to be alive by its clock.
        times: How long is waited for what.

    Raises:
        LeaseError: somebody else holds it.
        StorageError: the output cannot be written to.
    """
    out, me = storage.canonical(out), holders.myself(what, run_id)
    lease: Lease | None = None
    holders.OWN.add(me.token)
    try:
        lease = acquire(out, me, patient=patient, times=times)
        if lease.number:
            _HELD[out] = lease
        yield lease
    finally:
        if lease is not None and _HELD.get(out) is lease:
            del _HELD[out]
        if lease is not None:
            lease.release()
        else:
            _abandon(out, me)
        holders.OWN.discard(me.token)


def require(out: str) -> None:
    """Go on only if nobody took over the lease that this process has, if any, of an output.

    Called before readers are told, and where work can stop without loss.

    Args:
        out: the canonical URL of the output.

    Raises:
        LeaseError: somebody did.
    """
    lease = _HELD.get(out)
    if lease is not None:
        lease.require()


def release(out: str) -> Found | None:
    """End the lease of whoever holds it, by taking the next number and giving it back.

    A holder that lives after all sees that, and stops.

    Args:
        out: the canonical URL of the output.

    Returns:
        What was ended; None: nobody held it.
    """
    free = holders.myself("clipcap lease --release", "none").model_copy(update={"released": True})
    while (found := holders.newest(out)) and not (found.holder and found.holder.released):
        number = found.number + 1
        if storage.create(layout.lease(out, number), holders.written(free)):
            _remove_below(number, out, holders.numbers(out))
            return found
    return None


def acquire(out: str, me: Holder, *, patient: bool, times: Times) -> Lease:
    """Take the lease of an output; see `held`."""
    if os.environ.get(SWITCH) == "off":
        storage.require_writable(out)
        return Lease(out, 0, me, times)
    for _ in range(_ROUNDS):
        found = holders.newest(out)
        if found and found.holder and found.holder.token == me.token:
            return Lease(out, found.number, me, times)  # the answer to our write was lost
        if found and not (found.holder and found.holder.is_gone):
            if not _is_quiet(out, found, patient=patient, times=times):
                continue
            log.warning("%s shows no sign of life: its lease is taken over.", found)
        taken = _take(out, found.number + 1 if found else 1, me)
        if taken is not None:
            return Lease(out, taken, me, times)
    raise LeaseError(f"Many runs over {out} begin and end at this moment. Try again.")


def _take(out: str, number: int, me: Holder) -> int | None:
    """Try to be the first of a number: it, 0 where the store keeps no promise, None to try anew."""
    url = layout.lease(out, number)
    promise = conditions.first(url, holders.written(me))
    there = {} if promise in ("refuses", "lies") else holders.numbers(out)
    if max(there, default=0) < number:  # with "taken", but nobody is there, too
        return _without(out, url, lies=promise == "lies")
    if promise == "honours" and max(there) == number:
        _remove_below(number, out, there)
        return number
    if promise == "honours":  # others took and removed higher ones meanwhile: it never held
        storage.delete(url)
    return None


class Lease:
    """What a run holds while it works; of number 0 where the store cannot keep a lease."""

    def __init__(self, out: str, number: int, me: Holder, times: Times) -> None:
        """Begin to show signs of life; only `acquire` makes leases."""
        self.number = number
        self._out, self._me, self._times = out, me, times
        self._lost = ""
        self._looked = time.monotonic()
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._keep, name="lease", daemon=True)
        if number:
            self._beats.start()

    def require(self) -> None:
        """Go on only if nobody took over; called where a run can stop without loss.

        Raises:
            LeaseError: somebody did.
        """
        if self.number and time.monotonic() - self._looked > self._times.quiet_s:
            self._beat_if_possible()  # the thread that should have is stuck
        if self._lost:
            raise LeaseError(
                f"This run ({self._me.run_id}) no longer holds {self._out}: {self._lost} It "
                "stopped where nothing is lost; what it committed stays. Run again; what is done "
                "is not done twice."
            )

    def release(self) -> None:
        """Give the lease back; one that was lost is not touched."""
        if not self.number:
            return
        self._done.set()
        self._beats.join(_JOIN_S)
        try:
            if not self._lost:  # if lost just now: below a higher one, and removed with the next
                self._write(released=True)
        except StorageError as error:
            log.warning("The lease of %s was not given back, and runs out: %s", self._out, error)

    def _keep(self) -> None:
        alive.beside()
        while not self._done.wait(self._times.beat_s):
            self._beat_if_possible()

    def _beat_if_possible(self) -> None:
        try:
            self._beat()
        except ClipcapError as error:
            log.info("The lease of %s could not be renewed: %s", self._out, error)

    def _beat(self) -> None:
        is_highest = self._is_highest()
        self._looked = time.monotonic()
        if self._done.is_set():
            return
        if is_highest:
            self._write(released=False)
            if self._done.is_set():  # released while this was under way
                self._write(released=True)
            return
        found = holders.newest(self._out)
        self._lost = f"{found} took over." if found else "its lease was removed."
        log.warning("Lost the lease of %s: %s", self._out, self._lost)
        self._done.set()

    def _is_highest(self) -> bool:
        top = holders.highest(self._out)
        return top is not None and top[0] == self.number

    def _write(self, *, released: bool) -> None:
        news = {"beats": self._me.beats + 1, "seen": datetime.now(UTC), "released": released}
        self._me = self._me.model_copy(update=news)
        storage.write(layout.lease(self._out, self.number), holders.written(self._me))


def _is_quiet(out: str, found: Found, *, patient: bool, times: Times) -> bool:
    """Look on until a lease changes or has not changed for long; False: look at it anew.

    Raises:
        LeaseError: its holder is alive.
    """
    by_clock = found.quiet_s
    if -_AHEAD_S <= by_clock < times.quiet_s and not patient:
        raise _refusal(out, found, times)
    quiet_s = times.watch_s if by_clock >= times.quiet_s else times.quiet_s
    log.warning("%s is held by %s: waiting %.0f s for a sign of life.", out, found, quiet_s)
    until = time.monotonic() + quiet_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(times.beat_s / 4, left))
        top = holders.highest(out)
        if top is None or top[0] != found.number:
            return False
        if top[1] != found.etag:
            now = holders.newest(out)
            if now and now.number == found.number and not (now.holder and now.holder.is_gone):
                raise _refusal(out, now, times)
            return False
    return True


def _refusal(out: str, found: Found, times: Times) -> LeaseError:
    ago = f", last sign of life {max(found.quiet_s, 0):.0f} s ago" if found.holder else ""
    return LeaseError(
        f"{out} is being worked on by {found}{ago}. One run at a time works on an output: wait for "
        f"it. If its machine is gone, a run that begins {times.quiet_s:.0f} s after its last sign "
        f"of life takes over by itself; at once after: clipcap lease {out} --release"
    )


def _without(out: str, url: str, *, lies: bool) -> int:
    if lies:
        storage.delete(url)
    else:
        storage.require_writable(out)
    meaning = conditions.MEANING["lies" if lies else "refuses"]
    log.info("No lease on %s: its store %s. Two runs at once do work twice.", out, meaning)
    return 0


def _abandon(out: str, me: Holder) -> None:
    """Give back what was taken by a process that was ended before it knew so."""
    with suppress(StorageError):
        found = holders.newest(out)
        if found and found.holder and found.holder.token == me.token:
            free = me.model_copy(update={"released": True})
            storage.write(layout.lease(out, found.number), holders.written(free))


def _remove_below(number: int, out: str, there: dict[int, str]) -> None:
    for old in there:
        if old < number:
            storage.delete(layout.lease(out, old))
