"""Every table opens in pandas, DuckDB, Polars and pyarrow; `views.sql` runs; the docs hold."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from clipcap import front, keys, storage, tables
from clipcap.front import contract
from clipcap.layout import Table
from tests.outputs import Output, asked, files

DOCS = Path(__file__).parents[2] / "docs" / "contract.md"


@pytest.mark.parametrize("name", contract.TABLES)
def test_every_file_has_exactly_the_schema_of_the_contract(made: Output, name: Table) -> None:
    for path in files(made, name):
        found = pq.ParquetFile(path)
        assert found.schema_arrow.remove_metadata().equals(contract.schema(name, dim=16)), path
        footer = {key.decode() for key in found.metadata.metadata}
        assert set(contract.FOOTERS[name]) <= footer


@pytest.mark.parametrize("name", contract.TABLES)
def test_hive_keys_never_repeat_a_column(made: Output, name: Table) -> None:
    columns = set(contract.schema(name).names)
    for path in files(made, name):
        found = re.findall(r"(\w+)=", str(path.relative_to(made.folder)))
        assert found == contract.hive_keys(name)
        assert not columns & set(found)


@pytest.mark.parametrize("name", contract.TABLES)
def test_pandas_opens_every_table(made: Output, rows: dict[Table, pa.Table], name: Table) -> None:
    found = pd.read_parquet(made.folder / name)
    assert len(found) == rows[name].num_rows > 0
    assert set(found.columns) == {*contract.schema(name).names, *contract.hive_keys(name)}
    for field in contract.schema(name):
        if field.nullable:
            continue
        kind = found[field.name].dtype
        if pa.types.is_timestamp(field.type):
            assert isinstance(kind, pd.DatetimeTZDtype), field.name
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            assert kind == field.type.to_pandas_dtype(), field.name
    arrow = pd.read_parquet(made.folder / name, dtype_backend="pyarrow")
    assert len(arrow) == len(found)


@pytest.mark.parametrize("name", contract.TABLES)
def test_polars_opens_every_table(made: Output, rows: dict[Table, pa.Table], name: Table) -> None:
    scanned = pl.scan_parquet(made.folder / name / "**/*.parquet", hive_partitioning=True)
    found = scanned.collect()
    assert found.height == rows[name].num_rows
    kinds = {
        "string": pl.String(), "int32": pl.Int32(), "int64": pl.Int64(), "float32": pl.Float32(),
        "float64": pl.Float64(), "bool": pl.Boolean(),
        "list<element: string>": pl.List(pl.String()),
        "timestamp[us, UTC]": pl.Datetime("us", "UTC"),
    }  # fmt: skip
    for field in contract.schema(name):
        kind = kinds.get(contract.type_name(field.type))
        assert kind is None or found.schema[field.name] == kind, field.name
    assert found.schema["dt"] == pl.Date()


@pytest.mark.parametrize("name", contract.TABLES)
def test_pyarrow_opens_every_table(made: Output, rows: dict[Table, pa.Table], name: Table) -> None:
    found = ds.dataset(made.folder / name, partitioning="hive").to_table()
    assert found.num_rows == rows[name].num_rows
    for field in contract.schema(name, dim=16):
        assert found.schema.field(field.name).type == field.type


@pytest.mark.parametrize("name", contract.TABLES)
def test_duckdb_opens_every_table(
    database: duckdb.DuckDBPyConnection, rows: dict[Table, pa.Table], name: Table
) -> None:
    assert asked(database, f"SELECT count(*) AS n FROM {name}") == [{"n": rows[name].num_rows}]
    kinds = {row["column_name"]: row["column_type"] for row in asked(database, f"DESCRIBE {name}")}
    assert list(kinds) == [*contract.schema(name).names, *contract.hive_keys(name)]
    assert kinds["dt"] == "DATE"
    assert not {kind for kind in kinds.values() if kind.startswith(("U", "HUGE", "BLOB", "NULL"))}


def test_a_view_has_the_types_that_duckdb_reads_from_the_files(
    made: Output, database: duckdb.DuckDBPyConnection
) -> None:
    for name in contract.TABLES:
        glob = made.folder / name / "**/*.parquet"
        direct = asked(database, f"DESCRIBE FROM read_parquet('{glob}', hive_partitioning = true)")
        view = asked(database, f"DESCRIBE {name}")
        pairs = [(row["column_name"], row["column_type"]) for row in view]
        assert sorted(pairs) == sorted((row["column_name"], row["column_type"]) for row in direct)


def test_vectors_come_out_of_every_engine_as_they_went_in(
    made: Output, rows: dict[Table, pa.Table], database: duckdb.DuckDBPyConnection
) -> None:
    order = np.argsort(rows["embeddings"]["image_id"].to_numpy(zero_copy_only=False))
    truth_BD = tables.vectors(rows["embeddings"])[order]
    (folder,) = (made.folder / "embeddings").iterdir()
    pandas = pd.read_parquet(folder).sort_values("image_id")
    polars = pl.read_parquet(folder / "**/*.parquet").sort("image_id")
    duck = asked(database, "SELECT embedding FROM embeddings ORDER BY image_id")
    assert np.array_equal(np.vstack(list(pandas["embedding"])), truth_BD)
    assert np.array_equal(polars["embedding"].to_numpy(), truth_BD)
    assert np.array_equal(np.array([row["embedding"] for row in duck], np.float32), truth_BD)


def test_the_contract_names_every_column_once_with_its_meaning() -> None:
    said = contract.meanings()
    assert set(said) == set(contract.TABLES)
    for name in contract.TABLES:
        assert list(said[name]) == ["_", *contract.schema(name).names]
        assert all(sentence.endswith((".", ")")) for _, sentence in said[name].values())


def test_a_number_with_a_unit_in_its_name_has_that_unit() -> None:
    endings = {"_s": "s", "_bytes": "bytes", "_ms": "ms", "_seconds": "s"}
    for columns in contract.meanings().values():
        for column, (unit, _) in columns.items():
            for ending, wanted in endings.items():
                assert not column.endswith(ending) or unit == wanted, column


def test_contract_json_is_what_the_files_are(made: Output) -> None:
    loaded = json.loads((made.folder / "contract.json").read_text())
    assert loaded == contract.contract()
    for name, table in loaded["tables"].items():
        given = pq.ParquetFile(files(made, name)[0]).schema_arrow
        assert [(c["name"], c["nullable"]) for c in table["columns"]] == [
            (field.name, field.nullable) for field in given
        ]
    assert all(keys.path_name(name) == name for name in loaded["tables"])


def test_croissant_describes_every_column() -> None:
    """The keys that Croissant 1.0 asks for; `mlcroissant validate` has no error on it either."""
    loaded = json.loads(front.files()["croissant.json"])
    assert loaded["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert {"@context", "@type", "name", "description", "distribution"} <= set(loaded)
    ids = [entry["@id"] for entry in loaded["distribution"]]
    for records in loaded["recordSet"]:
        name = records["name"]
        assert [f["name"] for f in records["field"]] == contract.schema(name).names
        for field in records["field"]:
            assert field["source"]["fileSet"]["@id"] in ids
            assert ("dataType" in field) != ("subField" in field)


def test_writing_the_front_again_changes_nothing(made: Output, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "out"))
    before = {name: (folder / name).stat().st_mtime_ns for name in front.files()}
    front.write(storage.canonical(str(folder)))
    assert {name: (folder / name).stat().st_mtime_ns for name in front.files()} == before
    (folder / "README.md").write_text("spoilt")
    front.write(storage.canonical(str(folder)))
    assert (folder / "README.md").read_bytes() == front.files()["README.md"]


def test_the_readme_shows_what_runs(made: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the README runs in the folder; every line for DuckDB too."""
    monkeypatch.chdir(made.folder)
    (model,) = (made.folder / "embeddings").iterdir()
    text = (made.folder / "README.md").read_text().replace("model=MODEL", model.name)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        found: dict[str, Any] = {}
        exec(block, found)  # noqa: S102 - our own README
        assert found["vectors"].shape == (made.nights[-1][1].live, 16)
    key = pd.read_parquet("manifest")["key"][0]
    with duckdb.connect() as connection:
        connection.execute(Path("views.sql").read_text())
        for line in re.findall(r"^FROM .*", text, re.MULTILINE):
            assert asked(connection, line.replace("'KEY'", f"'{key}'")), line


def test_the_page_of_the_contract_is_up_to_date() -> None:
    """`python -m tests.contract_page` writes it again."""
    assert DOCS.read_text().endswith(contract.page())
