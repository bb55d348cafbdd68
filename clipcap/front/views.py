"""The schemas in, `views.sql` out: one DuckDB view per table, then the questions of `queries.sql`.

A table without files is a view without rows: its columns stand in the view, so that nothing fails
before the first reject. The text depends on the contract alone, not on where the output lies.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from clipcap.front import contract
from clipcap.layout import CONTRACT, Table

_HEAD: Final = f"""\
-- Views on an output of clipcap (contract {CONTRACT}), for DuckDB 2.0 and newer.
--
-- Inside the output folder:   duckdb -init views.sql
-- From anywhere else:         SET VARIABLE clipcap = '/path/to/output';
--                             .read /path/to/output/views.sql
-- In a bucket:                INSTALL httpfs; LOAD httpfs;
--                             CREATE SECRET (TYPE s3, PROVIDER credential_chain);
--                             SET VARIABLE clipcap = 's3://bucket/output';
--                             .read views.sql  (a copy of this file)

SET VARIABLE clipcap = coalesce(getvariable('clipcap'), '.');
CREATE OR REPLACE MACRO clipcap_at(place) AS coalesce(getvariable('clipcap'), '.') || '/' || place;

-- -----------------------------------------------------------------------------------------------
-- Tables. `dt` is the date of the run that made the shard.
"""
_SQL_TYPES: Final = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMP WITH TIME ZONE",
}


def views() -> str:
    """Return the text of `views.sql`."""
    questions = (contract.FOLDER / "queries.sql").read_text(encoding="utf-8")
    return "\n".join([_HEAD, *(_view(name) for name in contract.TABLES), questions])


def _view(name: Table) -> str:
    hive = {key: "DATE" if key == "dt" else "VARCHAR" for key in contract.hive_keys(name)}
    columns = {field.name: sql_type(field.type) for field in contract.schema(name)} | hive
    typed = _lines([f"NULL::{kind} AS {column}" for column, kind in columns.items()], 11)
    hive_types = ", ".join(f"'{key}': {kind}" for key, kind in hive.items())
    return f"""\
CREATE OR REPLACE VIEW {name} AS
SELECT {_lines(list(columns), 7)}
FROM (
    SELECT {typed}
    WHERE false
    UNION ALL BY NAME
    SELECT * FROM read_parquet(
        clipcap_at('{name}/**/*.parquet'), allow_empty = true,
        hive_partitioning = true, hive_types = {{{hive_types}}}
    )
);
"""


def _lines(parts: list[str], indent: int, width: int = 98) -> str:
    """Return `parts` with commas, broken into lines."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(longer) + indent < width:
            lines[-1] = longer
        else:
            lines.append(part)
    return f",\n{' ' * indent}".join(lines)


def sql_type(kind: pa.DataType) -> str:
    """Return DuckDB's name of a type, as it reads it from our files."""
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        inner = ", ".join(f"{field.name} {sql_type(field.type)}" for field in kind)
        return f"STRUCT({inner})"
    return _SQL_TYPES[kind]
