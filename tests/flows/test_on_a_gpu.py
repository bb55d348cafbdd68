"""What commands compute on a GPU is what they compute without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command import clipcap
from tests.nights import Tiny

DEVICES = ("cpu", "cuda")
TEXTS = ("a red ball.", "two cats.", "a dog.", "a house in the snow.", "a boat.", "one tree.")
NOT_COMPARED = ("run_id", "created_at", "first_seen_at")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of every table below a folder."""
    parts = [pq.ParquetFile(path).read() for path in sorted(folder.rglob("*.parquet"))]
    found = pa.concat_tables(parts, promote_options="permissive")
    left = [name for name in found.schema.names if name not in NOT_COMPARED]
    made: list[dict[str, Any]] = found.select(left).to_pylist()
    return sorted(made, key=lambda row: [str(row.get(name)) for name in ("key", "rank", "label")])


def near(value: object) -> Any:  # noqa: ANN401 - what compares with anything
    """Return what equals a value but for rounding."""
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-4)
    if isinstance(value, list):
        return [near(one) for one in value]
    return {name: near(one) for name, one in value.items()} if isinstance(value, dict) else value


def run(*words: object) -> dict[str, Any]:
    """Return what a command tells."""
    ended = clipcap(*words, "--json")
    assert ended.code == 0, ended.err
    told: dict[str, Any] = json.loads(ended.out)
    return told


@pytest.mark.usefixtures("gpu")
def test_a_night_and_what_is_asked_of_it(drawings: Path, tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    models = ("--model", tiny.encoder.model, "--captioner", tiny.captioner.captioner)
    for device in DEVICES:
        place = tmp_path / device
        on = ("--device", device)
        run("run", drawings, place / "out", *models, "--label-set", tiny.label_set, *on)
        to = ("--to", place / "choices", "--candidates", tmp_path / "texts.txt")
        run("choose", place / "out", *to, *models, "--by", "both", *on)
        asked = ("--question", "what is it?", "--answers", "cat,dog,house", "--by", "both")
        run("ask", place / "out", "--to", place / "answers", *asked, *models, *on)
        shown = ("--model", tiny.encoder.model, "--label-set", tiny.label_set)
        run("where", place / "out", "--to", place / "places", *shown, *on)
    cpu, cuda = (tmp_path / device for device in DEVICES)
    names = ("out/embeddings", "out/captions", "out/labels", "choices", "answers", "places")
    for name in names:
        found = rows(cuda / name)
        assert found, name
        assert found == near(rows(cpu / name)), name
    run_rows = pq.ParquetFile(next((cuda / "out" / "runs").rglob("*.parquet"))).read()
    assert run_rows["device"].to_pylist() == ["cuda:0"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("way", "mapper"), [("finetune", "mlp"), ("frozen", "transformer"), ("lora", "mlp")]
)
def test_a_training(drawings: Path, tmp_path: Path, tiny: Tiny, way: str, mapper: str) -> None:
    for path, text in zip(sorted(drawings.iterdir()), TEXTS, strict=True):
        path.with_suffix(".txt").write_text(text)
    run("run", drawings, tmp_path / "out", "--model", tiny.encoder.model, "--captioner", "none")
    loop = {"language_model": way, "precision": "fp32", "dropout": 0.0, "steps": 4, "batch_size": 2}
    given = {"mapper": {"name": mapper}, "loop": loop | {"validation_share": 0.3}}
    (tmp_path / "train.json").write_text(json.dumps({"train": given}))
    losses = {}
    for device in DEVICES:
        out = shutil.copytree(tmp_path / "out", tmp_path / device)
        start = ("--start", tiny.captioner.captioner, "--settings", tmp_path / "train.json")
        done = run("train", out, *start, "--model", tiny.encoder.model, "--device", device)
        losses[device] = [done["loss"], done["validation_loss"]]
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-3)
