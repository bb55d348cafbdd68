"""The command line: what it prints when all is well, to people and to machines."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from unittest.mock import patch

import click
import pytest
from rich.console import Console

import clipcap as package
from clipcap import storage, tables
from clipcap.errors import SettingsError
from clipcap.outcomes import Night
from flows import cli, console
from flows.settings import NightlySettings
from tests.architecture.tree import ROOT
from tests.command import clipcap
from tests.nights import Tiny, draw
from tests.tables import glob

HELP_S = 0.5


@pytest.fixture
def asked(drawings: Path, tmp_path: Path, tiny: Tiny) -> list[str]:
    """The words of a run."""
    return ["run", str(drawings), f"{tmp_path}/out", *options(tiny)]


def options(tiny: Tiny) -> list[str]:
    """Return the options that choose the tiny models."""
    return [
        "--model", tiny.encoder.model, "--captioner", tiny.captioner.captioner,
        "--label-set", tiny.label_set, "--no-server",
    ]  # fmt: skip


def test_help_answers_in_half_a_second_of_cpu() -> None:
    began = time.monotonic()
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True)\n"
    code += "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    code += "print(used.ru_utime + used.ru_stime)"
    command = [sys.executable, "-c", code, sys.executable, "-m", "flows.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < HELP_S
    assert time.monotonic() - began < 20


def test_help_lists_every_command_in_the_words_of_its_own_help() -> None:
    listed = clipcap("--help").out
    with click.Context(cli.cli) as context:
        for name, (_, text) in cli.COMMANDS.items():
            command = cli.cli.get_command(context, name)
            assert command is not None
            assert (command.help or "").splitlines()[0] == text
            assert f"  {name} " in listed


def test_every_option_is_explained() -> None:
    with click.Context(cli.cli) as context:
        for name in cli.COMMANDS:
            command = cli.cli.get_command(context, name)
            assert command is not None
            inner = command.commands.values() if isinstance(command, click.Group) else ()
            for one in (command, *inner):
                named = [found for found in one.params if isinstance(found, click.Option)]
                assert [found.name for found in named if not found.help] == []
                assert "debug" in [found.name for found in named]


def test_the_version_is_told() -> None:
    assert clipcap("--version").out == f"clipcap {package.__version__}\n"


def test_a_run_prints_a_line_for_each_stage_with_counts_and_rates(asked: list[str]) -> None:
    ended = clipcap(*asked)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "shard", "embed", "caption", "label", "publish", "report",
    ]  # fmt: skip
    assert "6 images listed: 6 new, 0 changed, 0 gone, 0 unchanged" in lines[0]
    assert "6 images embedded in 1 shard" in lines[1]
    assert all(line.endswith("images/s") for line in lines[:4])
    assert Path(lines[5].split()[1]).is_file()


def test_a_run_says_where_it_runs_and_how_fast(asked: list[str]) -> None:
    """No GPU is no error."""
    ended = clipcap(*asked)
    assert "images/s" in ended.err or ended.err == ""  # told once for each model and process


def test_a_second_run_says_that_nothing_was_to_do(asked: list[str]) -> None:
    clipcap(*asked)
    lines = clipcap(*asked).out.splitlines()
    assert "0 new, 0 changed, 0 gone, 6 unchanged" in lines[0]
    assert all("nothing to do, 1 shard unchanged" in line for line in lines[1:4])


def test_json_is_one_object_and_nothing_else(asked: list[str]) -> None:
    told = json.loads(clipcap(*asked, "--json").out)
    assert told["images"] == {"listed": 6, "new": 6, "changed": 0, "deleted": 0, "unchanged": 0}
    assert told["live"] == 6
    assert [stage["stage"] for stage in told["stages"]] == [
        "shard", "embed", "caption", "label", "publish",
    ]  # fmt: skip


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    asked: list[str], tmp_path: Path
) -> None:
    ended = clipcap(*asked, "--dry-run")
    assert "6 new" in ended.out
    assert "Nothing was written" in ended.out
    assert not (tmp_path / "out").exists()
    assert json.loads(clipcap(*asked, "--dry-run", "--json").out)["new"] == 6


def test_a_plan_tells_the_cost_of_a_night_and_changes_nothing(
    asked: list[str], drawings: Path, tmp_path: Path
) -> None:
    words = [word for word in asked if word != "--no-server"]
    words[0] = "plan"
    first = clipcap(*words)
    assert first.code == 0, first.err
    assert "6 new" in first.out
    assert "no earlier night; `clipcap bench` measures it" in first.out
    assert not (tmp_path / "out").exists()
    clipcap(*asked)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    (drawings / "drawing-0.png").unlink()
    shutil.copy(drawings / "drawing-1.png", drawings / "more.png")
    told = json.loads(clipcap(*words, "--json").out)
    counts = {name: told[name] for name in ("listed", "new", "changed", "deleted", "unchanged")}
    assert counts == {"listed": 6, "new": 1, "changed": 0, "deleted": 1, "unchanged": 5}
    assert (told["shards"], told["shards_left"], told["nights"]) == (1, 1, 1)
    assert [(step["stage"], step["images"]) for step in told["steps"]] == [
        ("shard", 1), ("embed", 1), ("caption", 1), ("label", 1),
    ]  # fmt: skip
    assert told["seconds"] == pytest.approx(sum(step["seconds"] for step in told["steps"]))
    assert told["bytes_to_read"] == (drawings / "more.png").stat().st_size
    assert "in all, by 1 earlier night." in clipcap(*words).out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_tars_are_captioned_where_they_are(
    asked: list[str], drawings: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for path in sorted(drawings.iterdir()):
            archive.add(path, f"below/{path.name}")
    words = ["run", str(tmp_path / "a.tar"), *asked[2:]]
    ended = clipcap(*words)
    assert ended.code == 0, ended.err
    out = tmp_path / "out"
    assert not (out / "shards").exists()
    assert len(glob(str(out), "captions")) == len(glob(str(out), "embeddings")) == 6
    pages = [path.read_text() for path in (out / "reports").rglob("index.html")]
    assert pages[0].count("data:image/jpeg") == 6
    assert clipcap("verify", out, "--full").code == 0
    assert "nothing to do" in clipcap(*words).out
    plan = clipcap("plan", *words[1:-1]).out
    assert "the images stay in their tars" in plan


def test_the_kind_of_a_source_may_be_said(asked: list[str], drawings: Path) -> None:
    ended = clipcap(*asked, "--dry-run", "--kind", "zips")
    assert ended.code == 4
    assert ".zip" in ended.err
    assert clipcap(*asked, "--dry-run", "--kind", "folder").code == 0
    assert "'huggingface'" in clipcap(*asked, "--kind", "film").err


def test_a_limit_leaves_the_rest_for_another_night(asked: list[str], tmp_path: Path) -> None:
    assert "2 new" in clipcap(*asked, "--limit", "2").out
    assert len(glob(f"{tmp_path}/out", "captions")) == 2
    assert "4 new" in clipcap(*asked).out
    assert len(glob(f"{tmp_path}/out", "captions")) == 6


def test_a_glob_chooses_the_images(asked: list[str], tmp_path: Path) -> None:
    assert "1 images listed" in clipcap(*asked, "--glob", "*-3.png").out
    assert len(glob(f"{tmp_path}/out", "manifest")) == 1


def test_a_date_files_the_shards(asked: list[str], tmp_path: Path) -> None:
    clipcap(*asked, "--date", "2026-02-03")
    assert [found.name for found in (tmp_path / "out" / "manifest").iterdir()] == ["dt=2026-02-03"]


def test_sidecars_lie_beside_the_images(asked: list[str], drawings: Path) -> None:
    clipcap(*asked, "--sidecars", "skip")
    assert len(list(drawings.glob("*.png.clipcap.txt"))) == 6
    assert "6 unchanged" in clipcap(*asked).out, "a sidecar of ours must not change its image"


def test_no_captions_where_none_are_asked_for(asked: list[str], tmp_path: Path) -> None:
    at = asked.index("--captioner")
    asked[at + 1] = "none"
    assert "caption " not in clipcap(*asked).out
    assert not (tmp_path / "out" / "captions").exists()


def test_an_option_goes_before_the_settings_file(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "chosen.toml").write_text("max_reject_rate = 0.5\n[shard]\nlimit = 1\n")
    ended = clipcap(*asked, "--settings", tmp_path / "chosen.toml", "--limit", "2")
    assert "2 new" in ended.out


def test_stages_one_by_one(drawings: Path, tmp_path: Path, tiny: Tiny) -> None:
    out = f"{tmp_path}/out"
    (drawings / "drawing-0.txt").write_text("a red ball.")
    model = ["--model", tiny.encoder.model, "--no-server"]
    assert "6 new" in clipcap("shard", drawings, out, "--no-server").out
    assert "6 images embedded" in clipcap("embed", out, *model).out
    named = ["--captioner", tiny.captioner.captioner]
    assert "6 images captioned" in clipcap("caption", out, *model, *named).out
    assert "6 images labelled" in clipcap("label", out, *model, "--label-set", tiny.label_set).out
    start = ["--steps", 2, "--name", "mine"]
    ended = clipcap("train", out, *model, *start)
    assert "mine trained in" in ended.out, ended.err
    assert "step 2 of 2, loss" in ended.err
    report = ended.out.rpartition("report    ")[2].strip()
    rows = [tables.read(str(path)) for path in (tmp_path / "out" / "runs").rglob("*.parquet")]
    found = [row["report_uri"] for table in rows for row in table.to_pylist()]
    assert [uri for uri in found if uri] == [storage.canonical(report)]
    new = f"{out}/captioners/mine"
    assert "6 images captioned" in clipcap("caption", out, *model, "--captioner", new).out
    told = json.loads(clipcap("train", out, *model, *start, "--json").out)
    assert (told["was_there"], told["captions"]) == (True, 1)


def test_verify_says_what_it_looked_at_and_fails_where_readers_would(
    asked: list[str], tmp_path: Path
) -> None:
    clipcap(*asked)
    ended = clipcap("verify", tmp_path / "out", "--full")
    assert (ended.code, "0 errors" in ended.out) == (0, True)
    (tmp_path / "out" / "_plans" / "run-x").mkdir(parents=True)
    (tmp_path / "out" / "_plans" / "run-x" / "s.parquet").write_bytes(b"")
    ended = clipcap("verify", tmp_path / "out")
    assert (ended.code, "`vacuum` removes old ones" in ended.out) == (0, True)
    assert "Now the next run" not in ended.out, "it has nothing to make"
    next((tmp_path / "out" / "embeddings").rglob("*.parquet")).unlink()
    ended = clipcap("verify", tmp_path / "out", "--json")
    assert (ended.code, json.loads(ended.out)["ok"]) == (1, False)


def test_models_are_listed_for_people_and_machines() -> None:
    assert "picture-book" in clipcap("models").out
    rows = json.loads(clipcap("models", "--all", "--json").out)
    assert {"bundled", "ViT-B-32/openai"} <= {row["name"] for row in rows}


def test_the_doctor_looks_at_everything_a_run_needs(tmp_path: Path, drawings: Path) -> None:
    rows = json.loads(clipcap("doctor", tmp_path / "out", "--source", drawings, "--json").out)
    states = {row["subject"]: row["state"] for row in rows}
    wanted = {"python", "torch", "device", "memory", "encoder", "captioner", "disk", "output"}
    assert wanted | {"source", "prefect server", "model cache"} <= set(states)
    assert "fail" not in states.values()


def test_the_doctor_fails_where_a_run_would() -> None:
    ended = clipcap("doctor", "/proc/nowhere")
    assert ended.code == 1
    assert "fail  output" in ended.out


def test_a_terminal_shows_bars_that_leave_no_trace(asked: list[str]) -> None:
    shown = io.StringIO()
    terminal = Console(force_terminal=True, width=90, file=shown)
    with (
        patch("flows.commands._start._listener", console.Bars),
        patch("flows.console.Console", return_value=terminal),
    ):
        ended = clipcap(*asked)
    for stage in ("shard", "embed", "caption", "label", "publish"):
        assert stage in shown.getvalue()
    assert ended.out.splitlines()[1].startswith("embed     6 images embedded")


def test_partitions_are_counted_where_there_is_no_terminal(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    (tmp_path / "chosen.json").write_text(settings.model_dump_json())
    words = ("run", drawings, tmp_path / "out", "--settings", tmp_path / "chosen.json")
    lines = clipcap(*words, "--no-server").out.splitlines()
    counted = [line for line in lines if line.startswith("embed")]
    assert ["1 of 3 shards" in counted[0], "2 of 3 shards" in counted[1]] == [True, True]
    assert "6 images embedded in 3 shards" in counted[2]


def test_a_stage_of_many_shards_tells_which_were_unchanged(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    from flows.nightly import nightly

    nightly.fn(str(drawings), f"{tmp_path}/out", settings)
    draw(drawings / "drawing-9.png", 9)
    night: Night = nightly.fn(str(drawings), f"{tmp_path}/out", settings).night
    line = console.stage_line("embed", night)
    assert "1 image embedded in 1 shard, 3 shards unchanged" in line


@pytest.mark.slow
def test_the_demo_shows_captions_and_labels_and_then_finds_everything_unchanged(
    tmp_path: Path,
) -> None:
    first = clipcap("demo", tmp_path / "demo")
    assert first.code == 0, first.err
    assert "1 rejected (truncated 1)" in first.out
    assert "scene-01.jpg" in first.out
    assert "Try next" in first.out
    began = time.monotonic()
    second = clipcap("demo", tmp_path / "demo")
    assert "24 unchanged" in second.out
    assert time.monotonic() - began < 10


def test_a_pickle_that_wants_to_run_something_is_refused_by_train(
    drawings: Path, tmp_path: Path, tiny: Tiny
) -> None:
    mark, out = tmp_path / "was-here", f"{tmp_path}/out"
    attack = b"\x80\x02cposix\nsystem\nX%c\x00\x00\x00%b\x85R."
    command = f"touch {mark}".encode()
    (tmp_path / "data.pkl").write_bytes(attack % (len(command), command))
    clipcap("shard", drawings, out, "--no-server")
    words = ["--model", tiny.encoder.model, "--captions", tmp_path / "data.pkl", "--no-server"]
    for more in ([], ["--embeddings", "file"]):
        ended = clipcap("train", out, *words, *more)
        assert ended.code == SettingsError.exit_code
        assert "posix.system" in ended.err
        assert "was not run" in ended.err
    assert not mark.exists()


def test_train_tells_which_captions_it_left_out(drawings: Path, tmp_path: Path, tiny: Tiny) -> None:
    out, file = f"{tmp_path}/out of 2026", tmp_path / "captions.csv"
    file.write_text("image,caption\ndrawing-0.png,a red ball.\ndrawing-1.png,\nother.png,a car.\n")
    model = ["--model", tiny.encoder.model, "--no-server"]
    clipcap("shard", drawings, out, "--no-server")
    clipcap("embed", out, *model)
    ended = clipcap("train", out, *model, "--steps", 1, "--captions", file)
    assert "left out  1 captions of no image of the output, 1 blank ones\n" in ended.out, ended.err
    use = next(line for line in ended.out.splitlines() if line.startswith("use it    clipcap "))
    done = clipcap(*shlex.split(use.removeprefix("use it    clipcap ")), "--no-server")
    assert done.code == 0, done.err


def test_the_option_for_users_of_the_original_is_named(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04N.")
    words = ["--captions", tmp_path / "data.pkl", "--model", tiny.encoder.model, "--no-server"]
    ended = clipcap("train", tmp_path / "none", *words)
    assert "none does not exist. The file of captions holds embeddings" in ended.err
    assert "`--embeddings file`" in ended.err
