"""An output in; an error out where its contract is not the one that this code writes.

`contract.json` is raised before the first object of a newer contract is written, and every object
says its own in its footer. So one small read tells most, and only objects that the newest whole run
has not listed are asked beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from clipcap import ahead, front, layout, manifest, storage, tables
from clipcap.errors import NotFoundError, SettingsError
from clipcap.layout import CONTRACT, PER_SHARD
from clipcap.storage import ObjectInfo

MIGRATING: Final = "migrating_from"
"""Key of `contract.json` while objects of an older contract may be left."""


def require_known(out: str) -> None:
    """Do nothing where an output is of this contract or an older one: it can be read.

    Raises:
        SettingsError: a newer version of this project has written into it.
    """
    found = said(out).get("contract")
    if not isinstance(found, int) or found <= CONTRACT:
        return
    for info in manifest.objects(out, "runs")[::-1][:1]:
        tables.footer(info.url)  # says itself which version wrote it
    footer = {"contract": str(found)}
    tables.require_known(layout.front(out, "contract.json"), footer)


def require_current(out: str) -> None:
    """Do nothing where an output is of this contract, or nothing yet: it can be written to.

    Raises:
        SettingsError: a newer version of this project has written into it, or it is older.
    """
    require_known(out)
    value = said(out)
    found = value.get("contract", CONTRACT)
    if MIGRATING in value:
        _refuse(layout.front(out, "contract.json"), value[MIGRATING], out)
    if isinstance(found, int) and found < CONTRACT:
        _refuse(layout.front(out, "contract.json"), found, out)
    for url, footer in footers(_unlisted(out)):
        number = contract_of(footer)
        if number < CONTRACT:
            _refuse(url, number, out)


def _refuse(url: str, number: object, out: str) -> None:
    raise SettingsError(
        f"{url} must be of contract {CONTRACT}, which this clipcap writes, but is of the older "
        f"{number}. Nothing was changed. `clipcap migrate {out}` says what it takes to bring the "
        "output to today's contract, and does it with --apply; nothing is computed again."
    )


def announce(out: str) -> None:
    """Write `contract.json` into an output that has none, before anything else is written."""
    if storage.info(layout.front(out, "contract.json")) is None:
        storage.write(layout.front(out, "contract.json"), front.files()["contract.json"])


def said(out: str) -> dict[str, Any]:
    """Return what `contract.json` says; nothing where there is none that can be read."""
    try:
        found = json.loads(storage.read(layout.front(out, "contract.json")))
    except (NotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def contract_of(footer: dict[str, str]) -> int:
    """Return the contract that a footer names; one that names none is of today's."""
    number = footer.get("contract", "")
    return int(number) if number.isdecimal() else CONTRACT


def footers(infos: list[ObjectInfo]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield URL and footer of objects, read many at a time; what went meanwhile is passed over.

    Raises:
        SettingsError: one is of a newer contract.
        DamagedError: one is not whole.
    """

    def footer(info: ObjectInfo) -> tuple[str, dict[str, str]] | None:
        try:
            return info.url, tables.footer(info.url)[0]
        except NotFoundError:
            return None

    for found in ahead.mapped(footer, infos, threads=storage.IN_FLIGHT):
        if found is not None:
            yield found


def _unlisted(out: str) -> list[ObjectInfo]:
    """Return the objects that the newest whole run has not listed, or that changed since."""
    known = _listed(out)
    found = (info for name in PER_SHARD for info in manifest.objects(out, name))
    return [info for info in found if known.get(info.url) != (info.size_bytes, info.etag)]


def _listed(out: str) -> dict[str, tuple[int, str]]:
    try:
        latest = json.loads(storage.read(layout.latest(out)))
        listed = json.loads(storage.read(layout.run_manifest(out, latest["run_id"])))
        return {
            f"{out}/{one['url']}": (one["size_bytes"], one["etag"]) for one in listed["objects"]
        }
    except (NotFoundError, ValueError, LookupError, TypeError):
        return {}
