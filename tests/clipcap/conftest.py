"""What several test files of the library share: one finished output, made once."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap.front import contract
from clipcap.layout import Table
from tests import outputs
from tests.outputs import Output


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """A finished output of three nights; nobody changes it."""
    return outputs.build(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def rows(made: Output) -> dict[Table, pa.Table]:
    """Every row of every table, read file by file without any of the engines under test."""
    return {
        name: pa.concat_tables(pq.ParquetFile(path).read() for path in outputs.files(made, name))
        for name in contract.TABLES
    }


@pytest.fixture
def database(made: Output) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that has run `views.sql` from somewhere else."""
    with duckdb.connect() as connection:
        connection.execute("SET VARIABLE clipcap = ?", [str(made.folder)])
        connection.execute((made.folder / "views.sql").read_text())
        yield connection
