"""Rows in, Parquet bytes by the contract out, and back: every table's schema, types and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipcap import storage
from clipcap.errors import DamagedError, SettingsError
from clipcap.layout import CONTRACT, Table
from clipcap.settings import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROW_GROUP: Final = 131_072
EMBEDDING_ROW_GROUP: Final = 8_192  # about 16 MB raw: viewers refuse larger ones
_FOOTER_GUESS: Final = 65_536  # one ranged read gets nearly every footer whole
SEAL: Final = "footer_sha256"
"""Key of the footer that has the digest of all the others; objects of older versions lack it."""
BROKEN: Final = (pa.ArrowException, OSError, ValueError)
"""What reading bytes raises that are no whole Parquet file."""
_WORTH_THREADS: Final = 2**20  # bytes: a table of a few rows takes twice as long with them
TIME: Final = pa.timestamp("us", tz="UTC")
STRINGS: Final = pa.list_(pa.field("element", pa.string()))
_CANDIDATES: Final = pa.list_(
    pa.field(
        "element",
        pa.struct(
            [("text", pa.string()), ("logprob_mean", pa.float32()), ("clip_score", pa.float32())]
        ),
    )
)
_STAGE_SECONDS: Final = pa.list_(
    pa.field("element", pa.struct([("stage", pa.string()), ("seconds", pa.float64())]))
)
_TYPES: Final[dict[str, pa.DataType]] = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": TIME,
    "strings": STRINGS,
    "candidates": _CANDIDATES,
    "stage_seconds": _STAGE_SECONDS,
}

_MANIFEST: Final = """
image_id! string; key! string; source_uri! string; source_etag string; source_modified_at timestamp;
source_bytes int64; content_sha256! string; phash string; shard! string; member! string;
member_offset! int64; member_bytes! int64; media_type! string; width! int32; height! int32;
original_width! int32; original_height! int32; exif string; taken_at timestamp;
reference_captions strings; frame_of string; frame_ms int64; flags strings; duplicate_of string;
first_seen_at! timestamp; run_id! string; extra_json string"""

_CAPTIONS: Final = """
image_id! string; key! string; source_uri! string; content_sha256! string; caption string;
caption_raw string; status! string; clip_score float32; logprob_mean float32; token_count int32;
finish_reason string; candidates candidates; captioner_id! string; captioner_sha256! string;
review_reasons strings; created_at! timestamp; run_id! string; extra_json string"""

_LABELS: Final = """
image_id! string; key! string; label_set! string; label! string; label_index! int32; rank! int32;
score! float32; similarity! float32; margin float32; accepted! bool; model_id! string;
label_set_sha256! string; created_at! timestamp; run_id! string; content_sha256! string;
extra_json string"""

_REJECTS: Final = """
source_uri! string; image_id string; key string; stage! string; reason! string; error_type string;
error_message string; retryable! bool; attempts! int32; source_bytes int64; head_hex string;
shard string; rejected_at! timestamp; run_id! string; extra_json string"""

_RUNS: Final = """
run_id! string; flow_run_id string; flow_run_name string; deployment string; flow! string;
trigger! string; state! string; started_at! timestamp; ended_at timestamp; duration_s float64;
listed! int64; new! int64; changed! int64; deleted! int64; unchanged! int64; embedded! int64;
captioned! int64; labelled! int64; rejected! int64; shards_written! int64; bytes_read int64;
bytes_written int64; images_per_second float64; gpu_seconds float64; peak_gpu_bytes int64;
device string; host string; stage_seconds stage_seconds; model_ids strings; params_json! string;
versions_json! string; git_commit string; error_message string; report_uri string;
extra_json string"""

_SHARD_RUNS: Final = """
run_id! string; shard! string; stage! string; state! string; rows! int64; rejected! int64;
attempts! int32; worker string; started_at! timestamp; duration_s! float64; output_uri string;
output_sha256 string; extra_json string"""


def _schema(text: str) -> pa.Schema:
    """Return the schema that a line of the contract stands for (`!`: not nullable)."""
    fields = []
    for column in text.replace("\n", " ").split(";"):
        name, kind = column.split()
        fields.append(pa.field(name.rstrip("!"), _TYPES[kind], nullable=not name.endswith("!")))
    return pa.schema(fields)


SCHEMAS: Final[dict[Table, pa.Schema]] = {
    "manifest": _schema(_MANIFEST),
    "captions": _schema(_CAPTIONS),
    "labels": _schema(_LABELS),
    "rejects": _schema(_REJECTS),
    "runs": _schema(_RUNS),
    "shard_runs": _schema(_SHARD_RUNS),
}


def embeddings_schema(dim: int) -> pa.Schema:
    """Return the schema of the embeddings of a model of width `dim`."""
    text = "image_id! string; key! string; content_sha256! string; model_id! string"
    vector = pa.field("embedding", vector_type(dim), nullable=False)
    rest = _schema("embedding_norm! float32; run_id! string; extra_json string")
    return pa.schema([*_schema(text), vector, *rest])


def vector_type(dim: int) -> pa.DataType:
    """Return the type of the column `embedding`: `dim` numbers, none of them null."""
    return pa.list_(pa.field("element", pa.float32(), nullable=False), dim)


def from_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table with every column of the schema; a column that no row names is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def from_columns(
    columns: Mapping[str, Any], same: Mapping[str, Any], schema: pa.Schema
) -> pa.Table:
    """Return a table of columns, and of values that are the same in every row.

    A column that neither names is null.
    """
    count = len(next(iter(columns.values())))
    made = [
        pa.array(columns[one.name]).cast(one.type) if one.name in columns
        else pa.repeat(pa.scalar(same.get(one.name), one.type), count)
        for one in schema
    ]  # fmt: skip
    return pa.Table.from_arrays(made, schema=schema)


def numbered(table: pa.Table, times: int, name: str) -> pa.Table:
    """Return each row so many times, with its number among them (from 0) as one more column."""
    row_R, number_R = np.divmod(np.arange(table.num_rows * times, dtype=np.int32), times)
    return table.take(pa.array(row_R)).append_column(name, pa.array(number_R))


def to_bytes(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """Return a Parquet file by the contract, `metadata` in its footer.

    The same table and metadata give the same bytes.
    """
    has_vectors = "embedding" in table.schema.names
    signed = {"contract": str(CONTRACT), **metadata}
    signed[SEAL] = seal(signed)
    kept = {k.encode(): v.encode() for k, v in signed.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(kept),
        sink,
        row_group_size=EMBEDDING_ROW_GROUP if has_vectors else ROW_GROUP,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in table.schema.names if name != "embedding"],
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"} if has_vectors else None,
        write_page_index=True,
        write_page_checksum=True,
        version="2.6",
        data_page_version="1.0",
    )
    return bytes(sink.getvalue().to_pybytes())


def seal(metadata: Mapping[str, str]) -> str:
    """Return the digest of a footer's keys but the seal: a changed letter in it is seen."""
    return digest({name: text for name, text in metadata.items() if name != SEAL})


def read(url: str, columns: list[str] | None = None) -> pa.Table:
    """Return a table, or some of its columns; the checksum of each page is held against it.

    Raises:
        NotFoundError: it is not there.
        DamagedError: it is not a whole Parquet file.
        SettingsError: a newer version of this project wrote it.
    """
    return whole(url, columns)[0]


def whole(url: str, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, str]]:
    """Return what `read` does, and the key-value metadata of the footer; of one request both.

    `metadata` of the table is the other copy of these: Parquet holds them twice.
    """
    data = storage.read(url)
    try:
        table, found = _parsed(data, tuple(columns) if columns is not None else None)
        signed, footer = metadata(table), _as_text(found)
    except BROKEN as error:
        raise damaged(url, str(error).partition("\n")[0][:200]) from error
    require_known(url, signed)
    return table, footer


def _parsed(data: bytes, columns: tuple[str, ...] | None) -> tuple[pa.Table, dict[bytes, bytes]]:
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    table = file.read(columns, use_threads=len(data) > _WORTH_THREADS)
    return table, file.metadata.metadata or {}


def damaged(url: str, why: str) -> DamagedError:
    """Return the error that says what to do about an object that is not whole."""
    return DamagedError(
        f"{url} must be a whole Parquet file, but is damaged: {why}. In an output, "
        "`clipcap verify OUT --repair` takes it away, and the next run makes it anew."
    )


def require_known(url: str, footer: Mapping[str, str]) -> None:
    """Do nothing where an object is of a contract that this code knows.

    Raises:
        SettingsError: a newer version of this project wrote it.
    """
    found, producer = footer.get("contract", ""), footer.get("producer", "")
    if found.isdecimal() and int(found) > CONTRACT:
        by = producer or "a newer clipcap"
        raise SettingsError(
            f"{url} must be of contract {CONTRACT} or an older one, which is what this clipcap "
            f"knows, but {by} wrote it under contract {found}. Nothing was changed. Upgrade "
            "clipcap here and on every worker."
        )


def metadata(table: pa.Table) -> dict[str, str]:
    """Return the key-value metadata of a table that was read."""
    return _as_text(table.schema.metadata)


def _as_text(found: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (found or {}).items() if k != b"ARROW:schema"}


def footer(url: str) -> tuple[dict[str, str], int]:
    """Return the key-value metadata and the number of rows, with one small ranged read.

    Raises:
        NotFoundError: it is not there.
        DamagedError: it is not a Parquet file.
        SettingsError: a newer version of this project wrote it.
    """
    tail = storage.read_range(url, -_FOOTER_GUESS, None)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1":
        raise damaged(url, "it does not end like one")
    if length > len(tail):
        tail = storage.read_range(url, -length, None)
    try:
        found, rows = _parsed_footer(tail[-length:])
        signed = _as_text(found)
    except BROKEN as error:
        raise damaged(url, str(error).partition("\n")[0][:200]) from error
    require_known(url, signed)
    return signed, rows


def _parsed_footer(data: bytes) -> tuple[dict[bytes, bytes], int]:
    found = pq.read_metadata(pa.BufferReader(data))
    return found.metadata or {}, int(found.num_rows)


def vectors(table: pa.Table) -> NDArray[np.float32]:
    """Return the column `embedding` as `embedding_BD`, a copy of its own."""
    size = table.schema.field("embedding").type.list_size
    embedding_BD, at = np.empty((table.num_rows, size), np.float32), 0
    for chunk in table["embedding"].chunks:  # joined first they would be copied twice
        embedding_BD[at : at + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, size)
        at += len(chunk)
    return embedding_BD
