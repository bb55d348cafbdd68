"""The listing of an output in; objects that it makes for itself and cannot read any more, out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from clipcap import tables
from clipcap.errors import DamagedError, NotFoundError
from clipcap.verify.findings import Problem
from clipcap.verify.places import Places

_FOLDERS: Final = ("_listings/", "_labelsets/", "_canaries/")
"""Parquet that a run reads whole; all else below `_` is passed over by who cannot read it."""


def of_own(places: Places) -> Iterator[Problem]:
    """Check that what a run keeps for the next one can be read."""
    for path in sorted(places.infos):
        if not path.startswith(_FOLDERS):
            continue
        try:
            tables.read(f"{places.out}/{path}")
        except NotFoundError:
            continue
        except DamagedError as error:
            text = str(error.__cause__ or error).partition("\n")[0][:200]
            yield Problem(path, "unreadable", f"It must be Parquet, but cannot be read: {text}")
