"""A bucket in, objects per second of client CPU out: listing, reading, and packing into tars.

    python -m bench.objects
    python -m bench.objects --ceph
    python -m bench.objects --reference /tmp/s3fs/bin/python

The server is a process of its own: by default a stand-in that answers every GET with 60 KB and
lists as many keys as are asked for, so that it is not what limits; with `--ceph` the real server of
the tests. Only the client's CPU counts (`process_time`, all threads). Every figure is measured in a
fresh process, the median of `--repeats`. The reference is s3fs with webdataset's ShardWriter, in a
Python that has both.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, cast
from urllib.parse import parse_qs

SIZE_BYTES = 60_000
PER_TAR = 1_000
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def key(number: int) -> str:
    """Return the key of an object."""
    return f"images/{number // 1_000:05d}/{number:09d}.jpg"


def list_batches(bucket: str, count: int) -> None:
    """List with Arrow."""
    from clipcap import storage

    _require(sum(batch.num_rows for batch in storage.list_batches(bucket)), count)


def list_objects(bucket: str, count: int) -> None:
    """List sorted, a Python object each."""
    from clipcap import storage

    _require(sum(1 for _ in storage.list_objects(bucket)), count)


def list_s3fs(bucket: str, count: int) -> None:
    """List as storage did before: s3fs."""
    import s3fs

    _require(len(s3fs.S3FileSystem().find(bucket, detail=True)), count)


def read(bucket: str, count: int) -> None:
    """Read whole objects into memory."""
    _require(sum(1 for _ in _objects(bucket, range(count))), count)


def tars(bucket: str, count: int) -> None:
    """Read, hash and pack."""
    from clipcap import shards

    for start in range(0, count, PER_TAR):
        numbers = range(start, min(start + PER_TAR, count))
        files = []
        for number, data in zip(numbers, _objects(bucket, numbers), strict=True):
            hashlib.sha256(data).hexdigest()
            files.append((f"{number:09d}", "jpg", data))
        shards.pack(files)


def read_s3fs(bucket: str, count: int) -> None:
    """Read as storage did before: `cat_file`, 16 at a time."""
    _require(sum(1 for _ in _objects_s3fs(bucket, range(count))), count)


def tars_s3fs(bucket: str, count: int) -> None:
    """Read with s3fs, hash, and pack with webdataset's ShardWriter."""
    import webdataset

    with tempfile.TemporaryDirectory() as folder:
        pattern = f"{folder}/%06d.tar"
        with webdataset.ShardWriter(pattern, maxcount=PER_TAR, verbose=0) as writer:
            for number, data in enumerate(_objects_s3fs(bucket, range(count))):
                hashlib.sha256(data).hexdigest()
                writer.write({"__key__": f"{number:09d}", "jpg": data})


MEASURES: dict[str, tuple[str, Callable[[str, int], None]]] = {
    "list_batches": ("list, `storage.list_batches`", list_batches),
    "list_objects": ("list sorted, `storage.list_objects`", list_objects),
    "list_s3fs": ("list, s3fs", list_s3fs),
    "read": ("bucket to memory, `storage.read`", read),
    "read_s3fs": ("bucket to memory, s3fs", read_s3fs),
    "tars": ("bucket to tar, with sha256", tars),
    "tars_s3fs": ("bucket to tar, s3fs and ShardWriter, with sha256", tars_s3fs),
}


def _require(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"{found} objects instead of {wanted}")


def _objects(bucket: str, numbers: range) -> Iterator[bytes]:
    from concurrent.futures import ThreadPoolExecutor

    from clipcap import storage

    with ThreadPoolExecutor(storage.IN_FLIGHT) as pool:
        yield from pool.map(lambda number: storage.read(f"{bucket}/{key(number)}"), numbers)


def _objects_s3fs(bucket: str, numbers: range) -> Iterator[bytes]:
    import s3fs

    client = s3fs.S3FileSystem()
    for start in range(0, len(numbers), PER_TAR):
        paths = [f"{bucket}/{key(number)}" for number in numbers[start : start + PER_TAR]]
        yield from client.cat(paths, batch_size=16, max_concurrency=1).values()


def measure(name: str, bucket: str, count: int) -> None:
    """Run one measure in this process and print what it took."""
    work = MEASURES[name][1]
    if name.startswith("list"):
        work(f"{bucket}/images/00000", 1_000)  # imports, connects
    else:
        work(bucket, 200)
    cpu, wall = time.process_time(), time.perf_counter()
    work(bucket, count)
    print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]))


class StandIn(asyncio.Protocol):
    """Answers as S3 does, for `keys` in order; signatures are not looked at."""

    keys: ClassVar[list[str]] = []
    body = os.urandom(SIZE_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing asked."""
        self._transport, self._asked = cast("asyncio.Transport", transport), b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that has come whole; none has a body."""
        self._asked += data
        while (end := self._asked.find(b"\r\n\r\n")) >= 0:
            head, self._asked = self._asked[:end].decode(), self._asked[end + 4 :]
            method, target, _ = head.split("\r\n", 1)[0].split(" ")
            self._answer(method, target, head)

    def _answer(self, method: str, target: str, head: str) -> None:
        query = target.partition("?")[2]
        if "list-type" in query:
            body, status, more = self._listing(parse_qs(query)), "200 OK", ""
        else:
            span = re.search(r"(?i)\r\nrange: bytes=0-", head)
            body, status = self.body, "206 Partial Content" if span else "200 OK"
            more = f"Content-Range: bytes 0-{SIZE_BYTES - 1}/{SIZE_BYTES}\r\n" if span else ""
        reply = (
            f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nETag: "0123456789abcdef"\r\n'
            f"Last-Modified: Fri, 20 Nov 2026 10:00:00 GMT\r\n{more}\r\n"
        )
        self._transport.write(reply.encode() + (b"" if method == "HEAD" else body))

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        after = query.get("start-after", query.get("continuation-token", [""]))[0]
        first = max(bisect_right(self.keys, after), bisect_right(self.keys, prefix))
        last = first + int(query.get("max-keys", ["1000"])[0])
        page = [one for one in self.keys[first:last] if one.startswith(prefix)]
        beyond = self.keys[last : last + 1]
        is_more = len(page) == last - first and any(one.startswith(prefix) for one in beyond)
        contents = "".join(
            f"<Contents><Key>{one}</Key><LastModified>2026-10-12T17:50:30.000Z</LastModified>"
            f"<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>{SIZE_BYTES}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for one in page
        )
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if is_more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult '
            'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bench</Name>'
            f"<Prefix>{prefix}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>{str(is_more).lower()}</IsTruncated>{contents}{token}"
            "</ListBucketResult>"
        ).encode()


def serve(port: int, count: int) -> None:
    """Be the stand-in until somebody ends this process."""
    StandIn.keys = [key(number) for number in range(count)]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(StandIn, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def stand_in(count: int) -> Iterator[dict[str, str]]:
    """Run the stand-in in a process of its own; give the environment of its clients."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench.objects", "--serve", str(port), "--list", str(count)]
    with subprocess.Popen(command) as server:
        try:
            time.sleep(1.0)
            yield {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        finally:
            server.terminate()


@contextmanager
def ceph(count: int) -> Iterator[dict[str, str]]:
    """Run the real server of the tests, with `count` objects in the bucket `bench`."""
    from concurrent.futures import ThreadPoolExecutor

    from clipcap import storage
    from tests.servers import make_bucket, shared_s3

    with tempfile.TemporaryDirectory() as folder, shared_s3(Path(folder)) as address:
        os.environ.update(address.environment)
        bucket = make_bucket(address, "bench")
        data = os.urandom(SIZE_BYTES)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: storage.write(f"{bucket}/{key(n)}", data), range(count)))
        yield address.environment


def main() -> None:
    """Read the command line, run, print Markdown rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ceph", action="store_true")
    parser.add_argument("--reference", default="", help="a Python with s3fs and webdataset")
    parser.add_argument("--read", type=int, default=4_000, help="objects to read")
    parser.add_argument("--list", type=int, default=200_000, help="objects to list")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.list)
    elif chosen.measure:
        name, bucket, count = chosen.measure
        measure(name, bucket, int(count))
    else:
        listed = chosen.read if chosen.ceph else chosen.list
        with ceph(chosen.read) if chosen.ceph else stand_in(listed) as environment:
            _print(chosen, listed, environment)


def _print(chosen: argparse.Namespace, listed: int, environment: dict[str, str]) -> None:
    print(f"{'Ceph' if chosen.ceph else 'stand-in'}, median of {chosen.repeats}")
    print("| what | objects | objects per CPU second | us of CPU each | objects/s, wall |")
    print("| --- | --- | --- | --- | --- |")
    for name, (title, _) in MEASURES.items():
        is_reference = "s3fs" in name
        if is_reference and not chosen.reference:
            continue
        count = listed if name.startswith("list") else chosen.read
        if is_reference:
            count = count if name.startswith("list") else min(count, 20_000)
        python = chosen.reference if is_reference else sys.executable
        command = [python, str(Path(__file__)), "--measure", name, "s3://bench", str(count)]
        runs = [_run(command, environment) for _ in range(chosen.repeats)]
        cpu, wall = (statistics.median(column) for column in zip(*runs, strict=True))
        rates = f"{count / cpu:,.0f} | {cpu / count * 1e6:.1f} | {count / wall:,.0f}"
        print(f"| {title} | {count:,} | {rates} |", flush=True)


def _run(command: list[str], environment: dict[str, str]) -> list[float]:
    given = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
