"""Many small shards in, how fast they become few out, against a plain copy of the same bytes.

    python -m bench.compaction --shards 32 --images 100 --image-bytes 80000

Images are random bytes, each shard of its own night; embeddings of 512 numbers lie beside them.
Memory is the high-water mark of the process above what it held before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipcap import commits, keys, layout, manifest, shards, snapshots, storage, tables
from clipcap.commits import Fingerprint
from clipcap.footers import Footers
from clipcap.layout import Run, Shard
from clipcap.stages.compact import CompactSettings, compact

DIM = 512
SETTINGS = CompactSettings(within="year", settled_days=0)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--image-bytes", type=int, default=80_000)
    parser.add_argument("--at", help="folder on the disk to measure", default=None)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.at) as place:
        out = storage.canonical(f"{place}/out")
        for number in range(chosen.shards):
            fill(out, number, chosen.images, chosen.image_bytes)
        run = Run("bench", out, "2026-01-01")
        snapshots.publish(run, Footers(out).entries())
        tars = [storage.local_path(one.url) for one in storage.listed(layout.tars(out))]
        size = sum(one.size_bytes for one in storage.listed(layout.tars(out)))
        target = Path(place) / "copy.tar"
        told("copy and fsync", size, lambda: copy([one for one in tars if one], target))
        before = peak()
        told("compact", size, lambda: compact(run, settings=SETTINGS, write=True))
        print(f"{len(manifest.shards(out))} shards, {(peak() - before) / 1e6:,.0f} MB more memory")


def fill(out: str, number: int, images: int, image_bytes: int) -> None:
    """Write the shard of one night."""
    rng = np.random.default_rng(number)
    shard = Shard((date(2026, 1, 1) + timedelta(days=number)).isoformat(), f"{number:016x}")
    run = Run(f"night-{number}", out, shard.dt)
    uris = [f"s3://source/{number}/{n}.jpg" for n in range(images)]
    files = [(keys.sample_key(uri), "jpg", rng.bytes(image_bytes)) for uri in uris]
    tar, members = shards.parts(files)
    storage.write(layout.tar(out, shard), *tar)
    by_key = {key: (data, uri) for (key, _, data), uri in zip(files, uris, strict=True)}
    rows = [row(member, *by_key[member.name.partition(".")[0]], shard) for member in members]
    table = tables.from_rows(rows, tables.SCHEMAS["manifest"])
    live = manifest.publish(table, shard, run=run, source="s3://source")
    commits.publish(
        layout.embeddings(out, shard, model_id="random"),
        embedded(table, rng),
        fingerprint=Fingerprint("recipe", live.metadata["members"]),
        run_id=run.run_id,
        metadata={"members": live.metadata["members"]},
    )


def row(member: shards.Member, data: bytes, uri: str, shard: Shard) -> dict[str, object]:
    """Return the row of one image."""
    sizes = dict.fromkeys(("width", "height", "original_width", "original_height"), 640)
    return sizes | {
        "image_id": keys.image_id(uri),
        "key": keys.sample_key(uri),
        "source_uri": uri,
        "content_sha256": hashlib.sha256(data).hexdigest(),
        "shard": shard.name,
        "member": member.name,
        "member_offset": member.offset,
        "member_bytes": member.length,
        "media_type": "image/jpeg",
        "first_seen_at": datetime.now(UTC),
        "run_id": "bench",
    }


def embedded(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Return random embeddings of the images of a manifest."""
    vectors = rng.standard_normal((table.num_rows, DIM), np.float32).astype(np.float16)
    flat = pa.array(vectors.astype(np.float32).ravel())
    columns = {name: table[name] for name in ("image_id", "key", "content_sha256")}
    columns |= {
        "embedding": pa.FixedSizeListArray.from_arrays(flat, type=tables.vector_type(DIM)),
        "embedding_norm": pa.array(np.ones(table.num_rows, np.float32)),
    }
    same = {"model_id": "random", "run_id": "bench"}
    return tables.from_columns(columns, same, tables.embeddings_schema(DIM))


def copy(tars: list[Path], target: Path) -> None:
    """Write all tars into one file, as `cat` does, onto the disk for sure."""
    with target.open("wb") as stream:
        for tar in tars:
            with tar.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())


def told(name: str, size: int, call: Callable[[], object]) -> None:
    """Call, and print how long it took."""
    wall, used = time.perf_counter(), cpu()
    call()
    wall_s, cpu_s = time.perf_counter() - wall, cpu() - used
    print(
        f"{name}: {size / 1e6:,.0f} MB in {wall_s:.2f} s ({size / 1e6 / wall_s:,.0f} MB/s), "
        f"{cpu_s:.2f} CPU s ({size / 1e6 / cpu_s:,.0f} MB per CPU s)"
    )


def cpu() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak() -> int:
    """Return the largest memory that this process has had, in bytes."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
