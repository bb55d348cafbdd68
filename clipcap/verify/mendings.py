"""An object and why it cannot stay in, the step that mends it out: what it does, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import pyarrow as pa

from clipcap import storage
from clipcap.errors import SettingsError
from clipcap.layout import CONTRACT
from clipcap.verify import salvage
from clipcap.verify.objects import Opened
from clipcap.verify.places import Places

ASIDE: Final = "_set_aside"
"""Folder of the output for what cannot be made anew: nobody reads it."""


@dataclass(frozen=True, slots=True, order=True)
class Mending:
    """What is done to one object, and why; `place` is a path below the output."""

    place: str
    what: Literal["remove", "write", "set aside"]
    why: str

    def __str__(self) -> str:
        return f"{self.what} {self.place}: {self.why}"


Step = tuple[Mending, Callable[[], object]]
"""What would be done, and the call that does it: it changes one object."""


def removed(places: Places, path: str, why: str) -> Step:
    """Remove an object."""
    return Mending(path, "remove", why), partial(storage.delete, f"{places.out}/{path}")


def set_aside(places: Places, path: str, why: str) -> Step:
    """Move an object to where nobody reads it."""

    def move() -> None:
        url = f"{places.out}/{path}"
        storage.write(f"{places.out}/{ASIDE}/{path}", storage.read(url))
        storage.delete(url)

    return Mending(path, "set aside", f"{why} It is kept below {ASIDE}/."), move


def manifest_rows(one: Opened, shard: str) -> pa.Table | None:
    """Return the rows of a manifest that can be; None: nobody knows of which source they are.

    Raises:
        SettingsError: it is of another contract.
    """
    if any(problem.kind == "footer" for problem in one.problems):
        require_contract(one)
        return None
    rows = salvage.restored(one)
    return None if rows is None else salvage.manifest(rows, shard)


def reject_rows(one: Opened, shard: str) -> pa.Table | None:
    """Return the rows of a shard's rejects that can be; None: none.

    Raises:
        SettingsError: it is of another contract.
    """
    require_contract(one)
    rows = salvage.restored(one)
    return None if rows is None else salvage.rejects(rows, shard)


def require_contract(one: Opened) -> None:
    """Do nothing where an object is of this code's contract, or says nothing of it.

    Raises:
        SettingsError: it is of another one.
    """
    if one.footer.get("contract") not in (None, str(CONTRACT)):
        raise SettingsError(
            f"{one.url} is of contract {one.footer['contract']}, and this clipcap repairs only "
            f"outputs of contract {CONTRACT}. Nothing was changed. `clipcap migrate OUT` first."
        )
