"""The library's log lines in, the same on the page of the Prefect run that wrote them out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

LIBRARY = logging.getLogger("clipcap")


def send_to_prefect() -> None:
    """Send the library's lines to Prefect from now on: in a process that does nothing but tasks."""
    LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(APILogHandler())


@contextmanager
def sent_to_prefect() -> Iterator[None]:
    """Send the library's lines to Prefect while a flow run goes on.

    `PREFECT_LOGGING_EXTRA_LOGGERS` adds a handler too, but no level: counts and rates stay unseen.
    """
    level = LIBRARY.level
    present = any(isinstance(handler, APILogHandler) for handler in LIBRARY.handlers)
    handler = logging.NullHandler() if present else APILogHandler()
    if LIBRARY.getEffectiveLevel() > logging.INFO:
        LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(handler)
    try:
        yield
    finally:
        LIBRARY.removeHandler(handler)
        LIBRARY.setLevel(level)
