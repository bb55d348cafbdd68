"""Dropout and smoothing: where they work, that the measurement has none, that they are put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcap import captioner as captioners
from clipcap.batches import Captions
from clipcap.captioner import Captioner
from clipcap.cards import Choice
from clipcap.dropout import dropped
from clipcap.languagemodels import random_language_model
from clipcap.losses import caption_loss, packed_loss
from clipcap.packing import pack
from clipcap.progress import Hooks
from clipcap.trainer import train
from clipcap.training import TrainSettings
from tests.captioners import embeddings, llama_captioner, tiny_captioner

OPT = {
    "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "word_embed_proj_dim": 16,
    "max_position_embeddings": 20,
}  # fmt: skip
CAPTIONS = [["a cat.", "the sea."], ["a dog on the grass."], ["one boat."], ["a red car."]]


def shares(captioner: Captioner) -> set[float]:
    """Return every share of numbers that the language model leaves out."""
    found = {m.p for m in captioner.language_model.modules() if isinstance(m, nn.Dropout)}
    modules = captioner.language_model.modules()
    return found | {m.attention_dropout for m in modules if hasattr(m, "attention_dropout")}


@pytest.mark.parametrize("make", [tiny_captioner, llama_captioner])
def test_every_dropout_of_a_language_model_is_set_and_put_back(make: Any) -> None:  # noqa: ANN401
    captioner: Captioner = make()
    before = shares(captioner)
    assert before
    with dropped(captioner.language_model, 0.3):
        assert shares(captioner) == {0.3}
    assert shares(captioner) == before
    with dropped(captioner.language_model, None):
        assert shares(captioner) == before


@pytest.mark.parametrize("share", [0.5, None])
def test_dropout_that_is_a_function_is_set_too(share: float | None) -> None:
    """OPT and Bloom hand numbers to functions, and have few modules or none for it."""
    small: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16}
    models = (
        random_language_model("opt", small | OPT | {"dropout": 0, "attention_dropout": 0}, seed=0),
        random_language_model("bloom", small | {"n_layer": 1, "n_head": 2}, seed=0),
    )
    for model in models:
        model.train()

        def differs(model: Any = model) -> bool:  # noqa: ANN401 - transformers' own types are dynamic
            torch.manual_seed(0)
            read = torch.tensor([[1, 2, 3]])
            first, second = (model(read).logits for _ in range(2))
            return not torch.equal(first, second)

        with dropped(model, share):
            assert differs() == (share is not None)
        assert not differs()


@pytest.mark.parametrize("mode", ["finetune", "lora"])
def test_a_training_uses_the_dropout_it_was_given(mode: str) -> None:
    given: dict[str, Any] = {"steps": 3, "batch_size": 4, "validation_share": 0.0, "dropout": 0.4}
    settings = TrainSettings.model_validate(
        given | {"language_model": mode, "lora": {"dropout": 0.1}}
    )
    captioner, seen = tiny_captioner(), list[float]()
    hooks = Hooks(on_progress=lambda _: seen.extend(shares(captioner)))
    train(embeddings(4), CAPTIONS, captioner, settings, hooks=hooks)
    assert set(seen) == ({0.4, 0.1} if mode == "lora" else {0.4})  # LoRA has one of its own
    assert shares(captioner) == {0.1}  # GPT-2's own


@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_a_mapper_leaves_numbers_out_only_while_it_learns(mapper: str) -> None:
    tiny = tiny_captioner(mapper=mapper)
    settings = {"dropout": 0.5} | ({"heads": 2, "layers": 2} if mapper == "transformer" else {})
    card = tiny.card.model_copy(update={"mapper": Choice(name=mapper, settings=settings)})
    captioner = captioners.new(card, tiny.language_model, tiny.tokenizer, seed=0)
    embedding_BD = embeddings(2)

    def differs() -> bool:
        return not torch.equal(captioner.mapper(embedding_BD), captioner.mapper(embedding_BD))

    captioner.mapper.train()
    assert differs()
    captioner.eval()
    assert not differs()


def smoothed(captioner: Captioner, embedding_D: Tensor, ids: list[int], share: float) -> Tensor:
    """The loss of one caption, from its definition."""
    prefix = captioner.mapper(embedding_D[None])
    word = captioner.language_model.get_input_embeddings()(torch.tensor([ids[:-1]]))
    logits = captioner.language_model(inputs_embeds=torch.cat((prefix, word), 1)).logits
    log_p = logits[0, prefix.shape[1] - 1 :].log_softmax(-1)
    wanted = functional.one_hot(torch.tensor(ids), log_p.shape[1]).float()
    loss: Tensor = -((1 - share) * wanted + share / log_p.shape[1]).mul(log_p).sum()
    return loss


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_smoothed_loss_is_that_of_smoothed_words(share: float) -> None:
    captioner = tiny_captioner(sharpness=4.0)
    captions = [[3, 7, 12, 1], [0, 1], [2, 5, 22, 1]]
    data = Captions(
        torch.tensor([0, 0, 1]),
        torch.tensor([ids + [9] * (4 - len(ids)) for ids in captions]),
        torch.tensor([len(ids) for ids in captions]),
    )
    embedding_ND = embeddings(2)
    rows = pack(data, captioner.card.prefix_length)
    plain = caption_loss(
        captioner, embedding_ND[data.row_S], data.token_ST, data.mask(), smoothing=share
    )
    packed = packed_loss(captioner, embedding_ND[rows.image_I], rows, smoothing=share)
    pairs = zip(data.row_S.tolist(), captions, strict=True)
    wanted = sum(float(smoothed(captioner, embedding_ND[n], ids, share)) for n, ids in pairs)
    assert float(plain) == pytest.approx(wanted, rel=1e-5)
    assert float(packed) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_what_is_measured_is_not_smoothed(packing: bool) -> None:
    """Nothing has been learned at step 1: warm-up begins with a rate of 0."""

    def first(share: float) -> tuple[float, float | None]:
        settings = TrainSettings.model_validate(
            {"steps": 1, "batch_size": 9, "validation_share": 0.3, "label_smoothing": share,
             "packing": packing, "warmup_steps": 5, "dropout": 0.0, "precision": "fp32"}
        )  # fmt: skip
        metrics = train(embeddings(4), CAPTIONS, tiny_captioner(sharpness=4.0), settings)
        return metrics.curve[0].loss, metrics.validation_loss

    plain, smooth = first(0.0), first(0.3)
    assert plain[1] == smooth[1]
    assert plain[0] != smooth[0]
