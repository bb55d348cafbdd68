"""Work in, child processes that do it out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from threading import Lock
from types import SimpleNamespace

from clipcap import nursery, workers, zygote


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child and return what `subprocess` would as its code."""
    return together([work])[0]


def together(works: Iterable[Callable[[], object]]) -> list[int]:
    """Run each in a child, all at the same time; return how they ended."""
    children = [_child(work) for work in works]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def import_here(names: Iterable[str]) -> None:
    """Import what a child has imported as it went: the next ones need not, each again."""
    for name in names:
        with suppress(ImportError):
            import_module(name)


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


def workers_are_forked(*modules: str) -> None:
    """Let workers be forked from this process, which imports what they run once and for all.

    Else each process that asks for workers starts one that imports it all again, for seconds.
    """
    for module in modules:
        import_module(module)
    workers._LOCK = Lock()  # who forks takes the one that is there now
    names = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
    vars(nursery)["subprocess"] = SimpleNamespace(Popen=Forked, **names)


class Forked:
    """What `clipcap.nursery` needs of the `subprocess.Popen` of a zygote."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                _serve(pass_fds[0], command[-1])
            finally:
                os._exit(1)

    def wait(self, timeout: float) -> int:
        """Wait until it ended."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a zygote", timeout)
            else:
                time.sleep(0.01)
        return self.returncode


def _serve(orders: int, module: str) -> None:
    os.setsid()
    os.closerange(3, orders)
    os.closerange(orders + 1, os.sysconf("SC_OPEN_MAX"))
    sys.argv = ["zygote", str(orders), module]
    zygote.main()
