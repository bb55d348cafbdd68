"""PostgreSQL's programs in, a server on loopback out, for Prefect's database."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

USER: Final = "postgres"
FOLDERS: Final = "/usr/lib/postgresql/*/bin"
START_LIMIT_S: Final = 120.0


def missing() -> str | None:
    """Say what keeps a server from starting here; None where nothing does."""
    if _folder() is None:
        return "initdb and pg_ctl are not installed (`make postgres-server`)"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        return "root may not run it, and setpriv is not here to run it as somebody else"
    return None


def _folder() -> Path | None:
    found = sorted(Path("/").glob(f"{FOLDERS[1:]}/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextmanager
def running() -> Iterator[str]:
    """Run a server with an empty database while the block runs; give Prefect's address of it.

    It runs as `nobody` where root asks, who may not look into the folders of tests.
    """
    with tempfile.TemporaryDirectory(prefix="clipcap-postgres-") as name:
        if os.getuid() == 0:
            shutil.chown(name, "nobody")
        with _started(Path(name)) as url:
            yield url


@contextmanager
def _started(home: Path) -> Iterator[str]:
    programs = _folder()
    if programs is None:
        raise RuntimeError(missing())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    data = str(home / "data")
    _run(programs / "initdb", "--pgdata", data, "--auth", "trust", "--username", USER)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control = (programs / "pg_ctl", "--pgdata", data)
    _run(*control, "--options", options, "--log", str(home / "log"), "--wait", "start")
    try:
        at = ("--host", "127.0.0.1", "--port", str(port), "--username", USER)
        _run(programs / "createdb", *at, "prefect")
        yield f"postgresql+asyncpg://{USER}@127.0.0.1:{port}/prefect"
    finally:
        _run(*control, "--mode", "fast", "--wait", "stop")


def _run(*command: str | Path) -> None:
    somebody: tuple[str, ...] = ()
    if os.getuid() == 0:
        somebody = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    done = subprocess.run(
        [*somebody, *map(str, command)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr}")
