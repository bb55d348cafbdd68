"""Which weights are kept, and when a training ends: by what is measured on held-out images."""

from __future__ import annotations

import torch

from clipcap.captioner import Captioner
from clipcap.trainer import TrainMetrics, train
from clipcap.training import TrainSettings
from tests.captioners import embeddings, tiny_captioner

TEXTS = [
    f"a {colour} {thing} {place}."
    for colour in ("red", "blue", "green")
    for thing in ("ball", "car", "boat")
    for place in ("on the sea", "in the snow")
]


def overfit(**changed: object) -> tuple[Captioner, TrainMetrics]:
    """Train on few captions for long: the held-out loss falls, then rises."""
    captioner = tiny_captioner()
    given = {"steps": 120, "batch_size": 8, "learning_rate": 1e-2, "validation_share": 0.2}
    settings = TrainSettings.model_validate(given | {"validations": 24} | changed)
    return captioner, train(embeddings(len(TEXTS)), [[t] for t in TEXTS], captioner, settings)


def test_the_best_weights_are_kept_and_not_the_last() -> None:
    captioner, metrics = overfit()
    measured = {p.step: p.validation_loss for p in metrics.curve if p.validation_loss is not None}
    assert metrics.best_step is not None
    assert metrics.best_step < 120
    assert metrics.validation_loss == measured[metrics.best_step] == min(measured.values())
    last, _ = overfit(keep="last")
    pairs = zip(captioner.mapper.parameters(), last.mapper.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)


def test_the_last_weights_are_kept_where_asked() -> None:
    _, metrics = overfit(keep="last")
    assert metrics.validation_loss == metrics.curve[-1].validation_loss


def test_training_ends_when_nothing_gets_better() -> None:
    _, metrics = overfit(patience=3)
    measured = [p.step for p in metrics.curve if p.validation_loss is not None]
    assert metrics.best_step is not None
    assert len(metrics.curve) < 120
    assert len([step for step in measured if step > metrics.best_step]) == 3
    assert measured[-1] == len(metrics.curve)
