"""A night killed at any point, and run again, leaves what a night leaves that was not killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipcap.planning import PackSettings
from clipcap.stages.label import LabelSettings
from clipcap.stages.shard import ShardSettings
from flows.settings import NightlySettings
from tests.nights import draw, make_tiny

POINTS = 10


@pytest.mark.slow
def test_a_night_killed_at_ten_points_ends_as_one_that_was_not(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for n in range(9):
        draw(source / f"drawing-{n}.png", n)
    (source / "broken.png").write_bytes((source / "drawing-0.png").read_bytes()[:90])
    (source / "words.txt").write_text("not a picture")
    tiny = make_tiny(tmp_path / "models")
    settings = NightlySettings(
        shard=ShardSettings(pack=PackSettings(max_images=4)),
        embed=tiny.encoder,
        caption=tiny.captioner,
        label=LabelSettings(label_sets=(tiny.label_set,)),
        shards_per_partition=1,
        max_reject_rate=0.5,
    )
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    out = str(tmp_path / "out")
    command = [sys.executable, "-m", "tests.killed", str(source), out]
    done = subprocess.run(
        [*command, str(tmp_path / "settings.json"), str(POINTS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["differences"] == []
    assert found["changes"] > POINTS
