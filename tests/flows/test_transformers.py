"""Whole nights with encoders of transformers: nobody says which library, every stage works."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from clipcap import commits, models, storage, tables, verify
from clipcap.encoders import openclip, transformers
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.architecture.tree import ROOT
from tests.command import clipcap
from tests.nights import Tiny, make_tiny
from tests.tables import glob
from tests.transformersmodels import WEIGHTS, change, make_clip, make_siglip, make_siglip2

MAKERS: dict[str, Callable[[Path, int], Any]] = {
    "clip": make_clip,
    "siglip": make_siglip,
    "siglip2": make_siglip2,
}


@pytest.fixture(params=MAKERS)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tiny]:
    """Each type of model, and a captioner that reads its embeddings."""
    yield make_tiny(tmp_path / "models", make=MAKERS[request.param])
    transformers.forget()


def test_a_night_embeds_captions_and_labels(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    with patch.object(openclip, "load", side_effect=AssertionError("another library")):
        night = nightly.fn(str(drawings), out, settings).night
    assert {outcome.stage for outcome in night.outcomes} == {"shard", "embed", "caption", "label"}
    live = set(glob(out, "manifest")["image_id"].to_pylist())
    for name in ("embeddings", "captions", "labels"):
        assert set(glob(out, name)["image_id"].to_pylist()) == live
    assert verify.verify(out).problems == ()
    ref = models.encoder(settings.embed.model)
    found = next(info.url for info in storage.list_objects(f"{out}/embeddings"))
    commit = commits.find(found)
    assert commit is not None
    assert commit.metadata["model_sha256"] == ref.sha256
    assert ("logit_bias" in commit.metadata) == (ref.preprocess["resize_mode"] != "shortest")
    norm_B = np.linalg.norm(tables.vectors(tables.read(found)), axis=1)
    np.testing.assert_allclose(norm_B, 1, atol=1e-3)
    rows = [row for row in glob(out, "labels").to_pylist() if row["rank"] <= 3]
    score_R = np.array([row["score"] for row in rows])
    logit_R = np.array([row["similarity"] for row in rows]) * float(commit.metadata["logit_scale"])
    if "logit_bias" in commit.metadata:  # each label alone, as a SiglipModel has it
        logit_R += float(commit.metadata["logit_bias"])
        np.testing.assert_allclose(score_R, 1 / (1 + np.exp(-logit_R)), atol=1e-5)
    else:
        assert sum(score_R) == pytest.approx(len(live), abs=1e-4), "three labels share an image"


def test_a_second_night_needs_no_model_library(
    drawings: Path, tmp_path: Path, settings: NightlySettings
) -> None:
    out = str(tmp_path / "out")
    nightly.fn(str(drawings), out, settings)
    code = "import sys\nfrom flows.nightly import NightlySettings, nightly\n"
    code += "found = nightly.fn(*sys.argv[1:3], NightlySettings.model_validate_json(sys.argv[3]))\n"
    code += "print({outcome.state for outcome in found.night.outcomes},"
    code += " {'torch', 'open_clip', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", code, str(drawings), out, settings.model_dump_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "{'unchanged'} set()\n"


def test_commands_take_such_a_folder(drawings: Path, tmp_path: Path, tiny: Tiny) -> None:
    out, model = tmp_path / "out", ("--model", tiny.encoder.model)
    assert clipcap("shard", drawings, out, "--no-server").code == 0
    for words in (("embed", out), ("label", out, "--label-set", tiny.label_set)):
        ended = clipcap(*words, *model, "--no-server")
        assert ended.code == 0, ended.err
    assert len(glob(str(out), "labels")) == 6 * 3


def spoil_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def spoil_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def spoil_type(folder: Path) -> None:
    change(folder, "config.json", model_type="bert")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_processor, "must hold preprocessor_config.json"),
        (spoil_weights, "pytorch_model.bin, a pickle"),
        (spoil_type, "model_type 'bert'"),
    ],
)
def test_a_folder_that_will_not_do_is_told_in_one_block(
    drawings: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    make_clip(tmp_path / "made")
    folder = Path(shutil.copytree(tmp_path / "made", tmp_path / "spoilt"))
    spoil(folder)
    ended = clipcap("run", drawings, tmp_path / "out", "--model", folder, "--no-server")
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach_is_told_with_the_way_round(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    words = ("run", drawings, tmp_path / "out", "--model", "openai/clip-vit-base-patch16")
    ended = clipcap(*words, "--no-server")
    assert ended.code == 3
    assert "--local-dir" in ended.err
