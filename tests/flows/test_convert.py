"""`clipcap import-clipcap` and `export-clipcap`: what people type, and what they are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from clipcap import captioner as captioners
from clipcap.cards import read_card
from tests import checkpoints as made
from tests.checkpoints import Size
from tests.command import clipcap

WORDS = 50257
SIZE = Size(mapper="transformer", prefix_length=4, clip_length=3, layers=1, words=WORDS)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of as many words as GPT-2 has."""
    return made.words_folder(tmp_path_factory.mktemp("words"), WORDS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of the original."""
    path = tmp_path / "my training.pt"
    torch.save(made.state(SIZE), path)
    return path


def test_a_checkpoint_goes_in_and_comes_out_the_same(
    file: Path, words: str, tmp_path: Path
) -> None:
    folder, back = tmp_path / "captioner", tmp_path / "back.pt"
    given = ("--encoder", "bundled", "--normalized", "--tokenizer", words)
    ended = clipcap("import-clipcap", file, folder, *given)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(
        f"{folder}: my__training, a transformer mapper with P=4; reads normalised embeddings of "
        "clipcap-tiny-clip.\n"
    )
    assert read_card(str(folder)).normalized
    ended = clipcap("export-clipcap", folder, back)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        f"{back}: a state dict of ClipCaptionModel, transformer mapper, prefix_length 4, "
        "prefix_size 128.\nWhat it cannot say: it reads normalised embeddings of "
        "clipcap-tiny-clip.\n"
    )
    first, again = (torch.load(path, weights_only=True) for path in (file, back))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_buffers_of_the_old_gpt2_are_written_where_asked(
    file: Path, words: str, tmp_path: Path
) -> None:
    folder, back = tmp_path / "captioner", tmp_path / "back.pt"
    given = ("--encoder", "bundled", "--raw", "--tokenizer", words, "--name", "mine")
    assert clipcap("import-clipcap", file, folder, *given).code == 0
    card = read_card(str(folder))
    assert (card.captioner_id, card.normalized) == ("mine", False)
    assert clipcap("export-clipcap", "--buffers", folder, back).code == 0
    tensors = torch.load(back, weights_only=True)
    assert tensors["gpt.transformer.h.0.attn.bias"].shape == (1, 1, 96, 96)
    assert float(tensors["gpt.transformer.h.0.attn.masked_bias"]) == -1e4


def test_what_it_must_be_told_is_asked_for(file: Path, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "captioner"
    ended = clipcap("import-clipcap", file, folder, "--tokenizer", words)
    assert ended.code == 2
    assert ended.out == ""
    assert "cannot tell the encoder (`--encoder`) and whether embeddings were" in ended.err
    assert not folder.exists()


def test_a_captioner_is_not_written_over(file: Path, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "captioner"
    given = ("--encoder", "bundled", "--raw", "--tokenizer", words)
    assert clipcap("import-clipcap", file, folder, *given).code == 0
    before = (folder / "captioner.json").read_bytes()
    ended = clipcap("import-clipcap", file, folder, "--name", "other", *given)
    assert (ended.code, "holds a captioner already" in ended.err) == (2, True)
    assert (folder / "captioner.json").read_bytes() == before
    captioners.load(str(folder))


def test_what_cannot_be_is_told_in_one_block(file: Path, tmp_path: Path) -> None:
    mark, evil = tmp_path / "was-here", tmp_path / "evil.pt"

    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {mark}",)

    torch.save({"clip_project.weight": Runs()}, evil)
    out = tmp_path / "out.pt"
    for words, told in (
        (("import-clipcap", evil, tmp_path / "a"), "posix.system, which was not run"),
        (("import-clipcap", tmp_path / "none.pt", tmp_path / "a"), "There is no file"),
        (("import-clipcap", file, tmp_path / "a", "--encoder", "RN5", "--raw"), "RN5"),
        (("export-clipcap", "bundled", out), "has 2 heads, but this one has 4"),
        (("export-clipcap", tmp_path / "nothing", out), "No captioner"),
    ):
        ended = clipcap(*words)
        assert ended.code == 2, ended.err
        assert ended.err.startswith("Error: ")
        assert told in ended.err
        assert "Traceback" not in ended.err
    assert not mark.exists()
    assert not out.exists()
