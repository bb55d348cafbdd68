"""A folder in, a real Prefect server on loopback out, with its database, scheduler and services."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.architecture.tree import ROOT

START_LIMIT_S = 120.0
COMMAND_LIMIT_S = 280.0  # one that waits for a run, on a busy machine
STOP_LIMIT_S = 20.0
POLL_S = 0.2
CANCELS_CHILDREN_EVERY_S = "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS"
PREFECT = str(Path(sys.executable).with_name("prefect"))


@dataclass(frozen=True)
class PrefectServer:
    """Where a server answers, and the environment in which Prefect's commands find it."""

    url: str
    home: Path
    own: Mapping[str, str] = field(default_factory=dict)
    """What its clients need, such as a password."""

    @property
    def environment(self) -> dict[str, str]:
        """Return this process's environment with the server in it."""
        return {
            **os.environ,
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(self.home),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **self.own,
        }

    def make_pools(self, *names: str) -> None:
        """Make work pools by the project's own template, as `deployments/README.md` does."""
        template = str(ROOT / "deployments" / "pools" / "process.json")
        for name in names:
            made = ("work-pool", "create", name, "--type", "process", "--overwrite")
            self.run(*made, "--base-job-template", template)

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a command of Prefect to its end and return what it prints."""
        done = subprocess.run(
            [PREFECT, "--no-prompt", *arguments],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"prefect {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout


@contextmanager
def prefect_server(
    folder: Path, own: Mapping[str, str] | None = None, port: int = 0, **environment: str
) -> Iterator[PrefectServer]:
    """Run a server while the block runs; `environment` is its alone, `own` that of its clients.

    With the folder and the port of an earlier one it is that one, started again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    server = PrefectServer(f"http://127.0.0.1:{port}/api", folder / "home", own or {})
    start = (PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port))
    environment = {
        **os.environ,
        "PREFECT_HOME": str(server.home),
        CANCELS_CHILDREN_EVERY_S: "2",
        **environment,
    }
    with daemon(start, environment, folder) as process:
        deadline = time.monotonic() + START_LIMIT_S
        while not _answers(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "server.log").read_text()
                raise RuntimeError(f"The Prefect server did not start:\n{said[-2_000:]}")
            time.sleep(POLL_S)
        yield server


@contextmanager
def worker(
    server: PrefectServer, pool: str, folder: Path, name: str = "worker", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker, in a folder of its own."""
    start = (PREFECT, "worker", "start", "--pool", pool, "--name", name, "--limit", "1")
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with daemon(start, {**server.environment, **environment}, folder) as process:
        yield process


@contextmanager
def daemon(
    command: tuple[str, ...], environment: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that dies with this process, whatever ends it."""
    tie = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
    with (folder / f"{command[1]}.log").open("wb") as log:
        process = subprocess.Popen(
            (*tie, *command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
