"""Runs in threads in; one of them at a time out, handed on at calls to the store as was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from threading import Condition
from typing import Any, TypeVar

from tests.chaos.store import Actor

R = TypeVar("R")
LIMIT_S = 60.0


class Turns:
    """Says which of some actors may call the store; only `taken` lets one of them begin."""

    def __init__(self, actors: Sequence[Actor], calls: Sequence[int]) -> None:
        """Take the actors, and after how many calls each time the next one goes on."""
        self._changed = Condition()
        self._waiting = list(actors)
        self._lengths = cycle(calls or [1])
        self._left = next(self._lengths)
        for actor in actors:
            actor.turn = lambda actor=actor: self._wait(actor)

    def taken(self, actor: Actor, work: Callable[..., R], *args: Any) -> R:  # noqa: ANN401
        """Let an actor do its work in turns with the others; the calling thread is its own."""
        try:
            return work(*args, actor)
        finally:
            with self._changed:
                self._waiting.remove(actor)
                self._changed.notify_all()

    def _wait(self, actor: Actor) -> None:
        """Return once it is the actor's turn; a call is then counted."""
        with self._changed:
            self._until(actor)
            self._left -= 1
            if self._left < 0:
                self._left = next(self._lengths)
                self._waiting.append(self._waiting.pop(0))
                self._changed.notify_all()
                self._until(actor)

    def _until(self, actor: Actor) -> None:
        if not self._changed.wait_for(lambda: self._waiting[0] is actor, LIMIT_S):
            raise TimeoutError("Another run has the turn and does nothing.")
