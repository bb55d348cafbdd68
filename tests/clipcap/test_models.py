"""What a model's name stands for, and what is on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from clipcap import modelnames, models, pretrained
from clipcap.errors import HubError, SettingsError
from tests.hub import cached, empty_cache, run_python
from tests.models import WEIGHTS, make_tiny_clip, registry


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, and a hub that may be asked but is not there."""
    return empty_cache(tmp_path, monkeypatch)


def refused(name: str | Path) -> str:
    """Return the sentence with which an encoder is refused."""
    with pytest.raises(SettingsError) as caught:
        models.encoder(str(name))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("bundeld", "bundled"),
        ("ViT-B-32/laion2b_s34b_b79", "ViT-B-32/laion2b_s34b_b79k"),
        ("vit-b-16-siglip/webli", "ViT-B-16-SigLIP/webli"),
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP/webli"),
    ],
)
def test_an_unknown_encoder_gives_the_nearest_first(name: str, nearest: str) -> None:
    said = refused(name)
    assert said.startswith(f"No encoder {name!r}. Did you mean {nearest}")
    assert "On this machine: bundled." in said
    assert modelnames.FULL_LIST in said


@pytest.mark.parametrize(
    "name", ["", "qqqqqq", "a/b/c", "hf-hub:", "hf-hub:../../etc", "local-dir:"]
)
def test_nonsense_is_refused_in_one_sentence(name: str) -> None:
    assert 10 < len(refused(name)) < 600


def test_openai_weights_without_quick_gelu_are_refused() -> None:
    said = refused("ViT-B-32/openai")
    assert "Write ViT-B-32-quickgelu/openai." in said


def test_the_published_names_are_those_of_the_installed_open_clip() -> None:
    """After an upgrade run `tests.models.write_registry()` and look at what has changed."""
    ours = {
        name: [f"{entry.repository}/{entry.weights}", entry.preprocess, entry.quick_gelu]
        for name, entry in pretrained.table().items()
    }
    assert ours == registry()


def test_every_published_name_has_a_configuration_or_says_which_name_has() -> None:
    for entry in pretrained.table().values():
        try:
            assert pretrained.configuration(entry)["embed_dim"] > 0
        except SettingsError as error:
            other = str(error).rpartition("Write ")[2].rstrip(".")
            assert pretrained.configuration(pretrained.table()[other])["embed_dim"] > 0


@pytest.mark.parametrize("tag", ["laion2b_s34b_b79k", "LAION2B-s34b-b79k"])
def test_a_published_name_in_the_cache_needs_no_hub(cache: Path, tag: str) -> None:
    snapshot = cached(cache, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    (snapshot / WEIGHTS).write_bytes(b"weights")
    ref = models.encoder(f"ViT-B-32/{tag}")
    assert ref.weights == str(snapshot / WEIGHTS)
    assert (ref.model_spec, ref.tokenizer) == ("ViT-B-32", None)
    assert ref.model_id == "ViT-B-32__laion2b_s34b_b79k"
    assert (ref.dim, ref.preprocess["size"]) == (512, [224, 224])


def test_a_siglip_name_needs_its_tokenizer_too(cache: Path) -> None:
    snapshot = cached(cache, "timm/ViT-B-16-SigLIP")
    (snapshot / WEIGHTS).write_bytes(b"weights")
    with pytest.raises(HubError):
        models.encoder("ViT-B-16-SigLIP/webli")
    (snapshot / "tokenizer.json").write_text("{}")
    ref = models.encoder("ViT-B-16-SigLIP/webli")
    assert ref.tokenizer == str(snapshot)
    assert ref.preprocess["resize_mode"] == "squash"
    assert ref.preprocess["mean"] == [0.5, 0.5, 0.5]


def test_the_caches_names_for_large_files_are_their_digests(cache: Path) -> None:
    snapshot = cached(cache, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    blob = snapshot.parents[1] / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"gigabytes")
    (snapshot / WEIGHTS).symlink_to(blob)
    assert models.encoder("ViT-B-32/laion2b_s34b_b79k").sha256 == "ab" * 32


def test_pickles_in_the_cache_are_not_taken(cache: Path) -> None:
    snapshot = cached(cache, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    (snapshot / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(HubError):
        models.encoder("ViT-B-32/laion2b_s34b_b79k")


LIGHT = """
import sys
from clipcap import modelnames, models
models.encoder(sys.argv[1])
modelnames.listing()
print([name for name in ("torch", "open_clip", "transformers", "timm") if name in sys.modules])
"""


def test_names_and_digests_need_no_model_library(tmp_path: Path) -> None:
    """A night without work is over in seconds, of which torch alone would take three."""
    folder = make_tiny_clip(tmp_path / "tiny")
    assert run_python(LIGHT, [str(folder)], dict(os.environ)) == ["[]"]


def test_a_folder_with_a_card_is_a_captioner(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / models.CARD).write_text("{}")
    assert models.captioner_folder(str(tmp_path / "mine")) == str(tmp_path / "mine")


def test_a_folder_without_a_card_is_no_captioner(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must hold captioner\.json"):
        models.captioner_folder(str(tmp_path))


def test_an_unknown_captioner_gives_the_nearest_first(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / models.CARD).write_text("{}")
    with pytest.raises(SettingsError) as caught:
        models.captioner_folder(str(tmp_path / "mien"))
    assert "Did you mean mine?" in str(caught.value)
    assert f"On this machine: bundled, {tmp_path / 'mine'}." in str(caught.value)


def test_a_captioner_on_a_store_is_fetched(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/captioners/mine/{models.CARD}", b"{}")
    memory.pipe_file("/captioners/mine/language_model/config.json", b"{}")
    folder = Path(models.captioner_folder("memory://captioners/mine"))
    assert folder.is_relative_to(tmp_path / "xdg")
    assert (folder / "language_model" / "config.json").read_text() == "{}"
    memory.rm("/captioners", recursive=True)


def test_the_list_says_what_is_here_and_what_can_be_fetched(cache: Path) -> None:
    snapshot = cached(cache, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    (snapshot / WEIGHTS).write_bytes(b"weights")
    mine = make_tiny_clip(cached(cache, "me/my-clip"))
    (cached(cache, "gpt2") / "model.safetensors").write_bytes(b"not an encoder")
    rows = {(row.name, row.kind): row for row in modelnames.listing()}
    assert ("bundled", "encoder") in rows
    assert "picture-book scenes" in rows["bundled", "captioner"].note
    assert rows["ViT-B-32/laion2b_s34b_b79k", "encoder"].on_this_machine
    size = sum(path.stat().st_size for path in mine.iterdir())
    assert rows["hf-hub:me/my-clip", "encoder"].size_bytes == size
    assert not rows["ViT-B-16-SigLIP/webli", "encoder"].on_this_machine
    assert not any("gpt2" in name for name, _ in rows)
    everything = {row.name for row in modelnames.listing("all")}
    assert everything >= set(pretrained.table())


def test_the_bundled_encoder_has_a_name_of_its_own() -> None:
    ref = models.encoder("bundled")
    assert ref.model_id == "clipcap-tiny-clip"
    assert Path(ref.weights).is_relative_to(models.BUNDLED_FOLDER)
