"""Where the tests of flows start: drawings, tiny models, and a flow's settings for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.settings import NightlySettings
from tests.nights import Tiny, draw, make_tiny
from tests.settings import nightly_settings


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random encoder and captioner that fit each other, and a label set."""
    return make_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def settings(tiny: Tiny) -> NightlySettings:
    """A night with the tiny models, two images in a shard and one shard in a partition."""
    return nightly_settings(tiny, shards_per_partition=1)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A folder of six drawings."""
    folder = tmp_path / "in"
    for n in range(6):
        draw(folder / f"drawing-{n}.png", n)
    return folder
