"""Packed rows: the plain loop's losses and gradients, on absolute and rotary positions alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clipcap import captioner as captioners
from clipcap.batches import Captions
from clipcap.captioner import Captioner
from clipcap.losses import can_pack, packed_loss
from clipcap.packing import MOST_BEHIND, ROW_POSITIONS, Rows, pack
from tests.captioners import WORDS, embeddings, tiny_captioner

P = 4
SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS) + 1, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
LLAMA = {"num_key_value_heads": 1, "max_position_embeddings": 64}
PACKED = {"gpt2": {}, "llama": SHAPE | LLAMA, "qwen2": SHAPE | LLAMA, "gpt_neox": SHAPE}
"""Absolute positions; rotary ones with and without shared heads; rotary on a part of the width."""
PLAIN = {
    "bloom": {"vocab_size": len(WORDS) + 1, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "cohere": SHAPE | LLAMA,
    "mamba": SHAPE | {"state_size": 4},
}
"""ALiBi counts by itself, a scale behind the head, a state instead of attention."""


def captioner_of(kind: str, shape: dict[str, Any]) -> Captioner:
    """Return a captioner before a random language model that has likely and unlikely words."""
    tiny = tiny_captioner(sharpness=4.0, prefix_length=P)
    if kind == "gpt2":
        return tiny
    model = captioners.random_language_model(kind, shape, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return captioners.new(tiny.card, model.eval(), tiny.tokenizer, seed=0).eval()


def batch(images: int, most: int, seed: int = 0, longest: int = 12) -> Captions:
    """Return up to `most` captions of each image, in no order."""
    chance = random.Random(seed)
    pairs = [
        (image, [chance.randrange(len(WORDS)) for _ in range(chance.randint(1, longest))])
        for image in range(images)
        for _ in range(chance.randint(1, most))
    ]
    chance.shuffle(pairs)
    width = max(len(ids) for _, ids in pairs)
    return Captions(
        torch.tensor([image for image, _ in pairs]),
        torch.tensor([ids + [7] * (width - len(ids)) for _, ids in pairs]),
        torch.tensor([len(ids) for _, ids in pairs]),
    )


def originals_loss(captioner: Captioner, embedding_ND: Tensor, captions: Captions) -> Tensor:
    """The original's: one padded batch, a mask that ends with the caption, `logits[:, P-1:-1]`.

    Its ignored token is one that occurs nowhere, since its own, 0, is a word.
    """
    token_BT, mask_BT = captions.token_ST, captions.mask()
    prefix_BPE = captioner.mapper(embedding_ND[captions.row_S])
    word_BTE = captioner.language_model.get_input_embeddings()(token_BT)
    logits_BTV = captioner.language_model(
        inputs_embeds=torch.cat((prefix_BPE, word_BTE), 1),
        attention_mask=torch.cat((torch.ones(len(token_BT), P, dtype=torch.long), mask_BT), 1),
    ).logits[:, P - 1 : -1]
    target_BT = token_BT.masked_fill(~mask_BT, -100)
    return functional.cross_entropy(
        logits_BTV.reshape(-1, logits_BTV.shape[-1]), target_BT.flatten(), reduction="sum"
    )


def loss_and_gradients(captioner: Captioner, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    modules = (captioner.mapper, captioner.language_model)
    parameters = [p for module in modules for p in module.parameters()]
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_()
    total = loss()
    total.backward()  # type: ignore[no-untyped-call]
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return float(total.detach()), torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("kind", PACKED)
def test_packed_captions_have_the_loss_and_gradients_of_the_originals_loop(kind: str) -> None:
    captioner, captions = captioner_of(kind, PACKED[kind]), batch(9, 6)
    embedding_ND = embeddings(9)
    assert can_pack(captioner)
    rows = pack(captions, P)
    loss, gradient = loss_and_gradients(
        captioner, lambda: packed_loss(captioner, embedding_ND[rows.image_I], rows)
    )
    wanted_loss, wanted = loss_and_gradients(
        captioner, lambda: originals_loss(captioner, embedding_ND, captions)
    )
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert float((gradient - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("kind", PLAIN)
def test_a_language_model_that_cannot_read_packed_captions_is_found_out(kind: str) -> None:
    captioner = captioner_of(kind, PLAIN[kind])
    assert not can_pack(captioner)
    assert not captioner.language_model.training


def test_one_caption_an_image_fills_rows_with_images() -> None:
    captions = batch(60, 1)
    rows = pack(captions, P)
    assert len(rows.image_I) == 60
    positions = 60 * P + int((captions.length_S - 1).sum())
    assert rows.position_RT.numel() < 1.1 * positions
    assert rows.position_RT.shape[1] < 1.5 * ROW_POSITIONS


def test_a_prefix_is_read_once_for_all_captions_of_its_image() -> None:
    captions = Captions(torch.arange(8).repeat(5), torch.ones(40, 12).long(), torch.full((40,), 12))
    rows = pack(captions, 10)
    assert rows.image_I.sort().values.tolist() == list(range(8))
    assert rows.position_RT.numel() < 1.05 * 8 * (10 + 5 * 11)


def test_very_many_captions_of_an_image_stand_behind_several_prefixes() -> None:
    count = 3 * MOST_BEHIND + 1
    captions = Captions(
        torch.zeros(count).long(), torch.full((count, 20), 5), torch.full((count,), 20)
    )
    rows = pack(captions, P)
    assert rows.image_I.tolist() == [0] * 4
    assert rows.position_RT.shape[1] <= P + MOST_BEHIND * 19


@torch.no_grad()
def test_captions_of_the_stop_token_alone_have_nothing_to_read() -> None:
    captioner = captioner_of("gpt2", {})
    captions = Captions(torch.tensor([0, 0, 1]), torch.ones(3, 1).long(), torch.ones(3).long())
    rows = pack(captions, P)
    assert rows.word_W.numel() == 0
    loss = packed_loss(captioner, embeddings(2)[rows.image_I], rows)
    wanted = originals_loss(captioner, embeddings(2), captions)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


@torch.no_grad()
def test_the_order_of_a_batch_changes_no_loss() -> None:
    captioner, captions = captioner_of("gpt2", {}), batch(7, 5)
    turned = captions.take(torch.arange(len(captions)).flip(0))

    def loss(given: Captions) -> float:
        rows: Rows = pack(given, P)
        return float(packed_loss(captioner, embeddings(7)[rows.image_I], rows))

    assert loss(captions) == pytest.approx(loss(turned), rel=1e-6)
