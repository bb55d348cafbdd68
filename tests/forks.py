"""Work in, child processes that do it out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child and return what `subprocess` would as its code."""
    return together([work])[0]


def together(works: Iterable[Callable[[], object]]) -> list[int]:
    """Run each in a child, all at the same time; return how they ended."""
    children = [_child(work) for work in works]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - the child must end here whatever happens
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)
