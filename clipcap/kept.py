"""A question about this machine in, the number that was found the last time out: it is asked once.

One small JSON file for each kind of question, in the user's cache folder. Nothing depends on it: a
file that is broken, missing or not writable only means that the question is asked again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Final

_LOG = logging.getLogger(__name__)
_MOST: Final = 500  # answers in one file; the oldest go


def folder() -> Path:
    """Return the user's cache folder of this project; it need not be there.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipcap"


def find(kind: str, key: str) -> float | None:
    """Return what was kept; None if nothing was."""
    return _read(kind).get(key)


def keep(kind: str, key: str, value: float) -> None:
    """Keep an answer, a finite number; of two processes that write at once one may be lost."""
    values = _read(kind)
    values.pop(key, None)
    values = dict(list(values.items())[1 - _MOST :]) | {key: value}
    try:
        path = _path(kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{kind}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(values, stream, indent=1)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        _LOG.debug("%s is not kept, and will be found out again: %s", kind, error)


def _path(kind: str) -> Path:
    return folder() / f"{kind}.json"


def _read(kind: str) -> dict[str, float]:
    try:
        found = json.loads(_path(kind).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # the last: no home
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in entries if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
