"""`clipcap forget` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from clipcap import holdings, leases, storage
from clipcap.errors import LeaseError
from flows.cli import cli
from tests.nights import make_tiny, things


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of five drawings."""
    folder = tmp_path_factory.mktemp("forget")
    return things(folder, make_tiny(folder / "models"), 5)


def typed(*words: object, code: int = 0) -> str:
    """Return what the command prints."""
    done = CliRunner().invoke(cli, ["forget", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


def test_nothing_goes_without_yes(out: Path) -> None:
    before = {info.url: info.etag for info in storage.listed(str(out))}
    shown = typed(out, out.parent / "in/1.png")
    assert "1 images would go:" in shown
    assert "/in/1.png" in shown
    assert "add --yes" in shown
    shown = typed(out, "s3://elsewhere/new.png")
    assert "No image would go." in shown
    assert "1 not in this output would be kept out in advance." in shown
    assert json.loads(typed(out, "--json", out.parent / "in/1.png"))["images"] == 1
    assert {info.url: info.etag for info in storage.listed(str(out))} == before


def test_an_image_goes_is_listed_and_comes_back(out: Path, tmp_path: Path) -> None:
    path = out.parent / "in/2.png"
    told = typed(out, path, "--yes", "--receipt", tmp_path / "receipt.json")
    assert "1 images are out of" in told
    assert "Nothing is left of them" in told
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert (receipt["ok"], receipt["left"], len(receipt["image_ids"])) == (True, [], 1)
    (row,) = json.loads(typed(out, "--list", "--json"))
    assert row["name"] == receipt["image_ids"][0]
    assert "1 kept out." in typed(out, "--list")
    assert row["name"] in typed(out, "--allow", path)
    assert "0 kept out." in typed(out, "--list")


def test_nobody_is_let_in_beside_another_run(out: Path) -> None:
    path = out.parent / "in/4.png"
    typed(out, path, "--yes")
    with leases.held(str(out), what="a night", run_id="night-1"):
        done = CliRunner().invoke(cli, ["forget", str(out), "--allow", str(path)])
        assert isinstance(done.exception, LeaseError)
        assert "1 kept out." in typed(out, "--list")
    assert "-" not in typed(out, "--allow", path)
    held = holdings.held(storage.canonical(str(out)))
    assert all(held.is_told(shard) for shard in held.live)


def test_what_is_left_ends_with_1(out: Path) -> None:
    path = out.parent / "in/3.png"
    (out / "copy.png").write_bytes(path.read_bytes())
    assert "copy.png: says a name" in typed(out, path, "--yes", code=1)
    (out / "copy.png").unlink()
    assert json.loads(typed(out, path, "--yes", "--json"))["ok"]


def test_a_word_too_few_or_a_receipt_inside_is_refused(out: Path) -> None:
    assert "Name one image at least" in typed(out, code=2)
    assert "Name one image at least" in typed(out, "--allow", code=2)
    done = CliRunner().invoke(cli, ["forget", str(out), "x", "--yes", "--receipt", f"{out}/r.json"])
    assert "must lie outside" in str(done.exception)
