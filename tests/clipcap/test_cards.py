"""A captioner's card: read as written, digested to the byte, and refused where it does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipcap import captioner
from clipcap.cards import (
    Card,
    EncoderFit,
    captioner_digest,
    read_card,
    require_fit,
    write_card,
)
from clipcap.errors import SettingsError
from tests.captioners import DIM_CLIP, tiny_captioner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_captioner().save(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


def test_the_digest_sees_every_file(folder: Path) -> None:
    seen = {captioner_digest(str(folder))}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(captioner_digest(str(folder)))
    files[0].rename(files[0].with_suffix(".other"))
    seen.add(captioner_digest(str(folder)))
    assert len(seen) == len(files) + 2


def test_card_and_digest_need_no_torch(folder: Path) -> None:
    code = (
        "import sys, clipcap.training; from clipcap.cards import captioner_digest, read_card;"
        f"read_card({str(folder)!r}); captioner_digest({str(folder)!r});"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mapper": {"name": "mpl"}}, "Did you mean mlp"),
        ({"mapper": {"name": "mlp", "settings": {"wide": 1}}}, "`wide`"),
        ({"captioner_id": "../up"}, "captioner_id"),
        ({"colour": "red"}, "colour"),
        ({"format": 2}, "format"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    path = folder / "captioner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SettingsError, match=message):
        captioner.load(str(folder))


def test_a_card_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "captioner.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(SettingsError, match=r"captioner\.json cannot be read"):
        read_card(str(folder))


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    card = tiny_captioner().card
    write_card(str(tmp_path), card)
    assert read_card(str(tmp_path)) == card


# --- the fit between captioner and embeddings -----------------------------------------------------


FIT = {
    "model_id": "tiny-clip",
    "sha256": "a" * 64,
    "preprocess_sha256": "b" * 64,
    "dim": DIM_CLIP,
}


def test_embeddings_of_the_cards_encoder_fit() -> None:
    require_fit(tiny_captioner().card, **FIT)  # type: ignore[arg-type]


def test_the_same_weights_under_another_name_fit() -> None:
    require_fit(tiny_captioner().card, **(FIT | {"model_id": "renamed"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"sha256": "c" * 64}, ["weights sha256", "a" * 64, "c" * 64]),
        ({"preprocess_sha256": "d" * 64}, ["preprocessing sha256", "b" * 64, "d" * 64]),
        ({"dim": 512}, ["dimension must be 16, but is 512"]),
    ],
)
def test_embeddings_of_another_encoder_are_refused_by_both_fingerprints(
    change: dict[str, object], names: list[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        require_fit(tiny_captioner().card, **(FIT | change))  # type: ignore[arg-type]
    for name in [*names, "tiny-clip", "L2-normalised"]:
        assert name in str(raised.value)


def test_where_no_digest_is_known_the_name_must_be_equal() -> None:
    card = Card(captioner_id="old", encoder=EncoderFit(model_id="ViT-B-32", dim=DIM_CLIP))
    require_fit(card, **(FIT | {"model_id": "ViT-B-32"}))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="encoder must be ViT-B-32, but is tiny-clip"):
        require_fit(card, **FIT)  # type: ignore[arg-type]
