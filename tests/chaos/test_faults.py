"""Nights on a real S3 server that fails: every call ends in time, no wrong byte is taken for right.

`CLIPCAP_CHAOS_FAULTS` says how often each fault has to happen.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any
from unittest.mock import patch

import pytest

from clipcap import localfiles, storage
from clipcap.errors import ClipcapError
from tests.chaos import standins
from tests.chaos.store import Store
from tests.chaos.world import BROKEN, Folder, World, require_exact
from tests.proxy import FAULTS, THERE, Proxy, proxy
from tests.servers import CephS3, S3Address, make_bucket

TIMES = int(os.environ.get("CLIPCAP_CHAOS_FAULTS", "3"))
DEADLINE_S = 4.0
SLACK_S = 6.0  # a busy machine, and the call's own second try
CALLS = (
    "read", "read_range", "read_part", "stream", "write", "create", "delete", "info",
    "list_objects", "list_batches",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def world(
    s3_environment: S3Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, Proxy]]:
    """Give an output in a new bucket, behind a proxy, whose store must answer in seconds."""
    bucket = make_bucket(s3_environment, f"faults-{secrets.token_hex(4)}")
    monkeypatch.setattr(storage, "DEADLINE_S", DEADLINE_S)
    with proxy(s3_environment.endpoint) as before, standins.models_installed():
        monkeypatch.setenv("AWS_ENDPOINT_URL", before.endpoint)
        made = World(Store(), Folder.made(tmp_path / "models"), root=f"{bucket}/")
        for number in range(4):
            made.put(f"{number}.png", number + 1)
        made.put("rot.png", BROKEN)
        yield made, before


@pytest.mark.s3
@pytest.mark.parametrize("fault", FAULTS)
def test_a_night_on_a_failing_store_completes_or_says_why(
    world: tuple[World, Proxy], fault: str
) -> None:
    made, before = world
    draw = random.Random(fault)

    def choose(method: str, _path: str) -> str:
        if fault == THERE and method not in ("PUT", "POST"):
            return ""
        return fault if draw.random() < (0.2 if fault == THERE else 0.04) else ""

    with timed() as longest:
        while before.done[fault] < TIMES:
            made.put(f"{draw.randrange(4)}.png", draw.randrange(1, 250))
            before.choose = choose
            assert says_why(night(made))
            before.choose = lambda _method, _path: ""
            if draw.random() < 0.3:
                made.night()
                require_exact(made)
    made.night()
    require_exact(made)
    assert longest[0] < DEADLINE_S + SLACK_S


def night(made: World) -> str:
    """Run a night; return why it ended early, or nothing."""
    try:
        made.night()
    except ClipcapError as error:
        return str(error)
    return ""


def says_why(refused: str) -> bool:
    """Tell whether a night that was refused names the object or the request."""
    return not refused or "s3://" in refused


@contextmanager
def timed() -> Iterator[list[float]]:
    """Measure the longest call of `clipcap.storage`."""
    longest = [0.0]

    def measured(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            began = time.perf_counter()
            try:
                found = call(*args, **kwargs)
            finally:
                longest[0] = max(longest[0], time.perf_counter() - began)
            return steps(found) if isinstance(found, Iterator) else found

        return called

    def steps(found: Iterator[Any]) -> Iterator[Any]:
        following = measured(partial(next, found, None))
        while (one := following()) is not None:
            yield one

    with pytest.MonkeyPatch.context() as patches:
        for name in CALLS:
            patches.setattr(storage, name, measured(getattr(storage, name)))
        yield longest


@contextmanager
def restarted(server: CephS3, at: int) -> Iterator[None]:
    """Kill and start the gateway again at one of the calls to the store, or soon after it.

    In the main thread: the daemon dies with the thread that began it.
    """
    real, calls = storage._place, count(1)
    due = [at]

    def place(url: str) -> Any:  # noqa: ANN401 - a place
        if next(calls) >= at and due and current_thread() is main_thread():
            due.clear()
            server.restart_gateway()
        return real(url)

    with patch.object(storage, "_place", place):
        yield


@pytest.mark.skipif(TIMES < 10, reason="`make chaos` starts a server of its own for this")
def test_a_server_that_is_restarted_in_the_middle_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = CephS3(tmp_path_factory.mktemp("restarted") / "ceph")
    address = server.start()
    try:
        for name, value in address.environment.items():
            monkeypatch.setenv(name, value)
        bucket = make_bucket(address, "restarted")
        with standins.models_installed():
            made = World(Store(), Folder.made(tmp_path / "models"), root=f"{bucket}/")
            draw = random.Random(1)
            for number in range(TIMES):
                made.put(f"{number % 10}.png", number + 1)
                with restarted(server, draw.randrange(3, 60)):
                    night(made)
                made.night()
                require_exact(made)
    finally:
        server.stop()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_disk_that_is_full_loses_nothing(tmp_path: Path, code: int) -> None:
    draw = random.Random(code)
    real = localfiles._temporary
    with standins.models_installed():
        made = World(Store(), Folder.made(tmp_path / "models"), root=f"file://{tmp_path}/")
        made.put("zebra.png", 9)
        times = 0
        while times < TIMES:
            made.put(f"{draw.randrange(5)}.png", draw.randrange(1, 250))
            left = [draw.randrange(1, 25)]

            def full(path: Path, *parts: bytes, left: list[int] = left) -> Path:
                left[0] -= 1
                if left[0] <= 0:
                    raise OSError(code, os.strerror(code))
                return real(path, *parts)

            with patch.object(localfiles, "_temporary", full):
                ended = night(made)
            if not ended:
                require_exact(made)
            times += left[0] <= 0
            made.night()
            require_exact(made)
