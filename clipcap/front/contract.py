"""Schemas and what their columns mean in; the output contract as JSON and as a page out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from clipcap import layout, review, tables
from clipcap.errors import REASONS, RETRYABLE_REASONS
from clipcap.layout import CONTRACT, Run, Shard, Table

FOLDER: Final = Path(__file__).parent
TABLES: Final[tuple[Table, ...]] = (*layout.PER_SHARD, "runs", "shard_runs")
CLOSED_LISTS: Final[dict[str, tuple[str, ...]]] = {
    "reasons": REASONS,
    "retryable_reasons": tuple(reason for reason in REASONS if reason in RETRYABLE_REASONS),
    "status": ("ok", "suppressed", "failed"),
    "finish_reason": ("stop", "length"),
    "review_reasons": review.REASONS,
    "flags": (
        "dark", "light", "blurry", "low_information", "grayscale", "odd_size", "odd_aspect_ratio",
        "unsafe_screen",
    ),
}  # fmt: skip
"""Every value that a column of this kind may hold."""

_FOOTER: Final = ("contract", "producer", "run_id", "git_commit", "fingerprint", "recipe")
FOOTERS: Final[dict[Table, tuple[str, ...]]] = {
    "manifest": (*_FOOTER, "members", "source"),
    "embeddings": (
        *_FOOTER, "members", "model_id", "model_sha256", "preprocess", "preprocess_sha256", "dim",
        "normalized", "value_precision", "logit_scale",
    ),
    "captions": (
        *_FOOTER, "members", "captioner_id", "captioner_sha256", "prefix_length", "decode",
        "model_id",
    ),
    "labels": (
        *_FOOTER, "members", "label_set", "label_set_sha256", "temperature", "threshold",
        "model_id",
    ),
    "rejects": (*_FOOTER, "members"),
    "runs": _FOOTER,
    "shard_runs": _FOOTER,
}  # fmt: skip
"""Keys that the footer of each table's files must have."""

_NAMES: Final = {
    "float": "float32",
    "double": "float64",
    "timestamp[us, tz=UTC]": "timestamp[us, UTC]",
}


def schema(name: Table, *, dim: int = 1) -> pa.Schema:
    """Return the schema of a table; `dim` is the width of embeddings."""
    return tables.embeddings_schema(dim) if name == "embeddings" else tables.SCHEMAS[name]


def pattern(name: Table) -> str:
    """Return where the files of a table lie, such as `manifest/dt={dt}/{shard}.parquet`."""
    shard, run = Shard("{dt}", "{shard}"), Run("{run_id}", "", "{dt}")
    urls = {
        "manifest": layout.manifest("", shard),
        "rejects": layout.rejects("", shard),
        "embeddings": layout.embeddings("", shard, model_id="MODEL"),
        "captions": layout.captions("", shard, captioner_id="CAPTIONER"),
        "labels": layout.labels("", shard, label_set="LABELSET"),
        "runs": layout.runs(run),
        "shard_runs": layout.shard_runs(run),
    }
    return re.sub(r"[A-Z]+", lambda found: f"{{{found[0].lower()}}}", urls[name]).lstrip("/")


def hive_keys(name: Table) -> list[str]:
    """Return the columns that stand in a table's paths and in no file."""
    return re.findall(r"(\w+)=\{", pattern(name))


def meanings() -> dict[str, dict[str, tuple[str, str]]]:
    """Return unit and sentence of every column of every table; `_` is the table itself."""
    loaded = tomllib.loads((FOLDER / "columns.toml").read_text(encoding="utf-8"))
    return {
        table: {
            column: ("", found) if isinstance(found, str) else (found[0], found[1])
            for column, found in columns.items()
        }
        for table, columns in loaded.items()
    }


def type_name(kind: pa.DataType) -> str:
    """Return a type as the contract writes it."""
    if pa.types.is_fixed_size_list(kind):
        return "fixed_size_list<element: float32 not null>[D]"
    if pa.types.is_list(kind):
        return f"list<element: {type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        inner = ", ".join(f"{field.name}: {type_name(field.type)}" for field in kind)
        return f"struct<{inner}>"
    return _NAMES.get(str(kind), str(kind))


def contract() -> dict[str, Any]:
    """Return the whole contract as a JSON value."""
    said = meanings()
    return {
        "contract": CONTRACT,
        "tables": {
            name: {
                "doc": said[name]["_"][1],
                "path": pattern(name),
                "hive_keys": hive_keys(name),
                "footer_keys": list(FOOTERS[name]),
                "columns": [_column(field, said[name]) for field in schema(name)],
            }
            for name in TABLES
        },
        "closed_lists": {name: list(values) for name, values in CLOSED_LISTS.items()},
    }


def _column(field: pa.Field, said: dict[str, tuple[str, str]]) -> dict[str, Any]:
    unit, sentence = said[field.name]
    return {
        "name": field.name,
        "type": type_name(field.type),
        "nullable": field.nullable,
        "unit": unit or None,
        "doc": sentence,
    }


def page() -> str:
    """Return the tables as Markdown, column by column."""
    parts = []
    for name, table in contract()["tables"].items():
        parts += [f"## {name}", "", f"{table['doc']}", "", f"Files: `{table['path']}`", ""]
        parts += ["| column | type | null | unit | meaning |", "|---|---|---|---|---|"]
        parts += [_row(column) for column in table["columns"]]
        parts += ["", f"Footer keys: {', '.join(f'`{key}`' for key in table['footer_keys'])}.", ""]
    parts += ["## Closed lists", "", "| list | values |", "|---|---|"]
    for name, values in CLOSED_LISTS.items():
        parts.append(f"| {name} | {', '.join(f'`{value}`' for value in values)} |")
    return "\n".join(parts) + "\n"


def _row(column: dict[str, Any]) -> str:
    nullable = "yes" if column["nullable"] else "no"
    cells = (f"`{column['name']}`", f"`{column['type']}`", nullable, column["unit"] or "")
    return f"| {' | '.join(cells)} | {column['doc']} |"
