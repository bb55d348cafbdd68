"""A night of nine drawings in, with what every stage makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nights import draw, make_tiny
from tests.settings import nightly_settings


@dataclass(frozen=True)
class Asked:
    """What a night is run with by another process."""

    source: Path
    settings: Path


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Draw pictures, two of them no pictures, and write the settings of a night over them."""
    source, settings = tmp_path / "in", tmp_path / "settings.json"
    for n in range(9):
        draw(source / f"drawing-{n}.png", n)
    (source / "broken.png").write_bytes((source / "drawing-0.png").read_bytes()[:90])
    (source / "words.txt").write_text("not a picture")
    tiny = make_tiny(tmp_path / "models")
    chosen = nightly_settings(tiny, max_images=4, shards_per_partition=1, max_reject_rate=0.5)
    settings.write_text(chosen.model_dump_json())
    return Asked(source, settings)
