"""A night that looks at one folder of its source: what it may change, and what stays as it was."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipcap import forgotten, storage
from clipcap.errors import SettingsError
from clipcap.forgotten import Record
from clipcap.keys import image_id
from clipcap.stages.shard import ShardSettings
from tests.nights import draw, shard_night
from tests.tables import glob


def draw_two_days(source: Path, each: int) -> None:
    """Draw pictures into the folders `01` and `02`, so many into each."""
    for day in ("01", "02"):
        for n in range(each):
            draw(source / day / f"{n}.png", int(day) * 10 + n)


class TestOnly:
    """A night that looks at one folder of its source: a backfill, or a delivery that came late."""

    def test_nothing_outside_the_folder_is_taken_in_and_nothing_leaves(
        self, tmp_path: Path
    ) -> None:
        source, out = tmp_path / "in", storage.canonical(f"{tmp_path}/out")
        draw_two_days(source, 3)
        only = ShardSettings(only="01")
        assert shard_night(str(source), out, only).new == 3
        assert shard_night(str(source), out, ShardSettings(only="02/"), dt="2026-11-21").new == 3
        (source / "01" / "0.png").unlink()
        draw(source / "01" / "1.png", 90)
        draw(source / "02" / "1.png", 91)

        plan = shard_night(str(source), out, only, dt="2026-11-22")

        assert (plan.listed, plan.new, plan.changed, plan.deleted) == (2, 0, 1, 0)
        names = [row["source_uri"].split("/")[-2:] for row in glob(out, "manifest").to_pylist()]
        assert sorted(names) == [[day, f"{n}.png"] for day in ("01", "02") for n in range(3)]
        whole = shard_night(str(source), out, ShardSettings(), dt="2026-11-23")
        assert (whole.new, whole.changed, whole.deleted) == (0, 1, 1)

    def test_an_image_that_must_not_be_there_leaves_in_the_folder_that_is_looked_at(
        self, tmp_path: Path
    ) -> None:
        """A writer that was killed had let it in; nights of the folder alone published it again."""
        source, out = tmp_path / "in", storage.canonical(f"{tmp_path}/out")
        draw_two_days(source, 2)
        shard_night(str(source), out, ShardSettings())
        uri = f"{storage.canonical(str(source))}/01/0.png"
        found: dict[str, tuple[str, ...]] = {image_id(uri): ()}
        forgotten.keep_out(out, Record(at=datetime(2026, 11, 21, tzinfo=UTC), images=found))
        shard_night(str(source), out, ShardSettings(only="01"), dt="2026-11-21")
        left = sorted(row["source_uri"][-8:] for row in glob(out, "manifest").to_pylist())
        assert left == ["01/1.png", "02/0.png", "02/1.png"]

    @pytest.mark.parametrize("only", ["../in", "01/../../x", ".."])
    def test_a_folder_that_is_not_below_the_source_is_refused(
        self, tmp_path: Path, only: str
    ) -> None:
        draw(tmp_path / "in" / "01" / "a.png", 1)
        with pytest.raises(SettingsError, match="below the source"):
            shard_night(str(tmp_path / "in"), f"{tmp_path}/out", ShardSettings(only=only))

    def test_a_source_that_has_no_folders_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("url\nhttp://example.invalid/a.jpg\n")
        with pytest.raises(SettingsError, match="only"):
            shard_night(f"{tmp_path}/t.csv", f"{tmp_path}/out", ShardSettings(only="2026"))
