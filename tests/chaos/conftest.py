"""Runs may overlap here: what is right must not depend on a lease."""

from __future__ import annotations

import pytest

from clipcap import leases


@pytest.fixture(autouse=True)
def _no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leases.SWITCH, "off")
