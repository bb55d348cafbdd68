"""A fitted label set is a file that anybody may damage: it is refused in one sentence, or whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import tables
from clipcap.commits import Commit
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError
from clipcap.labels import bank
from tests.clipcap.test_scoring import tree

Change = Callable[[pa.Table, dict[str, str]], tuple[pa.Table, dict[str, str]]]


def label_set(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(table: pa.Table, footer: dict[str, str]) -> tuple[pa.Table, dict[str, str]]:
        found = json.loads(footer["label_set"])
        change(found)
        return table, footer | {"label_set": json.dumps(found)}

    return changed


def column(name: str, values: Callable[[pa.Table], pa.Array]) -> Change:
    def changed(table: pa.Table, footer: dict[str, str]) -> tuple[pa.Table, dict[str, str]]:
        at = table.schema.get_field_index(name)
        return table.set_column(at, name, values(table)), footer

    return changed


def vectors(value: float) -> Callable[[pa.Table], pa.Array]:
    def found(table: pa.Table) -> pa.Array:
        vector_CD = tables.vectors(table)
        vector_CD[2, 0] = value
        width = tables.vector_type(vector_CD.shape[1])
        return pa.FixedSizeListArray.from_arrays(pa.array(vector_CD.ravel()), type=width)

    return found


def without(name: str) -> Change:
    return lambda table, footer: (table, {k: v for k, v in footer.items() if k != name})


DAMAGES: dict[str, tuple[Change, str]] = {
    "circle": (label_set(lambda one: one["names"][0].update(parent="terrier")), "in a circle"),
    "no parent": (label_set(lambda one: one["names"][1].update(parent="nobody")), "nobody"),
    "name twice": (label_set(lambda one: one["names"][1].update(name="cat")), "stands twice"),
    "control": (label_set(lambda one: one["names"][1].update(name="a\nb")), "U+000A"),
    "field": (label_set(lambda one: one.update(other=1)), "other"),
    "no JSON": (lambda table, footer: (table, footer | {"label_set": "{no"}), "cannot be read"),
    "no fit": (lambda table, footer: (table, footer | {"fit": "{no"}), "property name"),
    "no words": (without("label_set"), "label_set"),
    "no model": (without("model_id"), "model_id"),
    "rows": (lambda table, footer: (table.slice(0, 5), footer), "a row for each"),
    "column": (lambda table, footer: (table.drop_columns(["gain"]), footer), "gain"),
    "text": (column("gain", lambda table: pa.array(["x"] * table.num_rows)), "'x'"),
    "NaN": (column("embedding", vectors(np.nan)), "numbers"),
    "infinite": (column("embedding", vectors(np.inf)), "numbers"),
    "gain": (column("gain", lambda table: pa.array([np.nan] * table.num_rows)), "numbers"),
    "threshold": (column("threshold", lambda table: pa.array([7.0] * table.num_rows)), "threshold"),
    "no list": (column("embedding", lambda table: table["gain"]), "embedding"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_a_sentence(damage: str, tmp_path: Path) -> None:
    table = tables_of(bank.to_bytes(tree(name="own")))
    change, told = DAMAGES[damage]
    changed, footer = change(table.replace_schema_metadata(), tables.metadata(table))
    (tmp_path / "own.parquet").write_bytes(tables.to_bytes(changed, footer))
    with pytest.raises(SettingsError, match=r"own\.parquet") as caught:
        bank.load(str(tmp_path / "own.parquet"))
    assert told in str(caught.value)


def test_a_damaged_footer_of_parquet_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "own.parquet").write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    with pytest.raises(SettingsError, match="must be Parquet"):
        bank.load(str(tmp_path / "own.parquet"))


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.parquet").write_bytes(bank.to_bytes(tree(name="own")))
    given = bank.load(str(tmp_path / "own.parquet"))
    source = Commit("file:///out/e.parquet", 1, "", "", {"model_sha256": "", "dim": "512"})
    with pytest.raises(SettingsError, match="16 numbers"):
        bank.of(given, source, out="file:///out", encoder=EmbedSettings())


def tables_of(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))
