"""Words of a command line in, its exit code and everything it prints out, in this process."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from flows import cli


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def clipcap(*words: object) -> Ended:
    """Run `clipcap` with some words; what it changes in this process is put back."""
    out, err = io.StringIO(), io.StringIO()
    library = logging.getLogger("clipcap")
    kept = (library.level, library.propagate, list(library.handlers))
    argv = ["clipcap", *map(str, words)]
    code = 0
    try:
        with (
            patch.object(sys, "argv", argv),
            patch.object(sys, "excepthook", sys.excepthook),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        library.setLevel(kept[0])
        library.propagate = kept[1]
        library.handlers[:] = kept[2]
    return Ended(code, out.getvalue(), err.getvalue())
