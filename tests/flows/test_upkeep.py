"""`clipcap compact` and `clipcap vacuum` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipcap import layout, manifest, storage
from tests.command import clipcap
from tests.nights import Tiny, make_tiny
from tests.upkeep import nights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("models"))


def test_both_say_what_they_would_do_then_do_it(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nights(tmp_path / "in", out, tiny, 3)
    month = ("compact", out, "--within", "month", "--settled-days", "0")
    said = clipcap(*month)
    assert "3 of 3 shards would be merged into 1" in said.out
    assert "Nothing was changed; --yes does it." in said.out
    assert "3 small ones have none to be merged with of their date" in clipcap("compact", out).out
    done = json.loads(clipcap(*month, "--yes", "--json").out)
    assert (done["written"], done["sources"], len(done["merged"])) == (True, 3, 1)
    url = storage.canonical(str(out))
    assert [str(shard) for shard in manifest.shards(url)] == done["merged"]
    told = clipcap("vacuum", out).out
    assert "nothing to do" in told
    (tmp_path / "out" / "holiday.jpg").write_bytes(b"mine")
    (path,) = (storage.local_path(one.url) for one in storage.listed(layout.tars(url)))
    assert path
    hollow = clipcap("vacuum", out, "--dead", "0.00001")
    assert "not ours, left alone: holiday.jpg" in hollow.out
    ended = json.loads(clipcap("vacuum", out, "--yes", "--json").out)
    assert (ended["written"], ended["removed"], ended["unknown"]) == (True, 0, ["holiday.jpg"])
    assert clipcap("verify", out, "--full").code == 0


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    for command in ("compact", "vacuum"):
        ended = clipcap(command, tmp_path / "photos", "--yes")
        assert ended.code == 2
        assert "has no `_latest.json`" in ended.err
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"
