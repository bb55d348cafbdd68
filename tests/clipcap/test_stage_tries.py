"""Stages that are tried again, or run out of order: nothing twice, nothing lost, a clear word."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from clipcap import gate, layout, manifest, storage, tables
from clipcap.cards import Choice
from clipcap.embedding import Speed
from clipcap.encoders import openclip
from clipcap.errors import (
    ClipcapError,
    NotFoundError,
    SettingsError,
    TooManyRejectsError,
    TransientStorageError,
)
from clipcap.footers import Footers
from clipcap.labels import bank, sets
from clipcap.layout import Run, Shard
from clipcap.stages import caption, embed, label, publish, shard
from clipcap.stages.caption import CaptionSpeed
from clipcap.stages.label import LabelSettings
from tests.models import make_tiny_clip
from tests.nights import Tiny, draw, make_tiny, night

RUN = "2026-11-20"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny models that fit each other."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Run]:
    """A source of three drawings and a file of words, and a run into an output."""
    for n in range(3):
        draw(tmp_path / "in" / f"drawing-{n}.png", n)
    (tmp_path / "in" / "words.md").write_text("not a picture")
    return tmp_path / "in", Run("r1", storage.canonical(str(tmp_path / "out")), RUN)


def sharded(source: Path, run: Run) -> Shard:
    """Bring the shards of an output to its source; return the first one."""
    settings = shard.ShardSettings()
    plan = shard.plan(str(source), run=run, settings=settings)
    for planned in plan.planned:
        shard.shard(planned.shard, run=run, settings=settings)
    for target in plan.retired:
        shard.retire(target, run=run)
    return manifest.shards(run.out)[0]


def long_ago(url: str) -> None:
    """Make a file of this machine two days old."""
    path = storage.local_path(url)
    assert path is not None
    then = path.stat().st_mtime - 2 * storage.LEFT_OVER_S
    os.utime(path, (then, then))


@contextmanager
def first_is_not_finite() -> Iterator[None]:
    """Spoil the first embedding of every batch."""
    real = openclip.Encoder.encode_pixels

    def broken(self: openclip.Encoder, pixels_BHWC: torch.Tensor) -> Callable[[], torch.Tensor]:
        raw_BD = real(self, pixels_BHWC)()
        raw_BD[0] = float("nan")
        return lambda: raw_BD

    with patch.object(openclip.Encoder, "encode_pixels", broken):
        yield


@pytest.mark.parametrize("refused", ["rejects", "manifest"])
def test_a_try_that_died_in_between_neither_doubles_nor_loses_a_reject(
    place: tuple[Path, Run], tiny: Tiny, refused: str
) -> None:
    source, run = place
    target = sharded(source, run)
    real = storage.write

    def later(url: str, *parts: bytes) -> None:
        if f"/{refused}/" in url:
            raise TransientStorageError("Cannot put it: the store did not answer in time.")
        real(url, *parts)

    with first_is_not_finite():
        with patch.object(storage, "write", later), pytest.raises(TransientStorageError):
            embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
        assert len(live(run, target)) == 3, "an image left the manifest before it was a reject"
        embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
    rejects = manifest.read_rejects(run.out, target).to_pylist()
    assert sorted(row["reason"] for row in rejects) == ["model_error", "not_an_image"]
    assert len(live(run, target)) == 2


def live(run: Run, target: Shard) -> list[str]:
    """Return the live images of a shard."""
    ids: list[str] = tables.read(layout.manifest(run.out, target))["image_id"].to_pylist()
    return ids


def test_captions_from_embeddings_of_images_that_left_are_refused(
    place: tuple[Path, Run], tiny: Tiny
) -> None:
    source, run = place
    target = sharded(source, run)
    embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
    (source / "drawing-1.png").unlink()
    sharded(source, replace(run, run_id="r2"))
    with pytest.raises(NotFoundError, match="embed it again first"):
        caption.caption(
            target, run=run, settings=tiny.captioner, encoder=tiny.encoder, speed=CaptionSpeed()
        )


def test_other_weights_in_the_same_folder_embed_everything_again(
    place: tuple[Path, Run], tmp_path: Path
) -> None:
    source, run = place
    target = sharded(source, run)
    settings = make_tiny(tmp_path / "models").encoder
    states = []
    for seed in (0, 0, 1):
        make_tiny_clip(Path(settings.model), seed)
        states.append(embed.embed([target], run=run, settings=settings, speed=Speed())[0].computed)
    half = settings.model_copy(update={"precision": "bf16"})
    states.append(embed.embed([target], run=run, settings=half, speed=Speed())[0].computed)
    assert states == [3, 0, 3, 3]


def test_another_way_to_decode_makes_other_captions(place: tuple[Path, Run], tiny: Tiny) -> None:
    source, run = place
    target = sharded(source, run)
    embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
    decode = Choice(name="greedy", settings={"max_tokens": 8})
    greedy = tiny.captioner.model_copy(update={"decode": decode})
    for chosen, computed in ((tiny.captioner, 3), (tiny.captioner, 0), (greedy, 3), (greedy, 0)):
        outcome = caption.caption(
            target, run=run, settings=chosen, encoder=tiny.encoder, speed=CaptionSpeed()
        )
        assert outcome.computed == computed


def test_another_top_k_or_threshold_makes_other_labels(place: tuple[Path, Run], tiny: Tiny) -> None:
    source, run = place
    target = sharded(source, run)
    embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
    counts = []
    for top_k, threshold in ((1, 1.0), (2, 1.0), (2, 0.0)):
        (outcome,) = label.label(
            target,
            [bank.load(tiny.label_set)],
            run=run,
            settings=LabelSettings(top_k=top_k, threshold=threshold),
            encoder=tiny.encoder,
        )
        counts.append(outcome.rows)
    assert counts == [3, 6, 9]


def test_other_names_in_a_label_set_make_other_labels(
    place: tuple[Path, Run], tiny: Tiny, tmp_path: Path
) -> None:
    source, run = place
    target = sharded(source, run)
    embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
    first, path = bank.load(tiny.label_set), tmp_path / "pets.json"
    path.write_text('{"names": ["cup", "tree", "boat"]}')
    for given in (first, bank.load(str(path))):
        label.label(target, [given], run=run, settings=LabelSettings(), encoder=tiny.encoder)
        url = layout.labels(run.out, target, label_set="pets")
        assert set(tables.read(url)["label"].to_pylist()) == set(given.label_set.names)


def test_rejects_that_readers_were_told_of_stop_no_later_night(
    place: tuple[Path, Run], tiny: Tiny
) -> None:
    source, run = place
    night(source, run.out, tiny)
    gate.require_few_rejects(run, max_reject_rate=0.0)
    (source / "more.md").write_text("not a picture either")
    sharded(source, run)
    with pytest.raises(TooManyRejectsError, match="100% of 1"):
        gate.require_few_rejects(run, max_reject_rate=0.0)


def test_a_shard_that_is_gone_leaves_nothing_behind(place: tuple[Path, Run], tiny: Tiny) -> None:
    source, run = place
    night(source, run.out, tiny, max_images=2)
    before = manifest.shards(run.out)
    stray = layout.tar(run.out, Shard(RUN, "stray"))
    storage.write(stray, b"of a run that was killed before its manifest")
    long_ago(stray)
    fresh = layout.tar(run.out, Shard(RUN, "fresh"))
    storage.write(fresh, b"of a run that may still be about to write its manifest")
    for n in range(2):
        (source / f"drawing-{n}.png").unlink()
    night(source, run.out, tiny, max_images=2, dt="2026-11-21")
    gone = set(before) - set(manifest.shards(run.out))
    assert len(gone) == 1
    left = {found.url for found in storage.list_objects(run.out)}
    assert [url for url in left for one in gone if one.name in url] == []
    assert stray not in left
    assert fresh in left


def test_a_shard_that_another_run_wrote_meanwhile_is_not_swept(
    place: tuple[Path, Run], tiny: Tiny
) -> None:
    source, run = place
    night(source, run.out, tiny)
    assert publish.sweep(Footers(run.out), {}, run=run) == 0
    assert storage.info(layout.tar(run.out, manifest.shards(run.out)[0])) is not None


def test_two_label_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    """They would share a folder: each night the one would replace the labels of the other."""
    for folder in ("a", "b"):
        path = tmp_path / folder / "pets.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"names": [folder, "other"]}))
    found = [sets.load(str(tmp_path / folder / "pets.json")) for folder in ("a", "b")]
    sets.require_own_names(found[:1])
    with pytest.raises(SettingsError, match="2 are called pets"):
        sets.require_own_names(found)


def test_a_broken_model_empties_no_shard(place: tuple[Path, Run], tiny: Tiny) -> None:
    """A number format that overflows gives NaN for every image; that is no image's fault."""
    source, run = place
    target = sharded(source, run)
    nothing = torch.full((3, 16), float("nan"))
    with (
        patch.object(openclip.Encoder, "encode_pixels", return_value=lambda: nothing),
        pytest.raises(ClipcapError, match="no finite embedding for any of the 3 images"),
    ):
        embed.embed([target], run=run, settings=tiny.encoder, speed=Speed())
    assert tables.read(layout.manifest(run.out, target)).num_rows == 3


def test_what_killed_runs_left_goes_after_a_day_and_not_before(
    place: tuple[Path, Run], tiny: Tiny
) -> None:
    source, run = place
    night(source, run.out, tiny)
    folder = storage.local_path(run.out)
    assert folder is not None
    left = [
        folder / "_plans" / "killed" / "a.parquet",
        folder / "manifest" / ".m.parquet.1-0123abcd.tmp",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert shard.recover(run.out) == 0
    for path in left:
        long_ago(str(path))
    assert shard.recover(run.out) == 2
    assert not any(path.exists() for path in left)
