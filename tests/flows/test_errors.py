"""Each error of the command line on purpose: one short block, its exit code, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.command import Ended, clipcap
from tests.nights import Tiny
from tests.servers import S3Address, make_bucket
from tests.tables import glob

MAX_LINES = 12


def require_block(ended: Ended, code: int, *said: str) -> None:
    """Check the exit code, and that the one block on stderr says what it must."""
    assert ended.code == code, ended.err
    for words in said:
        assert words in ended.err
    assert [line.startswith("Error: ") for line in ended.err.splitlines()].count(True) == 1
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) <= MAX_LINES


@pytest.fixture
def asked(drawings: Path, tmp_path: Path, tiny: Tiny) -> list[str]:
    """The words of a run that would work."""
    return [
        "run", str(drawings), f"{tmp_path}/out", "--model", tiny.encoder.model,
        "--captioner", tiny.captioner.captioner, "--label-set", tiny.label_set, "--no-server",
    ]  # fmt: skip


def with_option(asked: list[str], option: str, value: str) -> list[str]:
    """Return the words with another value for one option."""
    kept = list(asked)
    if option in kept:
        at = kept.index(option)
        del kept[at : at + 2]
    return [*kept, option, value]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model", "ViT-B-33", ("No encoder 'ViT-B-33'", "Did you mean ViT-B-32", "models --all")),
        ("--captioner", "bundle", ("No captioner 'bundle'", "mean bundled", "/captioners/")),
        ("--captioner", "bundled", ("does not fit", "clipcap-tiny-clip", "dimension must be")),
        ("--label-set", "scene_place", ("No label set 'scene_place'", "scene_places")),
        ("--batch-size", "0", ("speed.batch_size", "greater than 0", "it is 0")),
        ("--max-reject-rate", "2", ("max_reject_rate", "less than or equal to 1")),
        ("--device", "gpu", ("speed.device", "cuda")),
        ("--date", "2999-01-31", ("The logical date must be", "is 2999-01-31")),
        ("--settings", "no.toml", ("The settings file no.toml is not there",)),
    ],
)
def test_what_nobody_knows_or_fits_is_refused_with_the_nearest(
    asked: list[str], tmp_path: Path, option: str, value: str, said: tuple[str, ...]
) -> None:
    require_block(clipcap(*with_option(asked, option, value)), 2, *said)
    assert not (tmp_path / "out").exists()


def test_a_source_file_that_is_no_table_kind_is_refused(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "chosen.json").write_text('{"shard": {"kind": "ftp"}}')
    ended = clipcap(*asked, "--settings", tmp_path / "chosen.json")
    require_block(ended, 2, "shard.kind", "'folder'", "it is 'ftp'")


def test_a_misspelt_setting_is_told_by_its_place_and_the_nearest_name(
    asked: list[str], tmp_path: Path
) -> None:
    (tmp_path / "chosen.toml").write_text("[speed]\nbatchsize = 3\n[embed]\nprecison = 'fp32'\n")
    ended = clipcap(*asked, "--settings", tmp_path / "chosen.toml")
    require_block(ended, 2, "speed.batchsize", "Did you mean batch_size?", "embed.precison")


@pytest.mark.parametrize(
    ("decode", "said"),
    [
        ({"name": "beem"}, "Did you mean beam?"),
        ({"name": "greedy", "settings": {"beam_size": 5}}, "`beam_size`"),
        ({"name": "beam", "settings": {"beam_size": 1_000_000}}, "less than or equal to 1000"),
        ({"name": "beam", "settings": {"only": "no.txt"}}, "list of words no.txt is not there"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_refused_before_any_work(
    asked: list[str], tmp_path: Path, decode: dict[str, object], said: str
) -> None:
    (tmp_path / "chosen.json").write_text(json.dumps({"caption": {"decode": decode}}))
    require_block(clipcap(*asked, "--settings", tmp_path / "chosen.json"), 2, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("deep.toml", "a." * 5_000 + "b = 1"), ("deep.json", '{"a":' * 100_000)]
)
def test_settings_that_are_nested_too_deeply_are_refused(
    asked: list[str], tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    ended = clipcap(*asked, "--settings", tmp_path / name)
    require_block(ended, 2, f"{name} is nested too deeply")


def test_every_problem_of_a_label_file_is_told_at_once(asked: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('names = ["cat", "Cat", ""]\ntemplates = ["a photo"]\n')
    ended = clipcap(*with_option(asked, "--label-set", str(path)))
    require_block(ended, 2, "line 1", "'Cat' stands twice", "line 2", "must hold one {}", "names =")


def test_weights_without_preprocessing_are_refused(asked: list[str], tmp_path: Path) -> None:
    """open_clip would embed with the wrong preprocessing, silently."""
    folder = tmp_path / "clip"
    shutil.copytree(asked[asked.index("--model") + 1], folder)
    (folder / "open_clip_config.json").unlink()
    ended = clipcap(*with_option(asked, "--model", str(folder)))
    require_block(ended, 2, "open_clip_config.json")


def test_a_hub_out_of_reach_is_told_with_the_way_round(asked: list[str]) -> None:
    began = time.monotonic()
    ended = clipcap(*with_option(asked, "--model", "ViT-B-32/laion2b_s34b_b79k"))
    require_block(ended, 3, "not in the local cache", "bundled", "--local-dir")
    assert time.monotonic() - began < 10


def test_a_source_that_is_not_there(asked: list[str], tmp_path: Path) -> None:
    asked[1] = f"{tmp_path}/nowhere"
    require_block(clipcap(*asked), 4, "nowhere does not exist")


@pytest.mark.parametrize("files", [[], ["notes.txt", "more.txt"]], ids=["empty", "only texts"])
def test_a_folder_without_pictures(asked: list[str], tmp_path: Path, files: list[str]) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("no picture")
    asked[1] = str(folder)
    code, said = (6, "not_an_image 2") if files else (2, "The source has no files")
    require_block(clipcap(*asked), code, said)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_an_output_that_cannot_be_written(asked: list[str]) -> None:
    asked[2] = "/proc/nowhere"
    require_block(clipcap(*asked), 4, "Cannot put", "/proc/nowhere")


def test_an_output_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no output")
    require_block(clipcap("verify", tmp_path), 4, "must be an output of clipcap")


def test_a_gpu_that_was_asked_for_and_is_not_there(asked: list[str], tmp_path: Path) -> None:
    require_block(clipcap(*asked, "--device", "cuda:63"), 5, "'cuda:63' is not", "say cpu")
    assert not (tmp_path / "out").exists()


def test_too_many_rejects(asked: list[str], drawings: Path) -> None:
    (drawings / "drawing-0.png").write_bytes(b"no picture")
    ended = clipcap(*asked)
    require_block(ended, 6, "17% of 6", "not_an_image 1", "drawing-0.png", "--max-reject-rate")
    assert clipcap(*asked, "--max-reject-rate", "0.5").code == 0


def test_a_source_without_one_picture_ends_with_its_reasons_and_publishes_nothing(
    asked: list[str], drawings: Path, tmp_path: Path
) -> None:
    for path in drawings.iterdir():
        path.write_bytes(b"no picture, but words enough")
    ended = clipcap(*asked)
    require_block(ended, 6, "100% of 6", "limit 5%", "not_an_image 6", "nothing is published")
    out = tmp_path / "out"
    assert not (out / "_SUCCESS").exists()
    assert not (out / "embeddings").exists()
    rows = glob(str(out), "rejects").to_pylist()
    assert len(rows) == 6
    for row in rows:
        assert (row["stage"], row["reason"], row["retryable"]) == ("shard", "not_an_image", False)
        assert row["error_type"] == "ImageError"
        assert len(row["error_message"]) > 10
        assert bytes.fromhex(row["head_hex"]) == b"no picture, but "
    assert clipcap(*asked, "--max-reject-rate", "1").code == 0
    assert (out / "_SUCCESS").exists()


def test_a_prefect_server_that_does_not_answer(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        asked.remove("--no-server")
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: url}):
            ended = clipcap(*asked)
    require_block(ended, 8, url, "--no-server", "prefect server start")
    assert time.monotonic() - began < 5
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_does_not_exist(asked: list[str], s3_environment: S3Address) -> None:
    bucket = make_bucket(s3_environment, "photographs-of-cats")
    asked[1] = "s3://photographs-of-cat/2026"
    require_block(clipcap(*asked), 4, "'photographs-of-cat' does not exist", bucket[5:])


def test_keys_that_are_wrong_are_never_shown(
    asked: list[str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-server")
    asked[1] = f"{bucket}/images"
    ended = clipcap(*asked)
    require_block(ended, 4, "Cannot list", "access denied", "AWS_ACCESS_KEY_ID")
    assert "not-the-secret" not in ended.err


def test_no_keys_at_all(asked: list[str], bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    asked[2] = f"{bucket}/out"
    require_block(clipcap(*asked), 4, "no credentials found", "AWS_PROFILE")


def test_debug_shows_where_an_error_comes_from(asked: list[str], tmp_path: Path) -> None:
    asked[1] = f"{tmp_path}/nowhere"
    ended = clipcap(*asked, "--debug")
    assert ended.code == 4
    assert "Traceback" in ended.err


def test_a_command_that_nobody_knows() -> None:
    require_block(clipcap("nightly"), 2, "No such command 'nightly'")


def test_a_mistake_of_ours_is_a_short_block_too(tmp_path: Path) -> None:
    """Nobody foresaw it, so there is no class for it; the terminal is not filled all the same."""
    code = "from unittest.mock import patch\nfrom flows import cli\n"
    code += "with patch('clipcap.modelnames.listing', side_effect=KeyError('size')): cli.main()"
    done = run("-c", code, "models")
    require_block(Ended(done.returncode, done.stdout, done.stderr), 1, "KeyError", "--debug")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_run_that_is_interrupted_ends_in_one_line_and_goes_on_when_it_is_asked_again(
    asked: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "flows.cli", *asked]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "out").glob("manifest/*/*.parquet")) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)

    assert running.returncode == 130
    assert said.splitlines()[-1].startswith("Stopped. What is committed stays")
    assert "Traceback" not in said
    assert clipcap(*asked).code == 0


def test_the_reader_of_a_list_may_leave_early() -> None:
    shell = f"{sys.executable} -m flows.cli models --all | head -1"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
