"""An output of an older contract in; the same rows under today's out, one whole object at a time.

A new contract adds its step to `STEPS`. Fingerprints and recipes stay as they are, so that no run
computes anything again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from clipcap import (
    ahead,
    commits,
    contracts,
    front,
    layout,
    leases,
    manifest,
    snapshots,
    storage,
    tables,
)
from clipcap.contracts import MIGRATING
from clipcap.errors import NotFoundError, SettingsError
from clipcap.front.contract import TABLES
from clipcap.layout import CONTRACT, Table

Step = Callable[[Table, pa.Table, Mapping[str, str]], pa.Table]
"""Name, rows and footer of an object in; its rows under the next contract out."""
STEPS: Final[dict[int, Step]] = {}
"""The contract that each step starts from. None yet: every output is of contract 1."""
_THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was, or would be, brought to today's contract: objects by the contract they are of."""

    out: str
    objects: int
    older: dict[int, int]
    applied: bool


def migrate(out: str, *, apply: bool) -> Migrated:
    """Bring every object of an output to today's contract.

    It may be killed at any point and run again: what is done says so in its footer. Until all is
    done no run writes to the output.

    Raises:
        NotFoundError: there is no output.
        SettingsError: it is of a newer contract, or of one that no step starts from.
        StorageError: the store refused.
    """
    contracts.require_known(out)
    infos = [info for name in TABLES for info in manifest.objects(out, name)]
    if not infos:
        raise NotFoundError(f"{out} must be an output of clipcap, but holds no table.")
    found = dict(contracts.footers(infos))
    older = {
        url: number
        for url, footer in found.items()
        if (number := contracts.contract_of(footer)) < CONTRACT
    }
    for number in range(min(older.values(), default=CONTRACT), CONTRACT):
        _step(number)
    said = contracts.said(out)
    if apply and (older or MIGRATING in said or said.get("contract") != CONTRACT):
        _announce(out, min(older.values(), default=CONTRACT))
        for _ in ahead.mapped(lambda url: _one(url, out), sorted(older), threads=_THREADS):
            pass
        leases.require(out)
        _list_again(out)
        front.write(out)
    return Migrated(out, len(infos), dict(Counter(older.values())), apply)


def _step(number: int) -> Step:
    if number not in STEPS:
        raise SettingsError(
            f"There is no way from contract {number} to {CONTRACT}: this clipcap knows steps from "
            f"{', '.join(map(str, sorted(STEPS))) or 'none'}. Use the newest one."
        )
    return STEPS[number]


def _announce(out: str, number: int) -> None:
    """Keep older and newer code from writing until all is done."""
    value = json.loads(front.files()["contract.json"]) | {MIGRATING: number}
    storage.write(layout.front(out, "contract.json"), json.dumps(value, indent=1).encode())


def _one(url: str, out: str) -> None:
    rows = tables.read(url)
    footer = tables.metadata(rows)
    name = next(one for one in TABLES if url.startswith(f"{layout.table(out, one)}/"))
    for number in range(contracts.contract_of(footer), CONTRACT):
        rows = _step(number)(name, rows, footer)
    del footer["contract"]
    storage.write(url, tables.to_bytes(rows, footer))


def _list_again(out: str) -> None:
    """Say in the list of the newest whole run how large its objects are now, and their versions."""
    try:
        latest = json.loads(storage.read(layout.latest(out)))
        url = layout.run_manifest(out, latest["run_id"])
        listed: dict[str, Any] = json.loads(storage.read(url))
    except NotFoundError:
        return
    infos = {info.url: info for name in TABLES for info in manifest.objects(out, name)}
    told = [
        (entry, info)
        for entry in listed["objects"]
        if (info := infos.get(f"{out}/{entry['url']}")) is not None
    ]
    found = ahead.mapped(lambda one: commits.find(one[1].url), told, threads=_THREADS)
    for (entry, info), commit in zip(told, found, strict=True):
        if commit is not None:
            entry |= snapshots.entry(info, commit, out=out)
    storage.write(url, (json.dumps(listed, indent=1) + "\n").encode())
