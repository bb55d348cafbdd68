"""The store probe: which stores keep the first write apart, refuse to, or only say so."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from clipcap import conditions, leases, storage
from clipcap.errors import AccessDeniedError, NotFoundError, SettingsError, StorageError
from tests.servers import S3Address, make_bucket, s3_client

TIMES = leases.Times(beat_s=0.2, quiet_s=1.5, watch_s=0.8)


class Store(ThreadingHTTPServer):
    """An S3 store in memory that answers conditional writes with one status, or as if plain."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refused = self.server.status if self.headers.get("If-None-Match") else 200
        if refused == 200:
            self.server.objects[self.path] = body
        self._answer(refused, b"" if refused == 200 else b"<Code>NotImplemented</Code>")

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self._answer(200, self._listing())
            return
        data = self.server.objects.get(self.path)
        self._answer(404 if data is None else 200, data or b"<Code>NoSuchKey</Code>")

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rstrip("/").count("/") == 1 else 404, b"")

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204, b"")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _listing(self) -> bytes:
        keys = [path.split("/", 2)[2] for path in sorted(self.server.objects)]
        found = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-11-21T10:00:00.000Z</LastModified>"
            f"<ETag>1</ETag><Size>1</Size></Contents>"
            for key in keys
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        return text.encode()

    def _answer(self, status: int, body: bytes) -> None:
        self.server.asked.append(f"{self.command} {status}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store that answers conditional writes with the status given to the test."""
    server = Store(request.param)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield server
    server.shutdown()
    server.server_close()


def place(kind: str, tmp_path: Path) -> str:
    return str(tmp_path / "out") if kind == "local" else f"memory://{secrets.token_hex(4)}/out"


@pytest.fixture
def versioned(s3_environment: S3Address) -> str:
    """The URL of a bucket that keeps every version of its objects."""
    url = make_bucket(s3_environment, f"versioned-{secrets.token_hex(6)}")
    s3_client(s3_environment).put_bucket_versioning(
        Bucket=url.partition("://")[2], VersioningConfiguration={"Status": "Enabled"}
    )
    return url


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_folder_and_memory_honour(kind: str, tmp_path: Path) -> None:
    out = place(kind, tmp_path)
    assert conditions.kind(out) == "honours"
    assert storage.listed(out) == []


def test_a_bucket_of_ceph_honours_and_a_versioned_one_lies(bucket: str, versioned: str) -> None:
    assert conditions.kind(f"{bucket}/out") == "honours"
    assert conditions.kind(f"{versioned}/out") == "lies"
    assert storage.listed(bucket) == storage.listed(versioned) == []


@pytest.mark.parametrize("store", [400, 405, 412, 501], indirect=True)
def test_a_store_that_knows_no_conditions_refuses(store: Store) -> None:
    assert conditions.kind("s3://bucket/out") == "refuses"
    assert store.objects == {}
    assert [one for one in store.asked if one.startswith("PUT")] == [
        f"PUT {store.status}",
        "PUT 200",
    ]


@pytest.mark.parametrize("store", [200], indirect=True)
def test_a_store_that_takes_no_notice_of_conditions_lies(store: Store) -> None:
    assert conditions.kind("s3://bucket/out") == "lies"
    assert store.objects == {}


@pytest.mark.parametrize("store", [200, 501], indirect=True)
def test_without_promises_there_is_no_lease_and_the_log_says_so(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="clipcap")
    with (
        leases.held("s3://bucket/out", what="a", run_id="1", times=TIMES) as one,
        leases.held("s3://bucket/out", what="b", run_id="2", times=TIMES) as two,
    ):
        assert one.number == two.number == 0
        one.require()
    assert store.objects == {}
    assert caplog.text.count("No lease on s3://bucket/out") == 2


@pytest.mark.parametrize("store", [200, 501], indirect=True)
def test_what_needs_a_promise_is_refused(store: Store) -> None:
    with pytest.raises(SettingsError, match=r"Delta needs a store .* but that of s3://bucket/out"):
        conditions.require("s3://bucket/out", "Delta")


@pytest.mark.parametrize("store", [403], indirect=True)
def test_no_rights_are_no_kind_of_store(store: Store) -> None:
    with pytest.raises(AccessDeniedError):
        conditions.kind("s3://bucket/out")


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFoundError):
        conditions.kind(str(tmp_path / "file" / "out"))
    with pytest.raises(StorageError):
        conditions.kind(f"{bucket}-that-is-not-there/out")
