"""Training: it learns, the frozen stays frozen, the loss is the plain one, rubbish is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from clipcap import lessons
from clipcap.captioner import Captioner
from clipcap.errors import SettingsError
from clipcap.losses import caption_loss
from clipcap.progress import Hooks, Progress, learning_rate_share
from clipcap.trainer import TrainMetrics, train
from clipcap.training import TrainSettings
from tests.captioners import WORDS, embeddings, tiny_captioner, word_tokenizer

SCENES = [
    f"a {colour} {thing} {place}."
    for colour, thing, place in itertools.product(
        ("red", "blue", "green"), ("ball", "car", "boat"), ("on the sea", "in the snow")
    )
]
QUICK = TrainSettings(steps=12, batch_size=8, learning_rate=3e-3, validation_share=0.2)


def scenes(seed: int = 0) -> tuple[Tensor, list[list[str]]]:
    """Four noisy views of each of 18 scenes, with one or two captions each."""
    generator = torch.Generator().manual_seed(seed)
    views = embeddings(len(SCENES)).repeat_interleave(4, 0)
    noisy = views + 0.02 * torch.randn(views.shape, generator=generator)
    texts = [[SCENES[n // 4]] * (1 + n % 2) for n in range(len(views))]
    return functional.normalize(noisy), texts


def run(settings: TrainSettings = QUICK, seed: int = 0) -> tuple[Captioner, TrainMetrics]:
    captioner = tiny_captioner(seed)
    return captioner, train(*scenes(), captioner, settings)


def weights(captioner: Captioner) -> dict[str, Tensor]:
    parts = {"mapper": captioner.mapper, "language_model": captioner.language_model}
    return {
        f"{part}.{key}": tensor.detach().clone()
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }


def test_a_captioner_trained_from_nothing_captions_what_it_saw() -> None:
    captioner = tiny_captioner()
    settings = TrainSettings(steps=250, batch_size=24, learning_rate=5e-3, validation_share=0.0)
    train(*scenes(), captioner, settings)
    found = captioner.caption(embeddings(len(SCENES)))
    assert [candidates[0].text for candidates in found] == SCENES
    assert {candidates[0].finish_reason for candidates in found} == {"stop"}


def test_the_held_out_loss_falls() -> None:
    _, metrics = run(QUICK.model_copy(update={"steps": 80}))
    held_out = [p.validation_loss for p in metrics.curve if p.validation_loss is not None]
    assert len(held_out) == QUICK.validations
    assert metrics.validation_loss == held_out[-1]
    assert held_out[-1] < 0.6 * held_out[0]


# --- what learns ----------------------------------------------------------------------------------


def test_a_frozen_language_model_has_no_gradient_and_does_not_move() -> None:
    """The original's frozen mode computed and piled up GPT-2's gradients for the whole run."""
    captioner = tiny_captioner()
    before = weights(captioner)
    gradients: list[bool] = []
    train(
        *scenes(),
        captioner,
        QUICK.model_copy(update={"language_model": "frozen"}),
        hooks=Hooks(
            on_progress=lambda _: gradients.extend(
                parameter.grad is not None for parameter in captioner.language_model.parameters()
            )
        ),
    )
    assert gradients
    assert not any(gradients)
    after = weights(captioner)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith("mapper.")}


def test_a_frozen_language_model_still_teaches_the_mapper() -> None:
    settings = QUICK.model_copy(update={"language_model": "frozen", "steps": 80})
    metrics = train(*scenes(), tiny_captioner(sharpness=5.0), settings)
    assert metrics.curve[-1].loss < 0.9 * metrics.curve[0].loss


def test_finetuning_moves_every_weight() -> None:
    captioner = tiny_captioner()
    before = weights(captioner)
    train(*scenes(), captioner, QUICK)
    after = weights(captioner)
    assert not [key for key in before if torch.equal(before[key], after[key])]


def test_a_finetuned_captioner_can_be_trained_frozen_next() -> None:
    captioner, _ = run()
    train(*scenes(), captioner, QUICK.model_copy(update={"language_model": "frozen"}))
    assert not any(p.requires_grad for p in captioner.language_model.parameters())
    assert not captioner.language_model.training
    assert not captioner.mapper.training


# --- the loss -------------------------------------------------------------------------------------


def plain_loss(captioner: Captioner, embedding_D: Tensor, ids: list[int]) -> float:
    """Summed cross entropy of one caption, each word from a reading of its own."""
    prefix = captioner.mapper(embedding_D[None])
    total = 0.0
    for place, token in enumerate(ids):
        read = captioner.language_model.get_input_embeddings()(torch.tensor([ids[:place]]).long())
        logits = captioner.language_model(inputs_embeds=torch.cat((prefix, read), 1)).logits
        total -= float(logits[0, -1].log_softmax(-1)[token])
    return total


@torch.no_grad()
def test_the_loss_of_a_padded_batch_is_the_sum_of_each_captions_own() -> None:
    """Word 0 stands inside a caption: the original's loss ignored it as if it were padding."""
    captioner = tiny_captioner(sharpness=5.0)
    captions = [[3, 7, 12, 1], [0, 1], [2, 0, 5, 22, 25, 26, 1]]
    width = max(map(len, captions))
    token_BT = torch.tensor([ids + [9] * (width - len(ids)) for ids in captions])
    mask_BT = torch.tensor([[t < len(ids) for t in range(width)] for ids in captions])
    loss = caption_loss(captioner, embeddings(3), token_BT, mask_BT)
    plain = sum(map(plain_loss, [captioner] * 3, embeddings(3), captions))
    assert float(loss) == pytest.approx(plain, rel=1e-6)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    captioner = tiny_captioner()
    mask_BT = torch.tensor([[True, True, False], [True, True, True]])
    losses = []
    for padding in (0, 30):
        token_BT = torch.tensor([[4, 1, padding], [5, 6, 1]])
        captioner.mapper.zero_grad()
        loss = caption_loss(captioner, embeddings(2), token_BT, mask_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in captioner.mapper.parameters()]
        losses.append((loss.detach(), *(g.clone() for g in gradients if g is not None)))
    for one, other in zip(*losses, strict=True):
        assert torch.equal(one, other)


def test_word_zero_is_learned() -> None:
    """Token 0 is `!` in GPT-2; the original could never write it."""
    captioner = tiny_captioner()
    settings = TrainSettings(steps=60, batch_size=4, learning_rate=5e-3, validation_share=0.0)
    train(embeddings(2), [["a ball ! ."], ["a cat ! ."]], captioner, settings)
    texts = [candidates[0].text for candidates in captioner.caption(embeddings(2))]
    assert texts == ["a ball!.", "a cat!."]


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 5), (20, 20), (20, 5000)])
def test_the_learning_rate_follows_the_originals_schedule(steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
        optimizer, warmup, steps
    )
    for step in range(steps):
        assert learning_rate_share(step, steps, warmup) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


# --- seeds, splits, counts ------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_losses() -> None:
    settings = QUICK.model_copy(update={"embedding_noise": 0.1})
    (first, first_metrics), (again, again_metrics) = run(settings), run(settings)
    assert first_metrics == again_metrics
    assert all(torch.equal(weights(first)[key], weights(again)[key]) for key in weights(first))
    _, other_metrics = run(settings.model_copy(update={"seed": 1}))
    assert other_metrics.curve[-1] != first_metrics.curve[-1]


def test_training_leaves_the_random_state_alone() -> None:
    captioner = tiny_captioner()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(*scenes(), captioner, QUICK)
    assert torch.equal(torch.rand(3), wanted)


def test_no_gradient_sees_a_held_out_image() -> None:
    """Their captions may be anything: the trained weights are the same to the bit."""
    embedding_ND, texts = scenes()
    first = tiny_captioner()
    metrics = train(embedding_ND, texts, first, QUICK)
    assert len(metrics.rows_held_out) == round(0.2 * len(texts))
    assert metrics.captions_held_out == sum(len(texts[n]) for n in metrics.rows_held_out)
    assert metrics.captions_trained + metrics.captions_held_out == sum(map(len, texts))
    changed = embedding_ND.clone()
    changed[list(metrics.rows_held_out)] = 0.5
    second = tiny_captioner()
    train(changed, texts, second, QUICK)
    assert all(torch.equal(weights(first)[key], weights(second)[key]) for key in weights(first))


def test_with_nothing_held_out_there_is_no_held_out_loss() -> None:
    _, metrics = run(QUICK.model_copy(update={"validation_share": 0.0}))
    assert metrics.validation_loss is None
    assert metrics.rows_held_out == ()


def test_one_image_is_for_training() -> None:
    settings = TrainSettings(steps=2, validation_share=0.9)
    metrics = train(embeddings(1), [["a cat."]], tiny_captioner(), settings)
    assert (metrics.captions_trained, metrics.captions_held_out) == (1, 0)


def test_an_epoch_is_every_caption_once() -> None:
    settings = TrainSettings(epochs=3, batch_size=10, validation_share=0.0)
    captioner, seen = tiny_captioner(), list[Progress]()
    metrics = train(*scenes(), captioner, settings, hooks=Hooks(on_progress=seen.append))
    steps = 3 * math.ceil(metrics.captions_trained / 10)
    assert [p.step for p in seen] == list(range(1, steps + 1))
    assert {p.steps for p in seen} == {steps}
    assert tuple(seen) == metrics.curve


def test_a_caption_without_a_full_stop_learns_to_stop_all_the_same() -> None:
    captioner = tiny_captioner()
    settings = TrainSettings(steps=40, batch_size=4, learning_rate=5e-3, validation_share=0.0)
    train(embeddings(2), [["a ball"], ["a cat."]], captioner, settings)
    texts = [candidates[0].text for candidates in captioner.caption(embeddings(2))]
    assert texts == ["a ball.", "a cat."]


# --- refused --------------------------------------------------------------------------------------


def test_captions_that_do_not_pair_up_with_the_rows_are_refused() -> None:
    with pytest.raises(SettingsError, match="2 lists for 3 embeddings"):
        train(embeddings(3), [["a cat."]] * 2, tiny_captioner(), QUICK)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    embedding_ND = embeddings(3)
    embedding_ND[1, 0] = math.nan
    with pytest.raises(SettingsError, match="NaN or infinity"):
        train(embedding_ND, [["a cat."]] * 3, tiny_captioner(), QUICK)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    settings = QUICK.model_copy(update={"stop": None})
    with pytest.raises(SettingsError, match="no end token"):
        train(embeddings(1), [["a cat."]], tiny_captioner(), settings)


def test_with_an_end_token_captions_learn_to_end_with_it() -> None:
    tiny = tiny_captioner()
    captioner = Captioner(
        tiny.card, tiny.mapper, tiny.language_model, word_tokenizer(eos_token="room")
    )
    settings = TrainSettings(
        steps=40, batch_size=4, learning_rate=5e-3, validation_share=0.0, stop=None
    )
    train(embeddings(2), [["a ball."], ["a cat"]], captioner, settings)
    choice = tiny.card.decode.model_copy(update={"settings": {"max_tokens": 12, "stop": None}})
    best = [candidates[0] for candidates in captioner.caption(embeddings(2), decode=choice)]
    assert [candidate.text for candidate in best] == ["a ball.", "a cat"]
    assert {candidate.token_ids[-1] for candidate in best} == {WORDS.index("room")}


def test_captions_longer_than_the_language_model_can_read_are_refused() -> None:
    with pytest.raises(SettingsError, match="`max_tokens` must be at most 45"):
        train(embeddings(1), [["a " * 60]], tiny_captioner(), QUICK)


def test_a_loss_that_runs_away_ends_the_training_with_advice() -> None:
    settings = TrainSettings(steps=50, learning_rate=1e30, clip_norm=None, warmup_steps=0)
    with pytest.raises(SettingsError, match="Lower `learning_rate`"):
        train(*scenes(), tiny_captioner(), settings)


def test_words_that_the_language_model_lacks_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    captioner = tiny_captioner()
    settings = TrainSettings(max_tokens=9, validation_share=0.0)
    examples = lessons.Examples(embeddings(2), [["a zebra ."], ["a cat ."]])
    with caplog.at_level("WARNING", logger="clipcap"):
        lessons.plan(examples, captioner, settings)
    assert "no word for 17 %" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="clipcap"):
        lessons.plan(lessons.Examples(embeddings(1), [["a cat ."]]), captioner, settings)
    assert not caplog.text
