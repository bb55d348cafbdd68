"""A flow's name in, one run of it, what it needs before and what must be true after it, out."""

from __future__ import annotations

import random
from datetime import date
from typing import Final

import torch

import flows.caption
import flows.embed
import flows.label
import flows.nightly
import flows.shard
import flows.train
from clipcap import cards, layout, storage
from clipcap.stages.caption import CaptionSettings
from clipcap.stages.train import TrainSettings
from clipcap.training import TrainSettings as LoopSettings
from tests.chaos import world
from tests.chaos.world import World

FLOWS: Final = ("shard", "embed", "caption", "label", "nightly", "train")
DATE: Final = date(2026, 11, 20)
_TABLES: Final = {"embed": "embeddings", "caption": "captions", "label": "labels"}
_BEFORE: Final[dict[str, tuple[str, ...]]] = {
    "embed": ("shard",),
    "caption": ("shard", "embed"),
    "label": ("shard", "embed"),
    "train": ("shard", "embed"),
}


def prepared(made: World, flow: str, draw: random.Random) -> None:
    """Let all be done that the flow needs, and nothing, or little, of what it does itself."""
    for before in _BEFORE.get(flow, ()):
        run(before, made)
    if flow in _TABLES:
        there = [one.url for one in storage.listed(f"{made.out}/{_TABLES[flow]}")]
        gone = there[draw.randrange(2) :]  # at times one shard is done
    elif flow == "train":
        folders = (layout.captioner(made.out, "new"), f"{made.out}/_training")
        gone = [one.url for folder in folders for one in storage.listed(folder)]
    else:
        afresh = draw.random() < 0.2
        gone = [one.url for one in storage.listed(made.out)] if afresh else []
    for url in gone:
        storage.delete(url)


def run(flow: str, made: World) -> None:
    """Run a flow as its command does."""
    settings = made.folder.settings(made.chosen)
    out, encoder = made.out, settings.embed
    if flow == "shard":
        flows.shard.shard.fn(made.source, out, settings.shard, 1.0, DATE)
    elif flow == "embed":
        flows.embed.embed.fn(out, encoder, settings.speed, 2, DATE)
    elif flow == "caption":
        captioner = settings.caption or CaptionSettings()
        flows.caption.caption.fn(out, captioner, encoder, settings.caption_speed, 2)
    elif flow == "label":
        flows.label.label.fn(out, settings.label, encoder)
    elif flow == "nightly":
        flows.nightly.nightly.fn(made.source, out, settings, DATE)
    else:
        torch.set_num_threads(1)
        flows.train.train.fn(out, _training(made), encoder)


def _training(made: World) -> TrainSettings:
    loop = LoopSettings(epochs=4, batch_size=2, validation_share=0.2, validations=2)
    return TrainSettings(
        name="new",
        start=str(made.folder.path / "start"),
        device="cpu",
        loop=loop,
        checkpoint_steps=2,
        alignment_images=0,
    )


def start_captioner(made: World) -> None:
    """Write the captioner that trainings start from."""
    from tests.captioners import tiny_captioner  # seconds, which other flows need not wait

    tiny_captioner().save(str(made.folder.path / "start"))


def check(flow: str, made: World) -> None:
    """Hold the flow's tables against the source, and for `train` the captioner against another."""
    if flow == "train":
        _require_trained(made)
        return
    if flow == "nightly":
        world.require_exact(made)
        return
    world.require_sharded(made)
    vectors = world.require_embedded(made) if flow != "shard" else {}
    if flow == "caption":
        world.require_captioned(made, vectors)
    if flow == "label":
        world.require_labelled(made, vectors)


def _require_trained(made: World) -> None:
    """Compare with what the first trial left: the training is the same, killed or not."""
    folder = layout.captioner(made.out, "new")
    card = cards.read_card(folder)
    assert card.captioner_id
    digest = cards._file_digest(f"{folder}/{cards.MAPPER_NAME}", _size(folder))
    noted = made.folder.path / "mapper.sha256"
    if not noted.exists():
        noted.write_text(digest)
    assert noted.read_text() == digest
    assert storage.listed(layout.training(made.out, "new")) == []


def _size(folder: str) -> int:
    found = storage.info(f"{folder}/{cards.MAPPER_NAME}")
    assert found is not None
    return found.size_bytes
