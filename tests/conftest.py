"""The state that tests start from: no network, nobody's keys, a real S3 server on request."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator

import pytest

from tests import azurite, prefect_servers
from tests.azurite import Azurite
from tests.prefect_servers import PrefectServer
from tests.servers import S3Address, make_bucket, missing_programs, shared_s3

SERVER_FIXTURES = {"s3": "s3", "azure": "azure", "prefect_server": "prefect_server"}
"""Fixture to marker: whoever asks for a server can be chosen, or left out, with `-m`."""

ENVIRONMENT = {
    "AWS_CONFIG_FILE": os.devnull,
    "CLIPCAP_GIT_COMMIT": "c" * 40,  # or who commits meanwhile has workers of two versions
    "CLIPCAP_WATCHDOG_MINUTES": "0",  # it would end the whole test run
    "AWS_EC2_METADATA_DISABLED": "true",  # else a test without keys waits for 169.254.169.254
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # two busy processes of two threads each are six times slower
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


def users_own(names: Iterable[str]) -> list[str]:
    """Return the variables that no test may see; what `make chaos` asks for is none of them."""
    own = ("AWS_", "AZURE_", "CLIPCAP_", "OTEL_", "PREFECT_")
    return [
        name for name in names if name.startswith(own) and not name.startswith("CLIPCAP_CHAOS_")
    ]


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any library reads it; Prefect and the cache get own homes."""
    for name in users_own(os.environ):
        del os.environ[name]
    os.environ.update(ENVIRONMENT)
    for name in ("PREFECT_HOME", "XDG_CACHE_HOME"):
        home = tempfile.TemporaryDirectory(prefix="clipcap-tests-", ignore_cleanup_errors=True)
        os.environ[name] = home.name
        config.add_cleanup(home.cleanup)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need a server; those of Prefect share one worker, and so one server.

    `--timeout 0` is for every test, also for one with a limit of its own, which would win.
    """
    endless = config.getoption("timeout") == 0
    for item in items:
        if endless:
            item.add_marker(pytest.mark.timeout(0), append=False)
        for fixture, marker in SERVER_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
        if item.get_closest_marker("prefect_server"):
            item.add_marker(pytest.mark.xdist_group("prefect_server"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes get no say in a test's name: gzip writes the time of day, and workers must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Address]:
    """An S3 server that all workers of this test run share."""
    if missing := missing_programs():
        pytest.skip(f"No S3 server: {', '.join(missing)} not installed; `make s3-server` does it.")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with shared_s3(shared / "s3") as address:
        yield address


@pytest.fixture
def s3_environment(s3: S3Address, monkeypatch: pytest.MonkeyPatch) -> S3Address:
    """The server's address and keys, in this process's environment as well."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def bucket(s3_environment: S3Address) -> str:
    """The URL of a new, empty bucket that no other test knows."""
    return make_bucket(s3_environment, f"test-{secrets.token_hex(6)}")


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """An emulator of Azure's blob storage, of this worker's own."""
    command = azurite.program()
    if command is None:
        pytest.skip("No Azurite: `make azure-server` installs it, where npm is.")
    with azurite.azurite(tmp_path_factory.mktemp("azurite"), command) as server:
        yield server


@pytest.fixture
def container(azure: Azurite, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new, empty container, with its keys in the environment."""
    for name, value in azure.environment.items():
        monkeypatch.setenv(name, value)
    return azure.make_container(f"test-{secrets.token_hex(6)}")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server of this worker's own, with an empty database and a running scheduler."""
    with prefect_servers.prefect_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture
def recorded(prefect_server: PrefectServer) -> Iterator[PrefectServer]:
    """The server that flows of this process are recorded by."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        yield prefect_server
        APILogHandler().flush()  # what comes later finds no server any more


@pytest.fixture
def gpu() -> Iterator[None]:
    """A GPU, or where there is none one that keeps a GPU's rules in memory."""
    from tests import pretended

    with pretended.gpu():
        yield
