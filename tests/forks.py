"""Work in, a child process that does it out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child and return what `subprocess` would as its code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - the child must end here whatever happens
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)
