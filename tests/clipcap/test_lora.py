"""LoRA: starts as the language model is, learns beside it, ends as a plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipcap import captioner as captioners
from clipcap.captioner import Captioner
from clipcap.lora import Adapted, adapted
from clipcap.masters import Masters
from clipcap.trainer import train
from clipcap.training import LoraSettings, TrainSettings
from tests.captioners import embeddings, llama_captioner, tiny_captioner

CAPTIONS = [["a cat."], ["a dog."], ["one boat."], ["a red car."]]
LORA = TrainSettings(
    language_model="lora", lora=LoraSettings(rank=2, dropout=0.1), steps=40, batch_size=4,
    learning_rate=1e-2, validation_share=0.0, precision="fp32",
)  # fmt: skip


def logits(captioner: Captioner) -> Tensor:
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        found: Tensor = captioner.language_model.eval()(input_ids=ids).logits
    return found.clone()


@pytest.mark.parametrize("make", [tiny_captioner, llama_captioner])
def test_what_is_merged_gives_what_was_learned(make: Any) -> None:  # noqa: ANN401
    captioner = make()
    before = logits(captioner)
    with adapted(captioner.language_model, LoraSettings(rank=3)):
        assert torch.equal(logits(captioner), before)  # B is zeros
        beside = [m for m in captioner.language_model.modules() if isinstance(m, Adapted)]
        with torch.no_grad():
            for one in beside:
                one.up.normal_(std=0.1)
        learned = logits(captioner)
    assert beside
    assert not torch.allclose(learned, before, atol=1e-3)
    assert torch.allclose(logits(captioner), learned, atol=1e-5)
    assert not any(isinstance(m, Adapted) for m in captioner.language_model.modules())


def test_where_the_body_raises_the_language_model_is_as_before() -> None:
    captioner = tiny_captioner()
    before = {k: t.clone() for k, t in captioner.language_model.state_dict().items()}

    def fail() -> None:
        with adapted(captioner.language_model, LoraSettings()):
            for parameter in captioner.language_model.parameters():
                parameter.data.add_(float(parameter.requires_grad))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    after = captioner.language_model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_moves_the_adapted_layers_and_saves_a_plain_folder(
    tmp_path: Path, precision: str
) -> None:
    captioner = tiny_captioner()
    before = {k: t.clone() for k, t in captioner.language_model.state_dict().items()}
    settings = LORA.model_copy(update={"precision": precision})
    metrics = train(embeddings(4), CAPTIONS, captioner, settings)
    assert metrics.curve[-1].loss < 0.9 * metrics.curve[0].loss
    after = captioner.language_model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    layers = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    assert moved == {key for key in before if key.endswith(layers)}
    captioner.save(str(tmp_path / "saved"))
    saved = captioners.load(str(tmp_path / "saved"))
    assert torch.equal(logits(saved), logits(captioner))
    assert saved.language_model.state_dict().keys() == before.keys()


def test_only_the_small_matrices_and_the_mapper_learn() -> None:
    captioner = tiny_captioner()
    with adapted(captioner.language_model, LORA.lora):
        masters = Masters(captioner, LORA)
        count = sum(weight.numel() for weight in masters.weights)
        mapper = sum(weight.numel() for weight in captioner.mapper.parameters())
        layers = 2 * 2 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))
        assert count == mapper + layers
