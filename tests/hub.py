"""A folder for each repository in, a model hub on loopback out, as far as downloads ask it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `folder/organisation/name/files`; keeps what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        """Return what `HF_ENDPOINT` would be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def model_hub(folder: Path) -> Iterator[Hub]:
    """Run a hub while the block runs."""
    hub = Hub(folder)
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def cached(cache: Path, repository: str) -> Path:
    """Make a repository's snapshot in the cache, as the hub's own library lays it out."""
    entry = cache / f"models--{repository.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text(COMMIT)
    (entry / "snapshots" / COMMIT).mkdir(parents=True)
    return entry / "snapshots" / COMMIT


def empty_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the local caches empty ones below a folder, and the hub one that nobody listens at."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    return folder / "cache"


def run_python(code: str, arguments: list[str], environment: dict[str, str]) -> list[str]:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")
        if path == "/":
            self._send(200, b"hello")
        elif path.startswith("/api/models/"):
            self._answer_api(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._answer_file(path.strip("/"))
        else:
            self._send(404, b"{}")

    def _answer_api(self, rest: str) -> None:
        parts = rest.split("/")
        folder = self.server.folder / parts[0] / parts[1]
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if "tree" in parts:
            entries = [self._entry(path) for path in files]
            self._send(200, json.dumps(entries).encode())
            return
        siblings = [{"rfilename": path.name} for path in files]
        repository = f"{parts[0]}/{parts[1]}"
        found = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(found).encode())

    def _entry(self, path: Path) -> dict[str, object]:
        data = path.read_bytes()
        entry: dict[str, object] = {"type": "file", "path": path.name, "size": len(data)}
        entry["oid"] = hashlib.sha1(data).hexdigest()
        if path.suffix == ".safetensors":
            oid = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return entry

    def _answer_file(self, rest: str) -> None:
        organisation, name, _, _, file = rest.split("/", 4)
        path = self.server.folder / organisation / name / file
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        etag = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
