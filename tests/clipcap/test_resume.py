"""Killed trainings: the same weights to the bit, anew for other data, what broke not believed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from clipcap import cards, storage
from clipcap.captioner import Captioner
from clipcap.errors import ClipcapError
from clipcap.progress import Best, Hooks, Progress, State, from_tensor, to_tensor
from clipcap.resume import Checkpoint
from clipcap.trainer import train
from clipcap.training import TrainSettings
from tests.captioners import embeddings, tiny_captioner

POINTS = ("step:1", "before:2", "after:2", "step:13", "after:5")


def weights(folder: Path) -> dict[str, bytes]:
    names = (cards.MAPPER_NAME, f"{cards.LANGUAGE_MODEL_NAME}/model.safetensors")
    return {name: (folder / "captioner" / name).read_bytes() for name in names}


@pytest.mark.slow
def test_a_training_killed_at_five_points_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.resumed", str(tmp_path), "step:0", *POINTS]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    whole, *found = json.loads(done.stdout)
    assert whole["statuses"] == [0, 0], done.stderr
    count = len(whole["steps"][0])
    for one in found:
        first, then = one["steps"]
        assert one["statuses"] == [-signal.SIGKILL, 0], done.stderr
        assert weights(Path(one["folder"])) == weights(Path(whole["folder"])), one["point"]
        assert then == list(range(then[0], count + 1))
        assert len(first) < count
        assert (then[0] > 1) == (one["point"] != "step:1")  # nothing was saved before step 1


@pytest.mark.parametrize("where", ["folder", "store"])
def test_what_is_kept_is_of_one_fingerprint(tmp_path: Path, where: str) -> None:
    folder = "memory://trainings" if where == "store" else str(tmp_path)
    url = storage.canonical(f"{folder}/state.safetensors")
    state = {"weights.0": torch.arange(3.0), "best": torch.zeros(3)}
    Checkpoint(url, "one").save(state)
    found = Checkpoint(url, "one").load()
    assert found is not None
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert Checkpoint(url, "another").load() is None
    assert Checkpoint(f"{url}.nowhere", "one").load() is None


@pytest.mark.parametrize("cut", [0, 5, 40, -3])
def test_a_state_that_broke_is_not_believed(tmp_path: Path, cut: int) -> None:
    url = storage.canonical(str(tmp_path / "state.safetensors"))
    Checkpoint(url, "one").save({"weights.0": torch.arange(9.0)})
    storage.write(url, storage.read(url)[:cut])
    assert Checkpoint(url, "one").load() is None


def test_a_curve_comes_back_as_it_was() -> None:
    curve = [Progress(1, 9, 2.5, 0.0), Progress(2, 9, 2.25, 1e-5, 3.1, 0.7)]
    assert from_tensor(to_tensor(curve), 9) == curve
    assert from_tensor(to_tensor([]), 9) == []


def test_the_best_weights_are_those_of_the_best_measurement() -> None:
    best, weight = Best(), torch.zeros(2)
    for step, loss in enumerate((3.0, 2.0, float("nan"), 2.5), start=1):
        weight.fill_(step)
        best.offer(Progress(step, 4, 1.0, 0.0, loss), [weight], keep=True)
    assert (best.step, best.later) == (2, 2)
    again = Best()
    again.restore(best.state())
    again.put_back([weight])
    assert weight.tolist() == [2.0, 2.0]
    assert (again.step, again.later) == (2, 2)


def test_a_score_takes_the_place_of_the_loss() -> None:
    best, weight = Best(), torch.zeros(1)
    for step, (loss, score) in enumerate(((3.0, 0.5), (2.0, 0.4)), start=1):
        best.offer(Progress(step, 2, 1.0, 0.0, loss, score), [weight], keep=True)
    assert best.step == 1


class _StoppedError(ClipcapError):
    """Raised where a kill would be."""


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_a_training_goes_on_in_this_process_too(tmp_path: Path, mode: str) -> None:
    """Other seeds, precisions and modes than the killed ones."""
    settings = TrainSettings.model_validate(
        {"steps": 9, "batch_size": 4, "language_model": mode, "validation_share": 0.3,
         "learning_rate": 1e-2, "precision": "fp32", "validations": 2, "clip_norm": None}
    )  # fmt: skip
    texts = [["a cat.", "the sea."], ["a dog."], ["one boat."], ["a red car.", "two cars."]]
    whole = tiny_captioner()
    metrics = train(embeddings(4), texts, whole, settings)
    held: list[State] = []

    def save(state: State) -> None:
        held.append({name: tensor.detach().clone() for name, tensor in state.items()})

    def stop(progress: Progress) -> None:
        if progress.step == 7:
            raise _StoppedError

    hooks = Hooks(on_progress=stop, save=save, save_steps=3)
    with pytest.raises(_StoppedError):
        train(embeddings(4), texts, tiny_captioner(), settings, hooks=hooks)
    again = tiny_captioner()
    hooks = Hooks(load=lambda: held[-1])
    assert train(embeddings(4), texts, again, settings, hooks=hooks) == metrics
    for one, other in ((whole.mapper, again.mapper), (whole.language_model, again.language_model)):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_best_weights_from_before_a_kill_are_kept() -> None:
    settings = TrainSettings(
        steps=8, batch_size=4, validation_share=0.5, learning_rate=1e-2, validations=4
    )
    texts = [["a cat."], ["a dog."], ["one boat."], ["a red car."]]

    def scored(*scores: float) -> Callable[[Captioner, Sequence[int]], float]:
        told = iter(scores)
        return lambda _captioner, _rows: next(told)

    held: list[State] = []
    whole, again = tiny_captioner(), tiny_captioner()

    def save(state: State) -> None:
        held.append({name: tensor.detach().clone() for name, tensor in state.items()})

    hooks = Hooks(save=save, score=scored(9.0, 1.0, 0.5, 0.0))
    metrics = train(embeddings(4), texts, whole, settings, hooks=hooks)
    hooks = Hooks(load=lambda: held[1], score=scored(0.5, 0.0))
    assert train(embeddings(4), texts, again, settings, hooks=hooks) == metrics
    assert metrics.best_step == 2
    pairs = zip(whole.mapper.parameters(), again.mapper.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
