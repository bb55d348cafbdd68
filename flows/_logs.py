"""The library's log lines in, the same on the page of the Prefect run that wrote them out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

from clipcap.credentials import without

LIBRARY = logging.getLogger("clipcap")


class Sender(APILogHandler):
    """Sends lines to Prefect, without the secrets of the addresses in them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line; other handlers see it as it was."""
        plain = copy.copy(record)
        plain.msg, plain.args = without(record.getMessage()), ()
        if record.exc_info:
            plain.exc_text = without(logging.Formatter().formatException(record.exc_info))
        super().emit(plain)


def send_to_prefect() -> None:
    """Send the library's lines to Prefect from now on: in a process that does nothing but tasks."""
    LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(Sender())


@contextmanager
def sent_to_prefect() -> Iterator[None]:
    """Send the library's lines to Prefect while a flow run goes on.

    `PREFECT_LOGGING_EXTRA_LOGGERS` adds a handler too, but no level: counts and rates stay unseen.
    """
    level = LIBRARY.level
    present = any(isinstance(handler, APILogHandler) for handler in LIBRARY.handlers)
    handler = logging.NullHandler() if present else Sender()
    if LIBRARY.getEffectiveLevel() > logging.INFO:
        LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(handler)
    try:
        yield
    finally:
        LIBRARY.removeHandler(handler)
        LIBRARY.setLevel(level)
