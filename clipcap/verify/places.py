"""Every object of an output in; tables, tars and the rest, by the contract's paths, out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from clipcap import layout
from clipcap.front import contract
from clipcap.layout import PER_SHARD, Shard, Table
from clipcap.storage import ObjectInfo
from clipcap.verify.findings import Problem

_DATE: Final = r"\d{4}-\d{2}-\d{2}"
_NAME: Final = r"[A-Za-z0-9._-]+"
_OWN: Final = re.compile(
    r"(_[^/]*|\w+/_delta_log/.*|reports/.*|captioners/.*|README\.md|contract\.json|views\.sql|croissant\.json)"
)


def _path_form(pattern: str) -> re.Pattern[str]:
    text = re.escape(pattern).replace(r"dt=\{dt\}", f"dt={_DATE}")
    return re.compile(re.sub(r"\\\{\w+\\\}", _NAME, text))


_FORMS: Final[dict[Table, re.Pattern[str]]] = {
    name: _path_form(contract.pattern(name)) for name in contract.TABLES
}
_TAR: Final = _path_form("shards/dt={dt}/{shard}.tar")


@dataclass(slots=True)
class Places:
    """The objects of an output by what they are; `by_shard` has tables other than runs."""

    out: str
    infos: dict[str, ObjectInfo] = field(default_factory=dict)
    by_shard: dict[Shard, dict[Table, list[str]]] = field(default_factory=dict)
    runs: list[tuple[Table, str]] = field(default_factory=list)
    tars: dict[Shard, ObjectInfo] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def below(self, url: str) -> str:
        """Return the path of an object below the output."""
        return url.removeprefix(f"{self.out}/")


def sort(out: str, found: Iterable[ObjectInfo]) -> Places:
    """Sort the objects of an output; what no reader may meet is a problem."""
    places = Places(out)
    for info in found:
        path = places.below(info.url)
        places.infos[path] = info
        table = next((name for name, form in _FORMS.items() if form.fullmatch(path)), None)
        if table in PER_SHARD:
            tables = places.by_shard.setdefault(layout.shard_of(info.url), {})
            tables.setdefault(table, []).append(info.url)
        elif table is not None:
            places.runs.append((table, info.url))
        elif _TAR.fullmatch(path):
            places.tars[layout.shard_of(info.url)] = info
        elif path.startswith("_plans/"):
            message = "A run is under way, or has failed or was killed: `vacuum` removes old ones."
            places.problems.append(Problem(path, "orphan", message, "warning"))
        elif _OWN.match(path) is None:
            places.problems.append(_unknown(path))
    return places


def is_of_output(path: str) -> bool:
    """Tell whether a path is that of a tar or of an object of a table."""
    return any(form.fullmatch(path) for form in (_TAR, *_FORMS.values()))


def _unknown(path: str) -> Problem:
    folder = path.partition("/")[0]
    if folder in contract.TABLES and path.endswith(".parquet"):
        wanted = contract.pattern(_table(folder))
        message = f"A glob over {folder} reads this, but it must lie at {wanted}."
        return Problem(path, "unknown", message)
    return Problem(
        path, "unknown", "No part of the contract; readers do not look at it.", "warning"
    )


def _table(name: str) -> Table:
    return next(table for table in contract.TABLES if table == name)
