"""What a run does in, who hears of it while it does: a terminal, or Prefect's artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Protocol

from clipcap.outcomes import Night, Outcome
from clipcap.stages.publish import Published


class Listener(Protocol):
    """Hears of a run, stage by stage."""

    def begin(self, stage: str) -> None:
        """A stage begins."""

    def expect(self, stage: str, shards: int) -> None:
        """A stage is about to work through so many shards."""

    def advance(self, stage: str, outcomes: Sequence[Outcome]) -> None:
        """A partition is done."""

    def end(self, stage: str, night: Night) -> None:
        """A stage has ended well; `night` is all that was done until now."""

    def finish(self, night: Night, published: Published | None) -> None:
        """The run is done; only a whole night publishes."""

    def fail(self, night: Night, error: BaseException) -> None:
        """The run ends with an error; `night` is all that was done until then."""


LISTENER: ContextVar[Listener | None] = ContextVar("LISTENER", default=None)
"""Set by the command line around a flow that it starts."""
