"""A folder in, Microsoft's emulator of Azure's blob storage on loopback out."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from tests.architecture.tree import ROOT
from tests.prefect_servers import daemon
from tests.servers import free_ports, wait_until_open

PROGRAM = "azurite-blob"
INSTALLED = ROOT / "build" / "azurite" / "node_modules" / ".bin" / PROGRAM  # `make azure-server`
ACCOUNT = "devstoreaccount1"  # it and its key are Microsoft's own, and no secret
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-12-02"


@dataclass(frozen=True)
class Azurite:
    """Where the emulator listens."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables from which clients take all of it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
        }

    def make_container(self, name: str) -> str:
        """Make a container and return its URL; no client here can."""
        date = formatdate(usegmt=True)
        headers = f"x-ms-date:{date}\nx-ms-version:{VERSION}"
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        text = "\n".join(["PUT", *[""] * 11, headers, resource])
        mac = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        request = urllib.request.Request(
            f"{self.endpoint}/{name}?restype=container",
            method="PUT",
            headers={
                "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}",
                "x-ms-date": date,
                "x-ms-version": VERSION,
            },
        )
        with urllib.request.urlopen(request, timeout=10):
            return f"az://{name}"


def program() -> str | None:
    """Return where the emulator is installed, None where it is not."""
    return shutil.which(PROGRAM) or (str(INSTALLED) if INSTALLED.exists() else None)


@contextmanager
def azurite(folder: Path, command: str) -> Iterator[Azurite]:
    """Run the emulator while the block runs; it keeps all in memory."""
    port = free_ports(1)[0]
    start = (command, "--inMemoryPersistence", "--blobPort", str(port), "--skipApiVersionCheck")
    with daemon((*start, "--disableTelemetry"), {"PATH": _path()}, folder):
        wait_until_open(port)
        yield Azurite(f"http://127.0.0.1:{port}/{ACCOUNT}")


def _path() -> str:
    node = shutil.which("node")
    return str(Path(node).parent) if node else "/usr/bin"
