"""A published output in; beside each table a Delta log that names its Parquet files, in versions.

The files stay where they are, and a commit is one JSON object written only if there is none: two at
once cannot both have one version. The log holds no Parquet of its own (no checkpoints), so that a
glob over a table reads what it read before. The library deltalake reads the state of a log; it is
asked nothing else.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any, Final

import pyarrow as pa

import clipcap
from clipcap import conditions, layout, manifest, s3, storage
from clipcap.errors import ClipcapError, SettingsError, StorageError
from clipcap.front import contract
from clipcap.layout import PER_SHARD, Table
from clipcap.refusals import translated

log = logging.getLogger(__name__)

PROTOCOLS: Final = ("file", "s3", "s3a", "gs", "az")
_TRIES: Final = 10  # of others who committed first
_PARTITION: Final = re.compile(r"([^/=]+)=([^/]*)/")
_NEVER: Final = "1000000000"


@dataclass(frozen=True, slots=True)
class File:
    """A file as a Delta log has it: its size, and when it was written, in ms since 1970."""

    size_bytes: int
    modified_ms: int


@dataclass(frozen=True, slots=True)
class State:
    """What the newest version of a log names; version -1: there is none yet."""

    version: int
    table_id: str
    schema: str
    files: Mapping[str, File]


@dataclass(frozen=True, slots=True)
class Due:
    """The next commit of a log; none is due without actions."""

    version: int
    actions: list[dict[str, Any]]


def require(out: str) -> None:
    """Refuse, before any work, an output that cannot have Delta logs.

    Raises:
        SettingsError: deltalake is not installed, or the store keeps writes not apart.
        StorageError: the output cannot be written to.
    """
    protocol = storage.canonical(out).partition("://")[0]
    if protocol not in PROTOCOLS:
        raise SettingsError(
            f"Delta tables lie on this disk, S3, Google Cloud or Azure, but {out} begins with "
            f"{protocol}://. Set publish.table_format to `parquet`."
        )
    if find_spec("deltalake") is None:
        raise SettingsError(
            "publish.table_format `delta` needs the library deltalake, but it is not installed: "
            "`pip install deltalake`."
        )
    conditions.require(out, "Delta")


def register(out: str, rows: Mapping[str, int], *, run_id: str) -> int:
    """Bring the Delta log of every table to the files that are there; return how many changed.

    Args:
        out: the canonical URL of the output.
        rows: how many rows a file has, by its path below the output, where that is known.
        run_id: of the run whose commits these are.

    Raises:
        SettingsError: see `require`.
        StorageError: a log cannot be read or written.
        ClipcapError: others commit all the time.
    """
    due = {name: _due(out, name, rows) for name in PER_SHARD}
    if any(found.actions for found in due.values()):
        require(out)
    return sum(_committed(out, name, found, rows, run_id) for name, found in due.items())


def follow(out: str, *, run_id: str) -> int:
    """Bring the logs up to date where an output has some: for what changes files between nights.

    Args:
        out: the canonical URL of the output.
        run_id: of what changed them.

    Raises:
        SettingsError: the output has logs, but deltalake is not installed.
        StorageError: a log cannot be read or written.
    """
    if not any(storage.listed(_log(out, name)) for name in PER_SHARD):
        return 0
    require(out)
    return register(out, {}, run_id=run_id)


def _committed(out: str, name: Table, due: Due, rows: Mapping[str, int], run_id: str) -> bool:
    """Commit what a log lacks; tell whether there was anything left to commit."""
    for _ in range(_TRIES):
        if not due.actions:
            return False
        lines = [_commit_info(run_id), *due.actions]
        data = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines).encode()
        if storage.create(f"{_log(out, name)}/{due.version:020d}.json", data):
            count = sum("add" in line or "remove" in line for line in due.actions)
            log.info("delta: %s has version %d: %d files changed", name, due.version, count)
            return True
        due = _due(out, name, rows)
    raise ClipcapError(f"Others commit to {_log(out, name)} all the time. Run again.")


def _due(out: str, name: Table, rows: Mapping[str, int]) -> Due:
    """Return what the next commit of a table must say; files are listed after the log was read."""
    state, root = _state(out, name), layout.table(out, name)
    there = {
        found.url.removeprefix(f"{root}/"): File(found.size_bytes, _milliseconds(found.modified_at))
        for found in manifest.objects(out, name)
    }
    actions: list[dict[str, Any]] = []
    if there or state.version >= 0:
        schema = _schema(name)
        actions += [] if state.schema == schema else _table(name, schema, state)
    for path in sorted(state.files.keys() - there.keys()):
        actions.append({"remove": _removed(path, state.files[path])})
    for path, file in there.items():
        if state.files.get(path) != file:
            actions.append({"add": _added(path, file, rows.get(f"{name}/{path}"))})
    return Due(state.version + 1, actions)


def _state(out: str, name: Table) -> State:
    """Return what the log of a table says now.

    Raises:
        StorageError: it cannot be read.
    """
    if not storage.listed(_log(out, name)):
        return State(-1, "", "", {})
    from deltalake import DeltaTable  # noqa: PLC0415 - the extra
    from deltalake.exceptions import DeltaError  # noqa: PLC0415

    root = layout.table(out, name)
    path = storage.local_path(root)
    try:
        found = DeltaTable(str(path) if path else root, storage_options=options(root))
        files = pa.table(found.get_add_actions())
        schema = json.dumps(json.loads(found.schema().to_json()), sort_keys=True)
    except (DeltaError, OSError) as error:
        raise StorageError(
            f"Cannot read the Delta log of {root} ({type(error).__name__}). If it is damaged, "
            f"remove {root}/_delta_log: the next run makes a new one of the files that are there."
        ) from error
    times = files["modification_time"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist()
    sizes = files["size_bytes"].to_pylist()
    pairs = map(File, sizes, times)
    paths = files["path"].to_pylist()
    return State(
        found.version(), str(found.metadata().id), schema, dict(zip(paths, pairs, strict=True))
    )


def options(url: str) -> dict[str, str]:
    """Return how deltalake opens a store with the keys of this environment.

    Those of Google and Azure it finds by itself. They hold secrets: never log them.

    Raises:
        StorageError: there are no keys, or the store does not answer.
    """
    protocol, _, rest = url.partition("://")
    if not protocol.startswith("s3"):
        return {}
    with translated("get", url):
        bucket = s3.bucket(rest.partition("/")[0], s3.environment(), storage.DEADLINE_S)
        keys = bucket.account.keys()
    is_virtual = bucket.base.partition("://")[2].startswith(f"{bucket.name}.")
    found = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
        "AWS_REGION": bucket.region,
        "AWS_ENDPOINT_URL": bucket.account.endpoint,
        "AWS_ALLOW_HTTP": "true" if bucket.account.endpoint.startswith("http://") else "",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(is_virtual).lower(),
    }
    return {name: value for name, value in (found | _patience()).items() if value}


def _patience() -> dict[str, str]:
    """Return how long one request of deltalake may take, with all its tries: as any other."""
    quarter = storage.DEADLINE_S / 4
    return {
        "connect_timeout": f"{quarter:.0f}s",
        "timeout": f"{quarter:.0f}s",
        "retry_timeout": f"{3 * quarter:.0f}s",
        "max_retries": "3",
    }


def _log(out: str, name: Table) -> str:
    return f"{layout.table(out, name)}/_delta_log"


def _schema(name: Table) -> str:
    """Return a table's schema as Delta writes it, the columns of its paths last."""
    from deltalake import Schema  # noqa: PLC0415 - the extra

    fields = json.loads(Schema.from_arrow(contract.schema(name)).to_json())["fields"]
    for key in contract.hive_keys(name):
        kind = "date" if key == "dt" else "string"
        fields.append({"name": key, "type": kind, "nullable": True, "metadata": {}})
    return json.dumps({"type": "struct", "fields": fields}, sort_keys=True)


def _table(name: Table, schema: str, state: State) -> Iterator[dict[str, Any]]:
    """Yield the actions that make a table, or give it another schema."""
    if state.version < 0:
        yield {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}
    yield {
        "metaData": {
            "id": state.table_id or str(uuid.uuid4()),
            "name": name,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": schema,
            "partitionColumns": contract.hive_keys(name),
            "configuration": {"delta.checkpointInterval": _NEVER},
            "createdTime": _now(),
        }
    }


def _added(path: str, file: File, rows: int | None) -> dict[str, Any]:
    stats = {} if rows is None else {"stats": json.dumps({"numRecords": rows})}
    return {
        "path": path,
        "partitionValues": dict(_PARTITION.findall(path)),
        "size": file.size_bytes,
        "modificationTime": file.modified_ms,
        "dataChange": True,
        **stats,
    }


def _removed(path: str, file: File) -> dict[str, Any]:
    return {
        "path": path,
        "deletionTimestamp": _now(),
        "dataChange": True,
        "extendedFileMetadata": True,
        "partitionValues": dict(_PARTITION.findall(path)),
        "size": file.size_bytes,
    }


def _commit_info(run_id: str) -> dict[str, Any]:
    return {
        "commitInfo": {
            "timestamp": _now(),
            "operation": "WRITE",
            "operationParameters": {"mode": "Append"},
            "engineInfo": f"clipcap/{clipcap.__version__}",
            "runId": run_id,
        }
    }


def _now() -> int:
    return time.time_ns() // 1_000_000


def _milliseconds(at: datetime | None) -> int:
    return round(at.timestamp() * 1_000) if at else 0
