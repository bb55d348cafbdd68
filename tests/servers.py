"""A folder in, a real S3 server on loopback out: one-node Ceph with a RADOS gateway.

Several test workers share one server. Each holds a shared lock on `users.lock`; the process that
watches the daemons takes the lock for itself as soon as nobody holds it, stops them and removes
what they stored. The kernel drops a lock with its process, so a killed test run leaves nothing
behind either.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw")
START_LIMIT_S = 120.0  # 7 s on an idle machine of two cores
STOP_LIMIT_S = 5.0  # what is stored is thrown away, so nothing is lost by killing after that
POLL_S = 0.2

CEPH_CONF = Path(__file__).with_name("ceph.conf")


@dataclass(frozen=True)
class S3Address:
    """What a client must know: where the server listens and with which keys."""

    endpoint: str
    access_key: str
    secret_key: str
    conf: str = ""
    """Ceph's own file, for who administers the server."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables from which S3 clients take all of it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def missing_programs() -> list[str]:
    """Return the programs that a server needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on just now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_until_open(port: int) -> None:
    """Wait until somebody listens on a port of 127.0.0.1."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def make_bucket(address: S3Address, name: str) -> str:
    """Make a bucket and return its URL."""
    s3_client(address).create_bucket(Bucket=name)
    return f"s3://{name}"


def make_user(address: S3Address, name: str, *, access_key: str, secret_key: str) -> S3Address:
    """Make another user of a server, who has no buckets yet."""
    keys = ("--access-key", access_key, "--secret-key", secret_key)
    admin = ("radosgw-admin", "--conf", address.conf, "-n", "client.rgw.a")
    create = (*admin, "user", "create", "--uid", name, "--display-name", name, *keys)
    subprocess.run(create, check=True, capture_output=True, timeout=START_LIMIT_S)
    return replace(address, access_key=access_key, secret_key=secret_key)


def s3_client(address: S3Address) -> Any:  # noqa: ANN401 - botocore is untyped
    """Return botocore's own client, which can ask for anything that S3 does."""
    import botocore.session  # 0.2 s, for those alone who ask for it

    return botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=address.endpoint,
        aws_access_key_id=address.access_key,
        aws_secret_access_key=address.secret_key,
    )


class CephS3:
    """One monitor, one object store and one gateway: children of this process."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        """Choose free ports; nothing is started yet and nothing may be in `folder`."""
        gateway_port, self._mon_port = free_ports(2)
        self._folder = folder
        self._port = port or gateway_port
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.address = S3Address(
            endpoint=f"http://127.0.0.1:{self._port}",
            access_key=secrets.token_hex(8),
            secret_key=secrets.token_hex(16),
            conf=str(folder / "ceph.conf"),
        )

    def start(self) -> S3Address:
        """Start all three, make the one user, and return once requests are answered."""
        self._prepare_folder()
        self._start_monitor()
        self._start_object_store()
        self._start_gateway()
        return self.address

    def stop(self) -> None:
        """End the daemons, the youngest first, and remove what they stored."""
        for daemon in reversed(self._daemons):  # one by one: without a monitor the others hang
            daemon.terminate()
            try:
                daemon.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def restart_gateway(self) -> None:
        """Kill the gateway, as a crash would, and start it again; what is stored stays."""
        gateway = self._daemons.pop()
        gateway.kill()
        gateway.wait()
        self._spawn("radosgw", "-n", "client.rgw.a")
        self._wait_until(self._answers, "the gateway to answer")

    def _prepare_folder(self) -> None:
        for name in ("mon", "osd", "run", "log", "rgw"):
            (self._folder / name).mkdir(parents=True)
        self._fsid = str(uuid.uuid4())
        conf = CEPH_CONF.read_text().format(
            fsid=self._fsid, mon_port=self._mon_port, folder=self._folder, port=self._port
        )
        (self._folder / "ceph.conf").write_text(conf)

    def _start_monitor(self) -> None:
        keyring, monmap = self._folder / "keyring", self._folder / "monmap"
        tool = ("ceph-authtool", str(keyring), "--gen-key")
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        self._run(*tool, "--create-keyring", "-n", "mon.", "--cap", "mon", "allow *")
        self._run(*tool, "-n", "client.admin", *everything)
        self._run(*tool, "-n", "client.rgw.a", *everything)
        address = f"[v1:127.0.0.1:{self._mon_port}]"
        new_map = ("--create", "--fsid", self._fsid, "--addv", "a", address, str(monmap))
        self._run("monmaptool", *new_map)
        mkfs = ("--mkfs", "-i", "a", "--monmap", str(monmap), "--keyring", str(keyring))
        self._run("ceph-mon", *self._conf, *mkfs)
        self._spawn("ceph-mon", "-i", "a")

    def _start_object_store(self) -> None:
        osd_id = str(uuid.uuid4())
        key = self._run("ceph-authtool", "--gen-print-key").strip()
        self._ceph("osd", "new", osd_id, "-i", "-", stdin=json.dumps({"cephx_secret": key}))
        keyring = str(self._folder / "osd" / "keyring")
        self._run("ceph-authtool", "--create-keyring", keyring, "-n", "osd.0", "--add-key", key)
        self._run("ceph-osd", *self._conf, "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        self._ceph("osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._spawn("ceph-osd", "-i", "0")
        self._wait_until(lambda: "1 up" in self._ceph("osd", "stat"), "the object store to join")

    def _start_gateway(self) -> None:
        self._spawn("radosgw", "-n", "client.rgw.a")
        self._wait_until(self._answers, "the gateway to answer")
        keys = ("--access-key", self.address.access_key, "--secret-key", self.address.secret_key)
        user = ("user", "create", "--uid", "tests", "--display-name", "tests", *keys)
        self._run("radosgw-admin", *self._conf, "-n", "client.rgw.a", *user)

    @property
    def _conf(self) -> tuple[str, str]:
        return ("--conf", str(self._folder / "ceph.conf"))

    def _ceph(self, *arguments: str, stdin: str = "") -> str:
        return self._run("ceph", *self._conf, *arguments, stdin=stdin)

    def _run(self, *command: str, stdin: str = "") -> str:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def _spawn(self, program: str, *arguments: str) -> None:
        """Start a daemon in the foreground, to die with this process whatever ends it."""
        tie = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        with (self._folder / "log" / f"{program}.out").open("wb") as log:
            command = (*tie, program, *self._conf, *arguments, "-f")
            self._daemons.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.address.endpoint, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _wait_until(self, is_true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not is_true():
            ended = [daemon for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                said = [path.read_text() for path in (self._folder / "log").glob("*.out")]
                raise RuntimeError(f"Waited in vain for {what}:\n{''.join(said)[-2_000:]}")
            time.sleep(POLL_S)


@contextmanager
def shared_s3(folder: Path) -> Iterator[S3Address]:
    """Use the server of `folder`: the first user starts it, and the last one's end stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with (folder / "start.lock").open("w") as starter:
            fcntl.flock(starter, fcntl.LOCK_EX)
            address = _running(folder) or _start_watched(folder)
        yield address


def _running(folder: Path) -> S3Address | None:
    try:
        return S3Address(**json.loads((folder / "address.json").read_text()))
    except FileNotFoundError:
        return None


def _start_watched(folder: Path) -> S3Address:
    """Start the watching process and wait until it says where the server is, or ends."""
    command = (sys.executable, "-m", "tests.servers", str(folder))
    log = folder / "server.log"
    with log.open("wb") as stream:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            timeout=START_LIMIT_S,
            check=False,
        )
    if not done.stdout:
        raise RuntimeError(f"The S3 server did not start:\n{log.read_text(errors='replace')}")
    return S3Address(**json.loads(done.stdout))


def watch(folder: Path) -> None:
    """Run a server, say on standard output where, and stop it once nobody holds `users.lock`."""
    server, address = CephS3(folder / "ceph"), folder / "address.json"
    signal.signal(signal.SIGTERM, _exit)
    try:
        text = json.dumps(asdict(server.start()))
        address.write_text(text)
        sys.stdout.write(text)
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who reads it need not wait
        _wait_for_last_user(folder)
    finally:
        address.unlink(missing_ok=True)
        server.stop()


def _wait_for_last_user(folder: Path) -> None:
    users = os.open(folder / "users.lock", os.O_RDWR)  # held until this process ends
    while True:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S)
        else:
            return


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__" and os.fork() == 0:  # the worker that asks may end before the others
    os.setsid()
    watch(Path(sys.argv[1]))
