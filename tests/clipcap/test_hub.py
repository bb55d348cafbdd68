"""The model hub: asked once, told at once where it cannot be reached."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipcap import models
from clipcap.errors import HubError
from clipcap.modelfolder import CONFIGURATION
from tests.hub import empty_cache, model_hub, run_python
from tests.models import DIM, WEIGHTS, change, make_tiny_clip
from tests.transformersmodels import make_clip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, and a hub that may be asked but is not there."""
    return empty_cache(tmp_path, monkeypatch)


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """A server that takes connections and never says a word, as behind a bad firewall."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("name", ["hf-hub:laion/some-clip", "ViT-B-32/laion2b_s34b_b79k"])
def test_an_unreachable_hub_is_told_in_two_seconds(
    name: str, silent_endpoint: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """open_clip needed 46.6 s and 55 lines for it, transformers 23.3 s."""
    monkeypatch.setattr(constants, "ENDPOINT", silent_endpoint)
    start = time.perf_counter()
    with pytest.raises(HubError) as caught:
        models.encoder(name)
    assert time.perf_counter() - start < 2
    said = str(caught.value)
    assert said.startswith(f"The model hub {silent_endpoint} is not reachable")
    assert f"is not in the local cache ({cache})" in said
    assert "Use the bundled model" in said
    assert "--local-dir FOLDER" in said
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_hub_that_refuses_is_told_at_once(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubError, match="is not reachable"):
        models.encoder("hf-hub:laion/some-clip")


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        models.encoder("hf-hub:laion/some-clip")


ASK = """
import sys
from clipcap import models
from clipcap.errors import ClipcapError
for name in sys.argv[1:]:
    try:
        print(models.encoder(name).sha256)
    except ClipcapError as error:
        print(type(error).__name__, error)
from clipcap.encoders import openclip
print(openclip.load(openclip.Settings(model=sys.argv[1])).encode_texts(["a cat"]).shape)
"""


@pytest.mark.slow
def test_a_repository_is_fetched_once_and_then_never_asked_for(tmp_path: Path) -> None:
    """A hub of our own on loopback, asked by a fresh process as a person's would be."""
    served = make_tiny_clip(tmp_path / "hub" / "org" / "tiny")
    text = json.loads((served / CONFIGURATION).read_text())["model_cfg"]["text_cfg"]
    change(served, "model_cfg", text_cfg=text | {"hf_tokenizer_name": "org/tiny"})
    (served / "open_clip_pytorch_model.bin").write_bytes(b"a pickle that nobody wants")
    bare = tmp_path / "hub" / "org" / "bare"
    bare.mkdir()
    (bare / "model.safetensors").write_bytes(b"")
    with model_hub(tmp_path / "hub") as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        environment["HF_HUB_CACHE"] = str(tmp_path / "fetched")
        names = ["hf-hub:org/tiny", "hf-hub:org/bare", "hf-hub:org/none"]
        said = run_python(ASK, names, environment)
        assert said[0] == models.encoder(str(served)).sha256
        assert "org/bare must hold open_clip_config.json" in said[1]
        assert "knows no repository org/none" in said[2]
        assert said[3] == f"torch.Size([1, {DIM}])"
        fetched = [line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /org")]
        wanted = [CONFIGURATION, WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
        assert sorted(fetched) == sorted(wanted)
        hub.asked.clear()
        assert run_python(ASK, names[:1], environment) == [said[0], said[3]]
        assert hub.asked == []


ASK_BY_NAME = """
import sys
from clipcap import embedding
from clipcap.embedding import EmbedSettings, Speed
settings = EmbedSettings(model=sys.argv[1])
print(embedding.reference(settings).sha256)
print(embedding.load(settings, Speed(device="cpu")).encode_texts(["a cat"]).shape)
"""


@pytest.mark.slow
def test_a_repository_of_transformers_is_fetched_once_without_what_is_not_needed(
    tmp_path: Path,
) -> None:
    """By its bare name, as the tutorials write it."""
    served = tmp_path / "hub" / "openai" / "clip-tiny"
    make_clip(served)
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "evil.py"):
        (served / name).write_bytes(b"nobody wants it")
    with model_hub(tmp_path / "hub") as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        environment["HF_HUB_CACHE"] = str(tmp_path / "fetched")
        said = run_python(ASK_BY_NAME, ["openai/clip-tiny"], environment)
        assert said == [models.encoder(str(served)).sha256, f"torch.Size([1, {DIM}])"]
        fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /openai")}
        wanted = {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert fetched == wanted | {"tokenizer.json", "tokenizer_config.json"}
        hub.asked.clear()
        assert run_python(ASK_BY_NAME, ["openai/clip-tiny"], environment) == said
        assert hub.asked == []
