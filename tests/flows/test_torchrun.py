"""`torchrun -m clipcap train`: one captioner, one row of one run, told once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipcap import cards
from tests.command import clipcap
from tests.nights import Tiny, draw, night

ROOT = Path(__file__).resolve().parents[2]
LOOP = {
    "steps": 6, "batch_size": 4, "learning_rate": 1e-3, "validation_share": 0.2, "dropout": 0.0,
    "precision": "fp32",
}  # fmt: skip


def captioned(folder: Path, tiny: Tiny) -> None:
    for n in range(6):
        draw(folder / "in" / f"drawing-{n}.png", n)
        (folder / "in" / f"drawing-{n}.txt").write_text(f"a {('cat', 'dog', 'boat')[n % 3]}.")
    (folder / "texts.txt").write_text("a red car.\na blue boat on the sea.\na tree.\n")
    night(folder / "in", folder / "out", tiny)


@pytest.mark.slow
def test_torchrun_trains_one_captioner_in_two_processes(tmp_path: Path, tiny: Tiny) -> None:
    captioned(tmp_path, tiny)
    chosen = {"train": {"loop": LOOP | {"texts": {"noise": 0.0}}}}
    (tmp_path / "train.json").write_text(json.dumps(chosen))
    words = [
        "train", f"{tmp_path}/out", "--model", tiny.encoder.model, "--no-server",
        "--settings", f"{tmp_path}/train.json", "--texts", f"{tmp_path}/texts.txt",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "clipcap", *words, "--name", "two"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two trained in") == 1
    assert len(list((tmp_path / "out" / "runs").rglob("*.parquet"))) == 2  # the night, and this
    assert not (tmp_path / "out" / "_training" / "two.safetensors").exists()
    assert "one trained in" in clipcap(*words, "--name", "one").out
    folders = [tmp_path / "out" / "captioners" / name for name in ("one", "two")]
    for part in (cards.MAPPER_NAME, f"{cards.LANGUAGE_MODEL_NAME}/model.safetensors"):
        one, two = (load_file(folder / part) for folder in folders)
        far = {name: float((one[name] - two[name]).abs().max()) for name in one}
        assert max(far.values()) < 1e-4, far
