"""Checkpoints of the original ClipCap: read to the bit, written for its own modules to load."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from clipcap import captioner as captioners
from clipcap import checkpoints, dimensions, interop, modelfolder
from clipcap.cards import Choice, read_card, require_fit
from clipcap.errors import SettingsError
from clipcap.interop import Given
from tests import checkpoints as made
from tests.captioners import tiny_captioner
from tests.checkpoints import Size

BPE = Path(__file__).parents[3] / "shared" / "data" / "gpt2_bpe"
GPT2_WORDS = 50257
MLP = Size()
TRANSFORMER = Size(mapper="transformer", prefix_length=5, clip_length=4)
LINEAR = Size(mapper="linear", prefix_length=12)
SIZES = {
    "mlp": MLP,
    "transformer": TRANSFORMER,
    "linear": LINEAR,
    "wide transformer": Size(
        mapper="transformer", prefix_length=2, clip_length=7, mapper_layers=3, dim_lm=128
    ),
    "long mlp": Size(prefix_length=40, layers=1, positions=120),
}
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Save something as a checkpoint; return its path."""

    def save(content: object, name: str = "coco_prefix-009.pt", **how: bool) -> str:
        path = tmp_path / name
        torch.save(content, path, **how)
        return str(path)

    return save


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """Everything that the files of `SIZES` do not tell."""
    words = made.words_folder(tmp_path / "words")
    return Given(encoder="bundled", normalized=False, tokenizer=words)


def changed(tensors: dict[str, Any], **to: Tensor) -> dict[str, Any]:
    return tensors | {name.replace("__", "."): value for name, value in to.items()}


def mapper_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.partition(".")[2]: t for k, t in tensors.items() if k.startswith("clip_project.")}


def gpt_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    obsolete = (".attn.bias", ".attn.masked_bias")
    found = {k.partition(".")[2]: t for k, t in tensors.items() if k.startswith("gpt.")}
    return {name: tensor for name, tensor in found.items() if not name.endswith(obsolete)}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("buffers", [False, True])
def test_a_checkpoint_becomes_a_folder_with_exactly_its_numbers(
    size: Size, buffers: bool, write: Write, given: Given, tmp_path: Path
) -> None:
    tensors = made.state(replace(size, buffers=buffers))
    path = write(tensors)
    interop.read_checkpoint(path, given).save(str(tmp_path / "folder"))
    found = captioners.load(str(tmp_path / "folder"))
    assert_same(found.mapper.state_dict(), mapper_of(tensors))
    assert_same(found.language_model.state_dict(), gpt_of(tensors))
    card = found.card
    assert (card.captioner_id, card.normalized) == ("coco_prefix-009", False)
    assert (card.prefix_length, card.encoder.dim) == (size.prefix_length, size.dim_clip)
    assert card.mapper.name == size.mapper
    assert card.decode == Choice(
        name="beam", settings={"beam_size": 5, "max_tokens": 67, "stop": "."}
    )
    sha256 = modelfolder.sha256(Path(path))
    assert card.training == {"imported_from": "coco_prefix-009.pt", "sha256": sha256}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_says_what_the_original_says(size: Size, write: Write, given: Given) -> None:
    """Prefix and logits: the heads, the order of parts and every constant are right."""
    original = made.model(size)
    found = interop.read_checkpoint(write(original.state_dict()), given)
    embedding_BD = torch.randn(3, size.dim_clip, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        prefix_BPE = original.prefix(embedding_BD)
        torch.testing.assert_close(found.prefix(embedding_BD), prefix_BPE, rtol=1e-5, atol=1e-5)
        token_BT = torch.randint(size.words, (3, 9), generator=torch.Generator().manual_seed(2))
        read_BTE = torch.cat((prefix_BPE, original.gpt.transformer.wte(token_BT)), 1)
        logits = found.language_model(inputs_embeds=read_BTE).logits
        torch.testing.assert_close(logits, original.gpt(read_BTE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "how",
    [
        {"_use_new_zipfile_serialization": False},
        {"_use_new_zipfile_serialization": True},
    ],
)
@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_every_way_of_saving_it_is_read(
    how: dict[str, bool], before: str, wrapper: str | None, write: Write, given: Given
) -> None:
    tensors = made.state(MLP)
    content: dict[str, Any] = {f"{before}{name}": tensor for name, tensor in tensors.items()}
    if wrapper:
        content = {"epoch": 9, wrapper: content, "optimizer": {"lr": 2e-5}}
    found = interop.read_checkpoint(write(content, **how), given)
    assert_same(dict(found.mapper.state_dict()), mapper_of(tensors))
    assert_same(dict(found.language_model.state_dict()), gpt_of(tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_a_head_may_be_missing(
    dtype: torch.dtype, write: Write, given: Given
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in made.state(MLP).items()}
    del tensors["gpt.lm_head.weight"]
    found = interop.read_checkpoint(write(tensors), given)
    model = found.language_model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, tensors["gpt.transformer.wte.weight"].float())
    assert not model.training
    assert not found.mapper.training
    told = {"beam_size": 5, "max_tokens": 67, "stop": "."}
    assert found.card.decode == Choice(name="beam", settings=told), "as `predict.py` has it"


@pytest.mark.parametrize("zipped", [True, False])
def test_what_was_saved_on_a_gpu_is_read_without_one(
    zipped: bool, write: Write, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most checkpoints are: each tensor in them names the device that it was on."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    path = write(made.state(MLP), _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    found = interop.read_checkpoint(path, given)
    assert found.device.type == "cpu"
    assert_same(dict(found.mapper.state_dict()), mapper_of(made.state(MLP)))


def test_every_width_of_a_hidden_layer_comes_back_from_its_share() -> None:
    """15 of 11 as a share is cut to 14 again; some other share must stand for it."""
    assert int(15 / 11 * 11) == 14
    for whole in (11, 13, 64, 96, 7680):
        for hidden in range(1, 300):
            assert int(dimensions._ratio(hidden, whole) * whole) == hidden


def test_a_head_of_its_own_is_kept(write: Write, given: Given, tmp_path: Path) -> None:
    tensors = made.state(MLP)
    tensors["gpt.lm_head.weight"] = tensors["gpt.lm_head.weight"] * 2
    interop.read_checkpoint(write(tensors), given).save(str(tmp_path / "folder"))
    model = captioners.load(str(tmp_path / "folder")).language_model
    assert torch.equal(model.lm_head.weight, tensors["gpt.lm_head.weight"])
    assert torch.equal(model.transformer.wte.weight, tensors["gpt.transformer.wte.weight"])


def test_other_widths_of_the_hidden_layers_are_inferred(write: Write, given: Given) -> None:
    tensors = made.state(MLP)
    dim_out = MLP.prefix_length * MLP.dim_lm
    for hidden in (1, 7, 100, dim_out - 1, dim_out, 3 * dim_out + 1):
        tensors["clip_project.model.0.weight"] = torch.randn(hidden, MLP.dim_clip)
        tensors["clip_project.model.0.bias"] = torch.randn(hidden)
        tensors["clip_project.model.2.weight"] = torch.randn(dim_out, hidden)
        found = interop.read_checkpoint(write(tensors), given)
        assert_same(dict(found.mapper.state_dict()), mapper_of(tensors))


# --- what a file does not tell -----------------------------------------------------------------


def published(mapper: str) -> Size:
    """A file of a published form, but with a language model of one layer."""
    if mapper == "mlp":
        return Size(dim_clip=512, prefix_length=10, layers=1)
    return Size(mapper=mapper, dim_clip=640, prefix_length=40, clip_length=40, layers=1)


@pytest.mark.parametrize(
    ("mapper", "name", "model_id", "normalized"),
    [
        ("mlp", "coco_weights.pt", "ViT-B-32-quickgelu__openai", False),
        ("mlp", "conceptual_weights.pt", "ViT-B-32-quickgelu__openai", False),
        ("mlp", "model_wieghts.pt", "ViT-B-32-quickgelu__openai", False),
        ("transformer", "transformer_weights.pt", "RN50x4-quickgelu__openai", True),
    ],
)
def test_the_published_ones_are_known(
    mapper: str, name: str, model_id: str, normalized: bool, write: Write, given: Given
) -> None:
    words = Given(tokenizer=given.tokenizer)
    card = interop.read_checkpoint(write(made.state(published(mapper)), name), words).card
    assert (card.encoder.model_id, card.normalized) == (model_id, normalized)
    fits = {"model_id": model_id, "sha256": "a" * 64, "preprocess_sha256": "b" * 64}
    require_fit(card, **fits, dim=card.encoder.dim)
    with pytest.raises(SettingsError, match="encoder must be"):
        require_fit(card, **(fits | {"model_id": "ViT-B-32__laion2b"}), dim=card.encoder.dim)


def test_what_is_given_wins_over_what_is_known(write: Write, given: Given) -> None:
    words = Given(tokenizer=given.tokenizer, normalized=True, encoder="RN101", name="mine")
    card = interop.read_checkpoint(
        write(made.state(published("mlp")), "coco_weights.pt"), words
    ).card
    assert (card.captioner_id, card.encoder.model_id) == ("mine", "RN101-quickgelu__openai")
    assert card.normalized


def test_a_shape_alone_proves_nothing(write: Write, given: Given) -> None:
    """`train.py` makes the published shapes of either kind of embeddings."""
    path = write(made.state(published("transformer")), "coco_prefix-009.pt")
    with pytest.raises(SettingsError) as error:
        interop.read_checkpoint(path, Given(tokenizer=given.tokenizer))
    for part in (
        "cannot tell the encoder (`--encoder`) and whether embeddings were normalised",
        "a transformer mapper (D=640, P=40)",
        "published COCO transformer: if it is that, add --encoder RN50x4-quickgelu/openai "
        "--normalized",
        "unless it was run with --normalize_prefix",
    ):
        assert part in str(error.value)
    with pytest.raises(SettingsError, match=r"cannot tell whether .* \(`--normalized` or `--raw`"):
        interop.read_checkpoint(path, Given(tokenizer=given.tokenizer, encoder="RN50x4"))
    with pytest.raises(SettingsError, match=r"cannot tell the encoder \(`--encoder`\)\. What"):
        interop.read_checkpoint(
            write(made.state(MLP)), Given(tokenizer=given.tokenizer, normalized=True)
        )


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ("ViT-B-32/openai", r"QuickGELU.*Write ViT-B-32-quickgelu/openai"),
        ("RN50x4/openai", r"QuickGELU.*Write RN50x4-quickgelu/openai"),
        ("RN50x4", "reads embeddings of 512 numbers, but the encoder RN50x4 gives 640"),
        ("bundled", "reads embeddings of 512 numbers, but the encoder bundled gives 128"),
        ("ViT-B-33", "No encoder 'ViT-B-33'"),
    ],
)
def test_an_encoder_that_cannot_be_it_is_refused(
    encoder: str, told: str, write: Write, given: Given
) -> None:
    path = write(made.state(published("mlp")))
    wrong = given.model_copy(update={"encoder": encoder})
    with pytest.raises(SettingsError, match=told):
        interop.read_checkpoint(path, wrong)


def test_openais_own_names_are_understood(write: Write, given: Given) -> None:
    path = write(made.state(published("mlp")))
    card = interop.read_checkpoint(path, given.model_copy(update={"encoder": "ViT-B/32"})).card
    assert card.encoder.model_id == "ViT-B-32-quickgelu__openai"


def test_the_words_must_be_there_and_fit(
    write: Write, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(made.state(MLP))

    def read(folder: str | None) -> captioners.Captioner:
        return interop.read_checkpoint(path, given.model_copy(update={"tokenizer": folder}))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SettingsError, match=r"gpt2 is not in the local cache .*--tokenizer FOLDER"):
        read(None)
    cached = tmp_path / "cache" / "models--gpt2"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    made.words_folder(cached / "snapshots" / "abc")
    assert read(None).tokenizer.encode("a.") == [64, 13]
    with pytest.raises(SettingsError, match=r"must hold a tokenizer \(vocab.json"):
        read(str(tmp_path / "nothing"))
    with pytest.raises(SettingsError, match=r"has 257 words, but the tokenizer .* has 300"):
        read(made.words_folder(tmp_path / "more", 300))
    folder = Path(made.words_folder(tmp_path / "openai"))
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    assert read(str(folder)).tokenizer.eos_token_id == 256
    (folder / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with pytest.raises(SettingsError, match=r"joins what encoder.json does not have: 'a b'"):
        read(str(folder))
    (folder / "encoder.json").write_text('{"a": 0, "b": 7}')
    with pytest.raises(SettingsError, match="must give each word a number from 0"):
        read(str(folder))
    for vocabulary in ('{"a": 0, "b": 1}', '{"a": 0, "<|endoftext|>": 7}'):
        (folder / "encoder.json").write_text(vocabulary)
        with pytest.raises(SettingsError, match=r"from 0, <\|endoftext\|> too, but does not"):
            read(str(folder))
    (folder / "encoder.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (folder / "vocab.bpe").write_text("a\n")
    with pytest.raises(SettingsError, match=r"joins what encoder.json does not have: 'a' \(1 such"):
        read(str(folder))
    (folder / "encoder.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        read(str(folder))
    read(given.tokenizer).tokenizer.save_pretrained(tmp_path / "whole")
    assert read(str(tmp_path / "whole")).tokenizer.encode("a.") == [64, 13]
    for name, text in (("vocab.json", "{}"), ("merges.txt", "a b\n")):
        (tmp_path / "whole" / name).write_text(text)
    assert len(read(str(tmp_path / "whole")).tokenizer) == 257, "tokenizer.json comes first"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read("~/whole").tokenizer) == 257


def test_words_that_are_too_few_or_without_an_end_are_refused(
    write: Write, given: Given, tmp_path: Path
) -> None:
    path = write(made.state(replace(MLP, words=300)))
    with pytest.raises(SettingsError, match=r"has 300 words, but the tokenizer .* has 257"):
        interop.read_checkpoint(path, given)
    endless = interop.read_checkpoint(write(made.state(MLP)), given).tokenizer
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    configuration = tmp_path / "endless" / "tokenizer_config.json"
    told = json.loads(configuration.read_text())
    told.update(tokenizer_class="PreTrainedTokenizerFast", eos_token=None)
    configuration.write_text(json.dumps(told))
    changed = given.model_copy(update={"tokenizer": str(tmp_path / "endless")})
    with pytest.raises(SettingsError, match="has no end token"):
        interop.read_checkpoint(write(made.state(MLP)), changed)


def test_a_half_fetched_repository_is_passed_over(
    write: Write, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("gpt2", "openai-community--gpt2"):
        cached = tmp_path / "cache" / f"models--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("abc")
        (cached / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "cache" / "models--gpt2" / "snapshots" / "abc" / "README.md").write_text("")
    whole = tmp_path / "cache" / "models--openai-community--gpt2"
    made.words_folder(whole / "snapshots" / "abc")
    asked = given.model_copy(update={"tokenizer": None})
    found = interop.read_checkpoint(write(made.state(MLP)), asked)
    assert found.tokenizer.encode("a.") == [64, 13]


def test_no_code_beside_the_words_is_run(write: Write, given: Given, tmp_path: Path) -> None:
    folder, mark = tmp_path / "words-with-code", tmp_path / "was-here"
    interop.read_checkpoint(write(made.state(MLP)), given).tokenizer.save_pretrained(folder)
    (folder / "odd.py").write_text(
        "from pathlib import Path\nfrom transformers import GPT2TokenizerFast\n"
        f"Path({str(mark)!r}).touch()\nclass Odd(GPT2TokenizerFast):\n    pass\n"
    )
    configuration = folder / "tokenizer_config.json"
    told = json.loads(configuration.read_text())
    told.update(tokenizer_class="Odd", auto_map={"AutoTokenizer": [None, "odd.Odd"]})
    configuration.write_text(json.dumps(told))
    asked = given.model_copy(update={"tokenizer": str(folder)})
    with suppress(SettingsError):
        interop.read_checkpoint(write(made.state(MLP)), asked)
    assert not mark.exists()


# --- files that are no checkpoint --------------------------------------------------------------


def broken() -> dict[str, tuple[dict[str, Any], str]]:
    tensors = made.state(MLP)
    whole = made.state(TRANSFORMER)

    def without(part: str, of: dict[str, Any] = tensors) -> dict[str, Any]:
        return {name: tensor for name, tensor in of.items() if part not in name}

    first = "clip_project__model__0__weight"
    nan = tensors["gpt.transformer.wte.weight"].clone()
    nan[3, 5] = float("nan")
    return {
        "another model": ({"encoder.weight": torch.ones(2)}, "no name in it has `clip_project.`"),
        "no mapper": (without("clip_project"), "no name in it has `clip_project.`"),
        "no language model": (without("gpt."), "a mapper alone, but no language model"),
        "another language model": (
            without("gpt.") | {"gpt.model.decoder.embed_tokens.weight": torch.ones(9, 64)},
            "gpt.transformer.wte.weight is missing",
        ),
        "another mapper": (
            without("clip_project") | {"clip_project.proj.weight": torch.ones(2, 2)},
            "model.0.weight is missing. It holds 1 tensors: proj.weight",
        ),
        "a missing key": (without("h.1.ln_2.bias"), "1 are missing .gpt.transformer.h.1.ln_2.bias"),
        "a missing layer": (without(".h.0.", of=made.state(MLP)), "h.0.mlp.c_fc.weight is miss"),
        "a missing mapper layer": (without("layers.0.", of=whole), "fc1.weight is miss"),
        "a key too many": (tensors | {"gpt.more": torch.ones(1)}, "1 are not known .gpt.more"),
        "a deeper mlp": (
            tensors | {"clip_project.model.4.weight": torch.ones(1, 1)},
            r"1 are not known \(clip_project\.model\.4\.weight\)",
        ),
        "a wrong shape": (
            changed(tensors, gpt__transformer__ln_f__bias=torch.ones(63)),
            r"gpt.transformer.ln_f.bias must be \(64,\), but is \(63,\)",
        ),
        "a vector for a matrix": (
            changed(tensors, **{first: torch.ones(9)}), "must be a matrix, but is of shape .9,"),
        "an empty matrix": (changed(tensors, **{first: torch.ones(0, 9)}), "must be a matrix"),
        "half a vector": (
            changed(tensors, clip_project__model__2__weight=torch.ones(100, 96)),
            "gives 100 numbers, which are no vectors as wide as the language model .64",
        ),
        "an odd width": (
            changed(tensors, gpt__transformer__wte__weight=torch.ones(257, 60)),
            "60 wide, but GPT-2's width is a multiple of 64",
        ),
        "NaN": (changed(tensors, gpt__transformer__wte__weight=nan), "infinity: 1 of 16448 .*wte"),
        "whole numbers": (
            changed(tensors, **{first: torch.ones(96, 128).long()}), "must be a dense tensor"),
        "a tensor larger than its numbers": (
            changed(tensors, **{first: torch.ones(1, 1).expand(2**40, 2**20)}),
            "must be a dense tensor",
        ),
        "a sparse tensor": (
            changed(tensors, **{first: torch.ones(2, 2).to_sparse()}), "must be a dense tensor"),
        "other things too": (tensors | {"epoch": 3}, "names to tensors, but epoch is in it"),
        "a name of the model": (tensors | {"model": "clip"}, "tensors, but model is in it"),
        "nothing": ({}, "but nothing is in it"),
        "two models": (
            {f"a.{k}": t for k, t in tensors.items()} | {"b.x": torch.ones(1)},
            "names below `a.` and others: b.x",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken())
def test_what_is_no_checkpoint_of_clipcap_is_told(name: str, write: Write, given: Given) -> None:
    content, told = broken()[name]
    with pytest.raises(SettingsError, match=told) as error:
        interop.read_checkpoint(write(content), given)
    assert "coco_prefix-009.pt" in str(error.value)
    assert len(str(error.value)) < 700


class Runs:
    """Pickles as a call of a shell."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(zipped: bool, write: Write, given: Given, tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    content = made.state(MLP) | {"more": Runs(f"touch {mark}")}
    path = write(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SettingsError, match=r"holds more than tensors: posix\.system, which"):
        interop.read_checkpoint(path, given)
    assert not mark.exists()


def test_other_files_are_told_apart(write: Write, given: Given, tmp_path: Path) -> None:
    def told(path: str) -> str:
        with pytest.raises(SettingsError) as error:
            interop.read_checkpoint(path, given)
        return str(error.value)

    assert "There is no file" in told(str(tmp_path / "none.pt"))
    assert "There is no file" in told(str(tmp_path))
    save_file({"clip_project.model.0.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    assert "is a safetensors file" in told(str(tmp_path / "a.safetensors"))
    short = (b"", b"hello", b"PK\x03\x04", b"\x80\x02.", b"\xff" * 8 + b"{...")
    for content in (*short, pickle.dumps({"a": 1})):
        (tmp_path / "odd.pt").write_bytes(content)
        assert "is no whole file of `torch.save`" in told(str(tmp_path / "odd.pt"))
    assert "must hold a state dict, but holds a list" in told(write([torch.ones(1)]))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_off_is_told(zipped: bool, write: Write, given: Given) -> None:
    path = Path(write(made.state(MLP), _use_new_zipfile_serialization=zipped))
    whole = path.read_bytes()
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SettingsError, match=r"is no whole file of `torch\.save`"):
            interop.read_checkpoint(str(path), given)


# --- and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MLP, TRANSFORMER, LINEAR], ids=lambda size: size.mapper)
@pytest.mark.parametrize("buffers", [False, True])
def test_a_captioner_travels_both_ways(
    size: Size, buffers: bool, write: Write, given: Given, tmp_path: Path
) -> None:
    """The original's own modules load it strictly; reading it again changes nothing."""
    size = replace(size, words=GPT2_WORDS, layers=1)
    words = made.words_folder(tmp_path / "gpt2", GPT2_WORDS)
    given = given.model_copy(update={"tokenizer": words, "name": "there-and-back"})
    first = interop.read_checkpoint(write(made.state(size)), given)
    file = tmp_path / "out.pt"
    interop.write_checkpoint(first, str(file), buffers=buffers)
    tensors = torch.load(file, weights_only=True)
    if buffers:
        mask = tensors["gpt.transformer.h.0.attn.bias"][0, 0]
        assert torch.equal(mask, torch.ones_like(mask).tril())
        assert float(tensors["gpt.transformer.h.0.attn.masked_bias"]) == -1e4
    original = made.model(replace(size, buffers=buffers), seed=5)
    original.load_state_dict(tensors, strict=True)
    assert_same(dict(original.state_dict()), tensors)
    again = interop.read_checkpoint(str(file), given)
    assert_same(dict(again.mapper.state_dict()), dict(first.mapper.state_dict()))
    assert_same(dict(again.language_model.state_dict()), dict(first.language_model.state_dict()))
    assert again.card.model_copy(update={"training": {}}) == first.card.model_copy(
        update={"training": {}}
    )
    embedding_BD = functional.normalize(torch.randn(3, size.dim_clip))
    short = Choice(name="beam", settings={"max_tokens": 6})
    texts = [
        [one.text for one in found]
        for captioner in (first, again)
        for found in captioner.caption(
            embedding_BD,
            torch.full((3,), 9.0),
            decode=short,
        )
    ]
    assert texts[:3] == texts[3:]
    assert sorted(path.name for path in tmp_path.glob(".out*")) == []


def test_what_the_original_does_not_have_is_not_written(
    write: Write, given: Given, tmp_path: Path
) -> None:
    file = str(tmp_path / "out.pt")

    def told(captioner: captioners.Captioner) -> str:
        with pytest.raises(SettingsError) as error:
            interop.write_checkpoint(captioner, file)
        assert not Path(file).exists()
        return str(error.value)

    def read(size: Size, **changes: object) -> captioners.Captioner:
        found = interop.read_checkpoint(write(made.state(size)), given)
        for name, value in changes.items():
            setattr(found.language_model.config, name, value)
        return found

    assert "GPT-2's 50257 words, but this captioner has others (257)" in told(read(MLP))
    assert "GPT-2's width is a multiple of 64" in told(tiny_captioner())
    assert "its activation_function is relu" in told(read(MLP, activation_function="relu"))
    assert "its model_type is opt" in told(read(MLP, model_type="opt"))
    for name, value in (
        ("layer_norm_epsilon", 1e-6), ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True), ("tie_word_embeddings", False),
    ):  # fmt: skip
        assert f"its {name} is {value}" in told(read(MLP, **{name: value}))
    assert "has 1 heads, but this one has 2" in told(read(MLP, n_head=2))
    for mapper, settings, part in (
        ("transformer", {"heads": 4}, "no mapper like transformer with {'heads': 4}"),
        ("transformer", {"mlp_ratio": 4.0}, "no mapper like transformer with {'mlp_ratio': 4.0}"),
        ("mlp", {"hidden_ratio": 0.25}, "no mapper like mlp with {'hidden_ratio': 0.25}"),
        ("other", {}, "no mapper like other."),
    ):
        found = read(replace(TRANSFORMER, mapper="mlp") if mapper == "mlp" else TRANSFORMER)
        choice = Choice(name=mapper, settings={**found.card.mapper.settings, **settings})
        found.card = found.card.model_copy(update={"mapper": choice})
        assert part in told(found)
    short = read(replace(LINEAR, prefix_length=10))
    assert "a linear mapper for prefixes of more than 10 vectors" in told(short)
    lora = read(MLP)
    lora.language_model.transformer.h[0].more = torch.nn.Linear(2, 2)
    assert "2 are not known (gpt.transformer.h.0.more.bias" in told(lora)


def test_no_file_is_written_over_and_none_is_left_half(
    write: Write, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    words = made.words_folder(tmp_path / "gpt2", GPT2_WORDS)
    given = given.model_copy(update={"tokenizer": words})
    found = interop.read_checkpoint(write(made.state(replace(MLP, words=GPT2_WORDS))), given)
    taken = tmp_path / "taken.pt"
    taken.write_text("mine")
    with pytest.raises(SettingsError, match="is there already"):
        interop.write_checkpoint(found, str(taken))
    assert taken.read_text() == "mine"
    with pytest.raises(SettingsError, match="cannot be written"):
        interop.write_checkpoint(found, str(tmp_path / "none" / "out.pt"))
    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(SettingsError, match="cannot be written: no space"):
        interop.write_checkpoint(found, str(tmp_path / "full" / "out.pt"))
    assert list((tmp_path / "full").iterdir()) == []
    found.tokenizer = OtherWords()
    with pytest.raises(SettingsError, match="this captioner has others"):
        interop.write_checkpoint(found, str(tmp_path / "full" / "out.pt"))


def half_written(_content: object, path: Path) -> None:
    """Stand for a disk that is full."""
    path.write_bytes(b"half")
    raise OSError("no space left on device")


class OtherWords:
    """As many words as GPT-2's, in another order."""

    def __len__(self) -> int:
        return GPT2_WORDS

    def encode(self, _text: str, **_how: bool) -> list[int]:
        """Return another number than GPT-2's for the full stop."""
        return [14]


@pytest.mark.slow
def test_the_published_size_is_read_and_written(write: Write, tmp_path: Path) -> None:
    """COCO MLP: 153 tensors, 24 obsolete ones, 156 million numbers, GPT-2's own words."""
    if not BPE.is_dir():
        pytest.skip(f"GPT-2's words are not at {BPE}")
    size = Size(
        dim_clip=512, prefix_length=10, dim_lm=768, layers=12, positions=1024,
        words=GPT2_WORDS, buffers=True,
    )  # fmt: skip
    tensors = made.state(size)
    assert len(tensors) == 153 + 24
    path = write(tensors, "coco_weights.pt")
    folder = str(tmp_path / "folder")
    interop.read_checkpoint(path, Given(tokenizer=str(BPE))).save(folder)
    found = captioners.load(folder)
    assert_same(dict(found.language_model.state_dict()), gpt_of(tensors))
    assert_same(dict(found.mapper.state_dict()), mapper_of(tensors))
    assert found.tokenizer.encode("A cat sits on a table.") == [32, 3797, 10718, 319, 257, 3084, 13]
    assert read_card(folder).mapper == Choice(name="mlp")
    out = tmp_path / "out.pt"
    interop.write_checkpoint(found, str(out), buffers=True)
    assert_same(torch.load(out, weights_only=True, mmap=True), tensors)
    shutil.rmtree(folder)
    assert checkpoints.read(Path(path)).shape.heads == 12


def test_a_few_names_stand_for_many() -> None:
    assert dimensions.some(["b", "c", "a"]) == "a, b, c"
    assert dimensions.some("dacb") == "a, b, c and 1 more"
