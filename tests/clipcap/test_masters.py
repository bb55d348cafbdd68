"""Number formats: float32 weights learn, the frozen has no gradient, parts add up to the whole."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from clipcap import cards, models
from clipcap.bundled import tiny_captioner as bundled
from clipcap.bundled.build import CAPTIONER_EPOCHS
from clipcap.masters import Masters
from clipcap.trainer import train
from clipcap.training import TrainSettings
from tests.captioners import embeddings, llama_captioner, tiny_captioner

CAPTIONS = [["a cat.", "the sea."], ["a dog on the grass."], ["one boat."], ["a red car."]]
Mode = Literal["frozen", "finetune"]


def settings(**changed: object) -> TrainSettings:
    given = {"steps": 30, "batch_size": 5, "learning_rate": 5e-3, "validation_share": 0.0}
    return TrainSettings.model_validate(given | changed)


def test_steps_too_small_for_bf16_add_up_all_the_same() -> None:
    """One of them is a thousandth of the weight: bf16 weights alone would never move."""
    masters = Masters(tiny_captioner(), settings(precision="bf16", learning_rate=1e-3))
    weight = masters.weights[0]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(1.0)
    masters.publish()
    for _ in range(20):
        for one in masters.reading.mapper.parameters():
            one.grad = torch.ones_like(one)
        masters.gather()
        masters.step(None)
    assert before.dtype == torch.float32
    assert torch.allclose(weight, torch.full_like(weight, 1.0 - 20e-3), atol=1e-4)
    read = next(masters.reading.mapper.parameters())
    assert torch.equal(read, weight.to(torch.bfloat16))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_language_model_gets_no_gradient_in_any_format(precision: str) -> None:
    captioner = tiny_captioner()
    masters = Masters(captioner, settings(precision=precision, language_model="frozen"))
    language_models = (captioner.language_model, masters.reading.language_model)
    assert not any(p.requires_grad for model in language_models for p in model.parameters())
    assert len(masters.weights) == len(list(captioner.mapper.parameters()))
    before = [p.detach().clone() for p in captioner.language_model.parameters()]
    chosen = settings(precision=precision, language_model="frozen")
    train(embeddings(4), CAPTIONS, captioner, chosen)
    after = list(captioner.language_model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None and p.dtype == torch.float32 for p in after)


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_bf16_learns_as_float32_does(mode: Mode) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        captioner = tiny_captioner(sharpness=4.0)
        chosen = settings(steps=60, precision=precision, language_model=mode)
        losses.append(train(embeddings(4), CAPTIONS, captioner, chosen).curve[-1].loss)
        assert {p.dtype for p in captioner.language_model.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.05)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("accumulate", [2, 3, 9])
def test_a_batch_read_in_parts_gives_the_same_weights(accumulate: int, packing: bool) -> None:
    def trained(parts: int) -> Tensor:
        captioner = tiny_captioner()
        how = {"precision": "fp32", "accumulate": parts, "packing": packing}
        chosen = settings(steps=6, language_model="frozen", **how)  # no dropout
        train(embeddings(4), CAPTIONS, captioner, chosen)
        modules = (captioner.mapper, captioner.language_model)
        return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])

    whole, parts = trained(1), trained(accumulate)
    assert float((whole - parts).norm() / whole.norm()) < 1e-4
    assert not torch.equal(whole, parts)  # they were read in another order


def test_packed_training_ends_where_the_plain_one_does() -> None:
    """One batch is all captions here, so that both see the same ones at each step."""
    losses = []
    for packing in (True, False):
        chosen = settings(precision="fp32", packing=packing, language_model="frozen")
        losses.append(train(embeddings(4), CAPTIONS, tiny_captioner(), chosen).curve[-1].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_rotary_frequencies_keep_their_digits() -> None:
    """In bf16 the angle of position 40 would be wrong by a tenth of a turn."""
    captioner = llama_captioner()
    reading = Masters(captioner, settings(precision="bf16")).reading.language_model
    assert {parameter.dtype for parameter in reading.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in reading.buffers()} == {torch.float32}
    metrics = train(embeddings(4), CAPTIONS, captioner, settings(precision="bf16"))
    assert metrics.curve[-1].loss < 0.9 * metrics.curve[0].loss


def test_gradients_in_bf16_are_added_up_in_float32() -> None:
    masters = Masters(tiny_captioner(), settings(precision="bf16"))
    for part in (1.0, 2.0**-12):  # bf16 cannot hold their sum
        for one in masters.reading.mapper.parameters():
            one.grad = torch.full_like(one, part)
        masters.gather()
    gradient = masters.weights[0].grad
    assert gradient is not None
    assert torch.equal(gradient, torch.full_like(gradient, 1.0 + 2.0**-12))


def test_the_bundled_model_is_trained_as_when_it_was_made() -> None:
    """Its weights are shipped: other arithmetic would be another model."""
    chosen = bundled.settings(0, CAPTIONER_EPOCHS)
    assert (chosen.packing, chosen.precision, chosen.keep) == (False, "fp32", "last")
    card = cards.read_card(str(models.BUNDLED_FOLDER / "captioner"))
    metrics = train(embeddings(4), CAPTIONS, tiny_captioner(), settings(steps=1))
    told = bundled.told(chosen, metrics, "")
    assert told["settings"] == card.training["settings"]
    assert told.keys() == card.training.keys()
