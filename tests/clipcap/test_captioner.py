"""A captioner folder, its card and its captions: read as written, and misfits are refused."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file

from clipcap import captioner, losses, prepacked, trees
from clipcap.captioner import Captioner
from clipcap.cards import (
    Choice,
    captioner_digest,
)
from clipcap.errors import SettingsError
from tests.captioners import DIM_CLIP, WORDS, embeddings, tiny_captioner, word_tokenizer


@pytest.fixture(scope="module")
def tiny() -> Captioner:
    return tiny_captioner(0, sharpness=5.0, stop_bonus=2.0)


@pytest.fixture
def folder(tiny: Captioner, tmp_path: Path) -> Path:
    tiny.save(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


def edit_card(folder: Path, **changes: object) -> None:
    path = folder / "captioner.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the folder -----------------------------------------------------------------------------------


def test_a_saved_captioner_writes_the_same_captions(tiny: Captioner, folder: Path) -> None:
    loaded = captioner.load(str(folder))
    assert loaded.card == tiny.card
    assert loaded.caption(embeddings(9)) == tiny.caption(embeddings(9))


def test_a_folder_holds_card_mapper_and_language_model_and_nothing_that_can_run(
    folder: Path,
) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"captioner.json", "mapper.safetensors", "language_model/model.safetensors"} <= names
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}


def test_saving_twice_writes_the_same_bytes(tiny: Captioner, folder: Path, tmp_path: Path) -> None:
    tiny.save(str(tmp_path / "again"))
    assert captioner_digest(str(folder)) == captioner_digest(str(tmp_path / "again"))


def test_a_loaded_captioner_does_not_draw_progress_bars(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    captioner.load(str(folder)).save(str(folder.with_name("copy")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["captioner.json", "mapper.safetensors"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    (folder / part).unlink()
    with pytest.raises(SettingsError, match=part):
        captioner.load(str(folder))


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_language_model_is_refused(folder: Path, part: str) -> None:
    (folder / "language_model" / part).unlink()
    with pytest.raises(SettingsError, match=r"language.model"):
        captioner.load(str(folder))


@pytest.mark.parametrize("part", ["mapper.safetensors", "language_model/model.safetensors"])
def test_half_a_weights_file_is_refused(folder: Path, part: str) -> None:
    path = folder / part
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SettingsError, match=r"mapper\.safetensors|language model in"):
        captioner.load(str(folder))


@pytest.mark.parametrize("change", ["a weight fewer", "a layer more", "more positions"])
def test_weights_that_would_be_drawn_at_random_are_refused(folder: Path, change: str) -> None:
    """Transformers fills them in and says so in a log line; captions are then nonsense."""
    path = folder / "language_model"
    captioner.load_language_model(str(path))  # its head is tied to the words: nothing is missing
    config = json.loads((path / "config.json").read_text())
    tensors = load_file(path / "model.safetensors")
    key = "transformer.h.1.mlp.c_fc.weight"
    if change == "a weight fewer":
        kept = {name: tensor for name, tensor in tensors.items() if name != key}
        save_file(kept, path / "model.safetensors", {"format": "pt"})
    elif change == "a layer more":
        config["n_layer"], key = 3, "transformer.h.2.attn.c_attn.bias"
    else:
        config["n_positions"], key = 64, "transformer.wpe.weight"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=f"must hold all weights .*{key}"):
        captioner.load_language_model(str(path))


def test_pickled_weights_are_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))  # type: ignore[return-value]

    (folder / "language_model" / "model.safetensors").unlink()
    (folder / "language_model" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SettingsError, match=r"holds no \*\.safetensors"):
        captioner.load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_never_runs(folder: Path, tmp_path: Path) -> None:
    """A config may ask transformers to import a file of the folder; without consent it must not."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "language_model" / "evil.py").write_text(code)
    path = folder / "language_model" / "config.json"
    config = json.loads(path.read_text()) | {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    path.write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="cannot be read"):
        captioner.load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_mapper_of_another_size_than_the_card_says_is_refused(folder: Path) -> None:
    edit_card(folder, prefix_length=9)
    with pytest.raises(SettingsError, match=r"mlp, D=16, P=9"):
        captioner.load(str(folder))


def test_weights_of_something_else_are_refused(folder: Path) -> None:
    save_file({"other": torch.zeros(3)}, folder / "mapper.safetensors")
    with pytest.raises(SettingsError, match="does not hold the weights of the mapper"):
        captioner.load(str(folder))


def test_a_captioner_on_a_store_must_be_copied_first() -> None:
    with pytest.raises(SettingsError, match="must lie on this machine"):
        tiny_captioner().save("memory://captioner")


# --- other language models ------------------------------------------------------------------------

LLAMA = {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BLOOM = {"n_layer": 2, "n_head": 2}


@pytest.mark.parametrize(
    ("model_type", "shape"),
    [("llama", LLAMA), ("bloom", BLOOM)],
    ids=["rotary, grouped heads, untied", "alibi"],
)
def test_any_causal_language_model_will_do(
    model_type: str, shape: dict[str, JsonValue], tmp_path: Path
) -> None:
    size = {"vocab_size": len(WORDS) + 1, "hidden_size": 32, "bos_token_id": None}
    model = captioner.random_language_model(model_type, size | shape | {"eos_token_id": 1}, seed=0)
    made = captioner.new(tiny_captioner().card, model, word_tokenizer(), seed=0)
    made.save(str(tmp_path))
    loaded = captioner.load(str(tmp_path))
    found = loaded.caption(embeddings(5))
    assert found == made.caption(embeddings(5))
    one_by_one = [loaded.caption(row[None])[0] for row in embeddings(5)]
    assert [[c.token_ids for c in row] for row in found] == [
        [c.token_ids for c in row] for row in one_by_one
    ]


NEO = {
    "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64, "window_size": 4,
    "attention_types": [[["local"], 2]], "intermediate_size": 64,
}  # fmt: skip
MISTRAL = LLAMA | {"sliding_window": 4}


@pytest.mark.parametrize(
    ("model_type", "shape", "takes"),
    [("llama", LLAMA, True), ("bloom", BLOOM, False), ("gpt_neo", NEO, False),
     ("mistral", MISTRAL, False)],
)  # fmt: skip
def test_a_model_that_looks_back_only_so_far_reads_no_trees_and_no_packed_rows(
    model_type: str, shape: dict[str, JsonValue], *, takes: bool
) -> None:
    size = {"vocab_size": len(WORDS) + 1, "hidden_size": 32, "bos_token_id": None}
    model = captioner.random_language_model(model_type, size | shape | {"eos_token_id": 1}, seed=0)
    assert trees.takes_trees(model.eval()) == takes
    made = captioner.new(tiny_captioner().card, model, word_tokenizer(), seed=0)
    assert losses.can_pack(made) == takes


def test_one_that_was_made_for_captions_is_not_saved(tmp_path: Path) -> None:
    made = tiny_captioner().for_captions("fp32")
    if not prepacked.works(torch.float32):
        pytest.skip("layers are not packed here")
    with pytest.raises(SettingsError, match="load it anew"):
        made.save(str(tmp_path))
    assert not list(tmp_path.iterdir())


# --- captions -------------------------------------------------------------------------------------


def test_the_card_chooses_the_decoder_unless_told_otherwise(tiny: Captioner) -> None:
    assert len(tiny.caption(embeddings(1))[0]) == 5
    greedy = Choice(name="greedy", settings={"max_tokens": 12})
    assert len(tiny.caption(embeddings(1), decode=greedy)[0]) == 1
    two = Choice(name="beam", settings={"max_tokens": 12, "beam_size": 2})
    assert len(tiny.caption(embeddings(1), decode=two)[0]) == 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(name="baem"), "Did you mean beam"),
        (Choice(name="beam", settings={"beams": 5}), "`beams`"),
        (Choice(name="beam", settings={"beam_size": 0}), "`beam_size`"),
        (Choice(name="beam", settings={"stop": "a red"}), "`stop` must be one token"),
        (Choice(name="beam", settings={"stop": "zebra"}), "`stop` must be one token"),
        (Choice(name="beam", settings={"stop": ""}), "`stop` must be one token"),
        (Choice(name="beam", settings={"stop": None}), "no end token"),
        (Choice(name="beam"), "`max_tokens` must be at most 45"),
    ],
)
def test_decode_settings_that_make_no_sense_are_refused(
    tiny: Captioner, choice: Choice, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny.caption(embeddings(1), decode=choice)


def test_without_a_stop_text_the_tokenizers_end_token_ends_a_caption(tiny: Captioner) -> None:
    choice = Choice(name="greedy", settings={"max_tokens": 12})
    first = [row[0].token_ids[0] for row in tiny.caption(embeddings(9), decode=choice)]
    word = WORDS[Counter(first).most_common(1)[0][0]]
    tokenizer = word_tokenizer(eos_token=word)
    ended = Captioner(tiny.card, tiny.mapper, tiny.language_model, tokenizer)
    choice = Choice(name="greedy", settings={"max_tokens": 12, "stop": None})
    found = [c for row in ended.caption(embeddings(9), decode=choice) for c in row]
    stopped = [c for c in found if c.finish_reason == "stop"]
    assert {c.token_ids[-1] for c in stopped} == {WORDS.index(word)}
    assert not any(word in c.text.split() for c in found)  # a special token is no word


def test_raw_captioners_get_the_norm_back() -> None:
    raw, unit = tiny_captioner(normalized=False), tiny_captioner(normalized=True)
    norm_B = torch.linspace(5, 12, 6)
    lengthened = unit.caption(embeddings(6) * norm_B[:, None])
    assert raw.caption(embeddings(6), norm_B) == lengthened
    assert unit.caption(embeddings(6), norm_B) == unit.caption(embeddings(6))
    with pytest.raises(SettingsError, match="without `embedding_norm`"):
        raw.caption(embeddings(6))


def test_embeddings_of_another_width_are_refused(tiny: Captioner) -> None:
    with pytest.raises(SettingsError, match=r"B rows of 16 numbers, but are \(3, 8\)"):
        tiny.caption(torch.zeros(3, 8))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tiny: Captioner, number: float) -> None:
    embedding_BD = embeddings(4)
    embedding_BD[2, 5] = number
    with pytest.raises(SettingsError, match=r"1 of 4 rows hold NaN or infinity .*row 2"):
        tiny.caption(embedding_BD)


def test_half_precision_embeddings_are_captioned(tiny: Captioner) -> None:
    rounded = embeddings(4).half()
    assert tiny.caption(rounded) == tiny.caption(rounded.float())


def test_no_embedding_gives_no_caption(tiny: Captioner) -> None:
    assert tiny.caption(torch.empty(0, DIM_CLIP)) == []


def test_making_a_captioner_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    tiny_captioner(1)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("name", ["beam", "greedy", "nucleus"])
def test_weights_that_give_no_numbers_are_an_error(name: str) -> None:
    captioner = tiny_captioner()
    with torch.no_grad():
        next(captioner.mapper.parameters()).fill_(torch.nan)
    decode = Choice(name=name, settings={"max_tokens": 8})
    with pytest.raises(SettingsError, match="none for 3 of 3 images"):
        captioner.caption(torch.nn.functional.normalize(torch.randn(3, DIM_CLIP)), decode=decode)
