"""The server's pages: unpacked where the server may write, and asking an address that is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.deployments.files import FOLDER, KUBERNETES, README, dockerfile, objects

UNPACKED = "PREFECT_UI_STATIC_DIRECTORY"
UNIT = (FOLDER / "systemd" / "prefect-server.service").read_text().splitlines()
SERVER: dict[str, Any] = next(
    one
    for one in objects(KUBERNETES / "base" / "server.yaml")
    if one["kind"] == "Deployment"
)["spec"]["template"]["spec"]["containers"][0]  # fmt: skip


def of_unit() -> tuple[str, str]:
    """Return where the unit unpacks them, and where systemd lets it write."""
    set_ = [line.partition("=")[2] for line in UNIT if line.startswith("Environment=")]
    given = dict(word.split("=", 1) for line in set_ for word in line.split())
    (state,) = [line.partition("=")[2] for line in UNIT if line.startswith("StateDirectory=")]
    return given[UNPACKED], f"/var/lib/{state}"


def of_pod() -> tuple[str, str]:
    """Return where the pod unpacks them, and the volume that it may write to."""
    (said,) = [one["value"] for one in SERVER["env"] if one["name"] == UNPACKED]
    (volume,) = SERVER["volumeMounts"]
    return said, volume["mountPath"]


def of_image() -> tuple[str, str]:
    """Return where a server of the image unpacks them, and the home of who runs it."""
    words = " ".join(words for instruction, words in dockerfile() if instruction == "ENV")
    given = dict(word.split("=", 1) for word in words.split())
    return given[UNPACKED], given["HOME"]


@pytest.mark.parametrize("place", [of_unit, of_pod, of_image])
def test_the_pages_are_unpacked_where_the_server_may_write(
    place: Callable[[], tuple[str, str]],
) -> None:
    unpacked, writable = place()
    assert PurePosixPath(writable) in PurePosixPath(unpacked).parents


def test_the_address_that_the_pages_ask_is_named_beside_that_of_the_links() -> None:
    env = {one["name"]: one.get("value") for one in SERVER["env"]}
    assert env["PREFECT_UI_API_URL"] == f"{env['PREFECT_UI_URL']}/api"
    for name, end in (("PREFECT_UI_URL", ""), ("PREFECT_UI_API_URL", "/api")):
        assert f"\n{name}=http://127.0.0.1:4200{end}\n" in README
    assert "the proxy's address into `PREFECT_UI_URL`" in README
