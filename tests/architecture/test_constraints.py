"""constraints.txt pins what is installed, and says nothing of where it came from."""

from __future__ import annotations

import re
import sysconfig
from importlib.metadata import distributions

from tests.architecture.tree import ROOT

OWN_AND_INSTALLERS = {"clipcap", "pip", "setuptools", "wheel"}


def pins() -> dict[str, str]:
    """Return the pinned version of each distribution, by its normalised name."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return {normalised(name): version for name, version in (line.split("==") for line in lines)}


def normalised(name: str) -> str:
    """Return the one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_each_line_is_a_name_and_a_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    form = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+")
    assert [line for line in lines if form.fullmatch(line) is None] == []


def test_every_installed_distribution_is_pinned_to_its_version() -> None:
    place = [
        sysconfig.get_path("purelib")
    ]  # and not what a library brings inside itself, and finds
    found = distributions(path=place)
    installed = {normalised(one.metadata["Name"]): one.version for one in found}
    pinned = pins()
    strays = {
        name: (version, pinned.get(name))
        for name, version in installed.items()
        if name not in OWN_AND_INSTALLERS and pinned.get(name) != version.partition("+")[0]
    }
    assert strays == {}, "installed without constraints.txt? `make setup` does it with them"
