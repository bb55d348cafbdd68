"""One object of a table in; its rows, and what its schema and footer lack, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from clipcap import tables
from clipcap.commits import Fingerprint
from clipcap.errors import DamagedError, NotFoundError
from clipcap.front import contract
from clipcap.layout import CONTRACT, Table
from clipcap.verify.findings import Kind, Problem


@dataclass(frozen=True, slots=True)
class Opened:
    """A table's object as it is read: rows and footer. `sound` if its schema is the contract's."""

    url: str
    place: str
    name: Table
    rows: pa.Table
    footer: Mapping[str, str]
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether the rows can be looked at."""
        return not any(found.kind == "schema" for found in self.problems)

    def problem(self, kind: Kind, message: str) -> Problem:
        """Return a problem of this object."""
        return Problem(self.place, kind, message)


def opened(url: str, place: str, name: Table) -> Opened | Problem:
    """Read one object and hold it against the contract's schema and footer."""
    try:
        rows, footer = tables.whole(url)
    except NotFoundError:
        return Problem(place, "missing", "It was listed a moment ago and is gone.", "warning")
    except DamagedError as error:
        text = str(error.__cause__ or error).partition("\n")[0][:200]
        return Problem(
            place, "unreadable", f"It must be a Parquet file, but cannot be read: {text}"
        )
    bare = Opened(url, place, name, rows, footer, ())
    found = (*_schema_problems(bare), *_footer_problems(bare))
    if footer != tables.metadata(rows):  # Parquet holds it twice
        found += (bare.problem("footer", "The two copies of its footer differ."),)
    return Opened(url, place, name, rows, footer, found)


def _schema_problems(one: Opened) -> Iterator[Problem]:
    dim = one.footer.get("dim", "")
    wanted = contract.schema(one.name, dim=int(dim) if dim.isdecimal() and dim != "0" else 1)
    given = one.rows.schema
    if given.equals(wanted):
        return
    lacks = [name for name in wanted.names if name not in given.names]
    more = [name for name in given.names if name not in wanted.names]
    if lacks:
        yield one.problem("schema", f"It lacks the columns {', '.join(lacks)}.")
    if more:
        yield one.problem(
            "schema", f"It has columns that the contract does not: {', '.join(more)}."
        )
    for field in wanted:
        if field.name in given.names and not given.field(field.name).equals(field):
            yield one.problem(
                "schema",
                f"`{field.name}` must be {_said(field)}, but is {_said(given.field(field.name))}.",
            )
    if not lacks and not more and given.names != wanted.names:
        yield one.problem("schema", "Its columns are not in the order of the contract.")


def _said(field: pa.Field) -> str:
    kind = contract.type_name(field.type)
    if pa.types.is_fixed_size_list(field.type):
        kind = f"{field.type}"
    return f"{kind} ({'nullable' if field.nullable else 'not null'})"


def _footer_problems(one: Opened) -> Iterator[Problem]:
    lacks = [key for key in contract.FOOTERS[one.name] if key not in one.footer]
    if lacks:
        yield one.problem("footer", f"Its footer lacks {', '.join(lacks)}.")
    if one.footer.get("contract") not in (None, str(CONTRACT)):
        yield one.problem(
            "footer", f"Its contract must be {CONTRACT}, but is {one.footer['contract']}."
        )
    if tables.SEAL in one.footer and one.footer[tables.SEAL] != tables.seal(one.footer):
        yield one.problem("footer", "Its footer was changed after it was written.")
    over = one.footer.get("members", one.footer.get("run_id", ""))
    wanted = Fingerprint(one.footer.get("recipe", ""), over, one.footer.get("review", "")).value
    if one.footer.get("fingerprint") != wanted:
        yield one.problem(
            "fingerprint", "Its fingerprint is not that of its own recipe and members."
        )
