"""Numbers of objects in; what a night costs that only has to find out what changed, out.

    python -m bench.incremental 10000 100000 1000000 10000000

For each N an output and an S3 Inventory are made: N objects are listed, of which 1 % are new and
0.5 % have changed; 0.2 % more are known and gone. Then a fresh process does what a night does, from
the inventory's manifest to the written plan, and another one brings an index up to date, 1 % of
whose manifests are new. CPU seconds are those of all threads of the process; peak memory is the
kernel's high-water mark of it. 10 million objects need 5 GB of disk for the while.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from clipcap import index, manifest, scratch, storage, tables
from clipcap.layout import Run, Shard
from clipcap.stages import shard as stage

BUCKET = "photos-production"
SHARD = 2_000
FILE = 1_000_000  # rows of one inventory file
_OBJECTS = """
SELECT i, CASE i % 3
    WHEN 0 THEN printf('uploads/%04d/%02d/%02d/%s/original.jpg', 2019 + i % 7, 1 + i % 12,
                       1 + i % 28, md5(i::VARCHAR)[:16])
    WHEN 1 THEN printf('catalogue/sku-%07d/IMG_2024%02d%02d_%06d.jpg', i // 5, 1 + i % 12,
                       1 + i % 28, i % 240000)
    ELSE printf('cameras/%03d/%04d/%09d.png', i % 400, i // 1000, i) END AS key,
    md5(i::VARCHAR || 'content') AS etag, 30000 + (i * 7919) % 900000 AS size,
    TIMESTAMPTZ '2024-01-01 00:00:00+00' + INTERVAL (i) SECOND AS modified_at
FROM range({first}, {last}) t(i)"""


def main() -> None:
    """Read the command line, measure each size in processes of their own, print Markdown rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help="where the output and the inventory are made")
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(_CHILDREN[chosen.child[0]](Path(chosen.child[1]))))
        return
    print(
        "| objects listed | CPU s | of which listing, index | wall s | peak MB | to do, leaving | "
        "index bytes/object | index from nothing, CPU s | 1 % of manifests new, CPU s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
            place = Path(name)
            _make(place, size)
            built = _in_process("index", place)
            night = _in_process("night", place)
            _add_manifests(place, size)
            updated = _in_process("index", place)
            print(_row(size, night, built, updated), flush=True)


def _row(size: int, night: dict[str, Any], built: dict[str, Any], updated: dict[str, Any]) -> str:
    cells = [
        f"{size:,}",
        f"{night['cpu_s']:.1f}",
        f"{night['listing_s']:.1f}, {night['index_s']:.1f}",
        f"{night['wall_s']:.1f}",
        f"{night['peak_mb']:.0f}",
        f"{night['todo']:,}, {night['deleted']:,}",
        f"{built['bytes'] / built['rows']:.1f}",
        f"{built['cpu_s']:.1f}",
        f"{updated['cpu_s']:.1f} (wall {updated['wall_s']:.1f})",
    ]
    return f"| {' | '.join(cells)} |"


def _in_process(what: str, place: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.incremental", "--child", what, str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    status = Path("/proc/self/status").read_text()
    peak_kb = int(status.partition("VmHWM:")[2].split()[0])
    return found | {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": peak_kb / 1e3,
    }


def _night(place: Path) -> dict[str, Any]:
    """Do what a night does before its first image is read."""
    run = Run("bench", storage.canonical(str(place / "out")), "2026-01-02")
    options = {"bucket_url": f"s3://{BUCKET}"}
    settings = stage.ShardSettings(kind="inventory", options=options)
    spent: dict[str, float] = {}

    def work() -> dict[str, Any]:
        with _timed(scratch.Spool, "extend", spent), _timed(index, "load", spent):
            plan = stage.plan(f"{place}/inventory/day/manifest.json", run=run, settings=settings)
        return {"todo": plan.new + plan.changed, "deleted": plan.deleted, "listed": plan.listed}

    found = _measured(work)
    return found | {"listing_s": spent["extend"], "index_s": spent["load"]}


@contextmanager
def _timed(
    owner: Any,  # noqa: ANN401 - a module or a class
    name: str,
    spent: dict[str, float],
) -> Iterator[None]:
    """Add up the CPU seconds of every call of a function."""
    function = getattr(owner, name)

    def timed(*args: Any) -> Any:  # noqa: ANN401 - as the function
        began = time.process_time()
        try:
            return function(*args)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - began

    setattr(owner, name, timed)
    yield
    setattr(owner, name, function)


def _index(place: Path) -> dict[str, Any]:
    """Bring the index of an output up to date."""

    def work() -> dict[str, Any]:
        with scratch.opened(scratch.ScratchSettings()) as here:
            out = storage.canonical(str(place / "out"))
            known = index.load(out, here)
            index.store(known)
            return {"rows": known.live(f"s3://{BUCKET}")}

    found = _measured(work)
    parts = (place / "out" / "_index").glob("*.parquet")
    return found | {"bytes": sum(part.stat().st_size for part in parts)}


_CHILDREN = {"night": _night, "index": _index}


def _make(place: Path, size: int) -> None:
    """Write an inventory of `size` objects, and the manifests of the night before."""
    folder = place / "inventory" / "data"
    folder.mkdir(parents=True)
    (place / "inventory" / "day").mkdir()
    files = []
    with duckdb.connect() as database:
        for first in range(0, size, FILE):
            path = folder / f"{first}.parquet"
            rows = _OBJECTS.format(first=first, last=min(first + FILE, size))
            database.execute(
                f"COPY (SELECT '{BUCKET}' AS bucket, key, true AS is_latest, "
                "false AS is_delete_marker, size, modified_at AS last_modified_date, "
                "if(i % 200 = 3, md5(etag), etag) AS e_tag, 'STANDARD' AS storage_class "
                f"FROM ({rows})) TO '{path}' (FORMAT parquet, COMPRESSION snappy)"
            )
            md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            files.append({"key": f"data/{path.name}", "MD5checksum": md5})
        said = {
            "sourceBucket": BUCKET,
            "destinationBucket": "arn:aws:s3:::inventories",
            "fileFormat": "Parquet",
            "fileSchema": "",
            "creationTimestamp": "1767300000000",
            "files": files,
        }
        (place / "inventory" / "day" / "manifest.json").write_text(json.dumps(said))
        _write_manifests(place, database, 0, size + size // 500, "2026-01-01")


def _add_manifests(place: Path, size: int) -> None:
    """Write 1 % more manifests, as a night does."""
    with duckdb.connect() as database:
        _write_manifests(place, database, 2 * size, 2 * size + size // 100, "2026-01-03")


def _write_manifests(
    place: Path, database: duckdb.DuckDBPyConnection, first: int, last: int, dt: str
) -> None:
    run = Run("bench", storage.canonical(str(place / "out")), dt)
    query = _OBJECTS.format(first=first, last=last)
    reader = database.sql(
        f"SELECT 's3://{BUCKET}/' || key AS uri, etag, size, modified_at, sha256(key) AS sha "
        f"FROM ({query}) WHERE i % 100 <> 7"
    ).to_arrow_reader(SHARD)
    for number, batch in enumerate(reader):
        shard = Shard(dt, f"{number:016x}")
        manifest.publish(_manifest(batch, shard), shard, run=run, source=f"s3://{BUCKET}")


def _manifest(batch: pa.RecordBatch, shard: Shard) -> pa.Table:
    """Return a manifest as full as those of photographs."""
    now = pa.scalar(1_767_225_600_000_000, tables.TIME)
    exif = '{"Make": "Canon", "Model": "EOS 5D", "FNumber": 4.0, "Lens": "%s"}'
    rows = batch.num_rows
    digests = batch["sha"].to_pylist()
    columns: dict[str, Any] = {
        "image_id": [text[:32] for text in digests],
        "key": [f"IMG-{text[:12]}" for text in digests],
        "source_uri": batch["uri"],
        "source_etag": batch["etag"],
        "source_modified_at": batch["modified_at"].cast(tables.TIME),
        "source_bytes": batch["size"],
        "content_sha256": digests,
        "phash": [text[:16] for text in digests],
        "shard": [shard.name] * rows,
        "member": [f"IMG-{text[:12]}.jpg" for text in digests],
        "member_offset": list(range(512, 512 + rows * 200_000, 200_000)),
        "member_bytes": batch["size"],
        "media_type": ["image/jpeg"] * rows,
        "exif": [exif % text[:6] for text in digests],
        "first_seen_at": pa.repeat(now, rows),
        "run_id": ["bench"] * rows,
        **{
            name: pa.repeat(pa.scalar(1024, pa.int32()), rows)
            for name in ("width", "height", "original_width", "original_height")
        },
    }
    schema = tables.SCHEMAS["manifest"]
    arrays = [
        columns[name] if name in columns else pa.nulls(rows, schema.field(name).type)
        for name in schema.names
    ]
    return pa.table(arrays, schema=schema)


if __name__ == "__main__":
    main()
