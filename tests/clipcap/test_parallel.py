"""Two processes that train one captioner: the result of one, and again so after a kill."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipcap import cards, parallel
from clipcap.batches import Captions
from clipcap.parallel import Team

SETTINGS = {
    "epochs": 3, "batch_size": 5, "learning_rate": 3e-3, "validation_share": 0.2, "validations": 3,
    "precision": "fp32", "texts": {"epochs": 2, "noise": 0.0}, "accumulate": 2, "seed": 3,
    "dropout": 0.0,
}  # fmt: skip
MODES = ("frozen", "finetune", "lora")
NOISE = {"embedding_noise": 0.1, "precision": "auto", "dropout": 0.2}
IN_TURN = """
import json, os, sys, time
from datetime import timedelta
from functools import partial
from pathlib import Path
import torch
from clipcap import parallel
from tests.forks import together
from tests.teams import _free_port

def work(rank, port):
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": str(rank),
                   "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.joined(torch.device("cpu")) as team, team.in_turn():
        time.sleep(0 if rank else 2)
        with (Path(sys.argv[1]) / "turns").open("a") as told:
            told.write(str(rank))

port = _free_port()
parallel.PATIENCE = timedelta(seconds=1)
json.dump(together(partial(work, rank, port) for rank in range(2)), sys.stdout)
"""
KILLS = ([1, 8], [0, 11])


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    made = folder / f"captioner-{rank}"
    parts = (cards.MAPPER_NAME, f"{cards.LANGUAGE_MODEL_NAME}/model.safetensors")
    return {f"{part}/{name}": t for part in parts for name, t in load_file(made / part).items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]], str]:
    """Every training of this file; one process imports for all of them."""
    folder = tmp_path_factory.mktemp("teams")
    plan: list[dict[str, Any]] = [
        {"name": f"{mode}-{count}", "processes": count,
         "settings": SETTINGS | {"language_model": mode}}
        for mode in MODES
        for count in (1, 2)
    ]  # fmt: skip
    noisy = {"processes": 2, "settings": SETTINGS | NOISE}
    plan.append(noisy | {"name": "whole"})
    for rank, step in KILLS:
        plan.append(noisy | {"name": f"killed-{rank}", "dies": [rank, step]})
        plan.append(noisy | {"name": f"killed-{rank}"})
    command = [sys.executable, "-m", "tests.teams", str(folder)]
    done = subprocess.run(
        command, input=json.dumps(plan), check=True, capture_output=True, text=True, timeout=240
    )
    ended: dict[str, list[int]] = {}
    for one, codes in zip(plan, json.loads(done.stdout), strict=True):
        ended.setdefault(one["name"], []).extend(codes)
    return folder, ended, done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_end_where_one_does(
    made: tuple[Path, dict[str, list[int]], str], mode: str
) -> None:
    folder, ended, said = made
    assert (ended[f"{mode}-1"], ended[f"{mode}-2"]) == ([0], [0, 0]), said
    alone = weights(folder / f"{mode}-1", 0)
    first, second = (weights(folder / f"{mode}-2", rank) for rank in (0, 1))
    for name, weight in alone.items():
        assert torch.allclose(first[name], weight, rtol=1e-3, atol=1e-5), name
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("rank", [rank for rank, _ in KILLS])
def test_two_processes_go_on_after_one_was_killed(
    made: tuple[Path, dict[str, list[int]], str], rank: int
) -> None:
    folder, ended, said = made
    codes = ended[f"killed-{rank}"]
    assert codes[rank] == -signal.SIGKILL, said
    assert codes[1 - rank] == 1  # not left hanging
    assert "Another process of the training is gone" in said
    assert codes[2:] == [0, 0], said
    steps = [int(line) for line in (folder / f"killed-{rank}" / "steps-0.txt").read_text().split()]
    assert any(later <= earlier for earlier, later in itertools.pairwise(steps))
    assert steps.count(1) == 1  # it went on, not anew
    whole, again = (weights(folder / name, 0) for name in ("whole", f"killed-{rank}"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_each_process_draws_noise_of_its_own(
    made: tuple[Path, dict[str, list[int]], str],
) -> None:
    team = [Team(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for one in (*team, team[0]):
            one.draw_apart(0, 7)
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_batch_is_shared_out_without_loss(count: int) -> None:
    parts = [Team(rank, 3, torch.device("cpu")).share(torch.arange(count)) for rank in range(3)]
    assert torch.cat(parts).tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_by_itself_is_a_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")  # of something else
    monkeypatch.setenv("WORLD_SIZE", "2")
    with parallel.joined(torch.device("cpu")) as team:
        assert (team.rank, team.size) == (0, 1)
    assert parallel.device("cpu") == "cpu"


def test_the_first_process_goes_first_however_long_it_takes(tmp_path: Path) -> None:
    """The others' patience with everything else is a second here, and it takes two."""
    folder = str(tmp_path)
    command = [sys.executable, "-c", IN_TURN, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [0, 0], done.stderr
    assert (tmp_path / "turns").read_text() == "01"


def test_captions_split_into_those_outside_and_under_a_mask() -> None:
    data = Captions(torch.arange(3), torch.ones(3, 2, dtype=torch.long), torch.tensor([1, 2, 1]))
    outside, under = data.split(torch.tensor([False, True, False]))
    assert (outside.row_S.tolist(), under.row_S.tolist()) == ([0, 2], [1])
