"""Shards embedded in a row: every image accounted for, written behind, whole or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipcap import commits, embedding, layout, manifest, storage, tables
from clipcap.embedder import Embedded
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import (
    ClipcapError,
    ImageError,
    Reason,
    StorageError,
    TransientStorageError,
)
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome
from clipcap.planning import PackSettings
from clipcap.stages import embed, shard
from clipcap.workers import Pool, WorkerSettings
from tests.models import make_tiny_clip
from tests.nights import draw

SPEED = Speed(batch_size=3, decode=WorkerSettings(processes=2))
IMAGES = 14
PER_SHARD = 4


class Colours:
    """An encoder whose embedding is the mean colour and one: whose row is whose can be told."""

    def __init__(self, settings: EmbedSettings) -> None:
        ref = embedding.reference(settings)
        self.model_id, self.sha256, self.dim = ref.model_id, ref.sha256, ref.dim
        self.preprocess_json, self.preprocess_sha256 = ref.preprocess_json, ref.preprocess_sha256
        self.logit_scale, self.logit_bias = 1.0, None
        self.device, self.precision = torch.device("cpu"), "fp32"
        self.sizes: list[int] = []
        self.spoilt: set[int] = set()
        self.third_batch = threading.Event()

    def encode_pixels(self, pixels_BHWC: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.sizes.append(len(pixels_BHWC))
        if len(self.sizes) == 3:
            self.third_batch.set()
        raw_BD = torch.ones(len(pixels_BHWC), self.dim)
        raw_BD[:, :3] = pixels_BHWC.float().mean((1, 2))
        for n in range(len(raw_BD)):
            if sum(self.sizes[:-1]) + n in self.spoilt:
                raw_BD[n, 5] = float("nan")
        return lambda: raw_BD


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("r1", storage.canonical(str(tmp_path / "out")), "2026-11-20")


@pytest.fixture
def settings(tmp_path: Path) -> EmbedSettings:
    (tmp_path / "clip").mkdir()
    return EmbedSettings(model=str(make_tiny_clip(tmp_path / "clip")))


@pytest.fixture
def colours(settings: EmbedSettings) -> Iterator[Colours]:
    encoder = Colours(settings)
    with patch.object(embedding, "load", return_value=encoder):
        yield encoder


@pytest.fixture
def shards(tmp_path: Path, run: Run) -> list[Shard]:
    for n in range(IMAGES):
        draw(tmp_path / "in" / f"drawing-{n:02}.png", n)
    packed = shard.ShardSettings(pack=PackSettings(max_images=PER_SHARD))
    plan = shard.plan(str(tmp_path / "in"), run=run, settings=packed)
    for part in plan.planned:
        shard.shard(part.shard, run=run, settings=packed)
    assert len(plan.planned) == 4
    return [part.shard for part in plan.planned]


def embedded(shards: list[Shard], run: Run, settings: EmbedSettings) -> list[Outcome]:
    return embed.embed(shards, run=run, settings=settings, speed=SPEED)


def rows(run: Run, settings: EmbedSettings) -> pa.Table:
    """Return the embeddings of all shards."""
    model_id = embedding.reference(settings).model_id
    found = storage.listed(layout.table(run.out, "embeddings"))
    return pa.concat_tables(
        tables.read(info.url) for info in found if f"model={model_id}" in info.url
    )


def live(run: Run) -> pa.Table:
    """Return the manifest of all shards."""
    return pa.concat_tables(
        tables.read(layout.manifest(run.out, s)) for s in manifest.shards(run.out)
    )


def test_every_live_image_has_its_own_embedding(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    outcomes = embedded(shards, run, settings)
    assert [one.shard for one in outcomes] == shards
    assert [one.computed for one in outcomes] == [4, 4, 4, 2]
    found, wanted = rows(run, settings).sort_by("key"), live(run).sort_by("key")
    assert found["image_id"].to_pylist() == wanted["image_id"].to_pylist()
    for row, vector in zip(wanted.to_pylist(), tables.vectors(found), strict=True):
        number = int(row["source_uri"][-6:-4])
        corner = np.array([number * 53 % 256, number * 97 % 256, number * 151 % 256])
        assert abs(np.linalg.norm(vector) - 1) < 1e-3
        seen = vector[:3] / vector[3]  # the mean colour: the corner's, and an ellipse on it
        assert np.abs(seen - corner).max() < 140


def test_batches_never_mix_shards_but_shards_share_the_model(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    embedded(shards, run, settings)
    assert colours.sizes == [3, 1, 3, 1, 3, 1, 2]


def test_what_is_done_costs_no_model(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    embedded(shards[1:3], run, settings)
    colours.sizes.clear()
    outcomes = embedded(shards, run, settings)
    assert [one.state for one in outcomes] == ["written", "unchanged", "unchanged", "written"]
    assert colours.sizes == [3, 1, 2]
    with patch.object(embedding, "load", side_effect=AssertionError("loaded a model")):
        assert {one.state for one in embedded(shards, run, settings)} == {"unchanged"}


def test_a_shard_that_only_lost_images_is_written_without_the_model(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    embedded(shards, run, settings)
    gone = tables.read(layout.manifest(run.out, shards[1]))["image_id"][0].as_py()
    manifest.retire(shards[1], run=run, live={gone}, rejects=set())
    with patch.object(embedding, "load", side_effect=AssertionError("loaded a model")):
        outcomes = embedded(shards, run, settings)
    assert [one.rows for one in outcomes] == [4, 3, 4, 2]
    assert gone not in rows(run, settings)["image_id"].to_pylist()


def test_an_image_without_an_embedding_becomes_a_reject_of_its_shard(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    colours.spoilt = {1, 7}  # one of the first shard, one of the second
    outcomes = embedded(shards, run, settings)
    assert [one.rejected for one in outcomes] == [1, 1, 0, 0]
    assert [one.rows for one in outcomes] == [3, 3, 4, 2]
    for target, count in zip(shards, (1, 1, 0, 0), strict=True):
        reasons = manifest.read_rejects(run.out, target)["reason"].to_pylist()
        assert reasons == ["model_error"] * count
    assert len(live(run)) == IMAGES - 2
    assert {one.state for one in embedded(shards, run, settings)} == {"unchanged"}


def test_images_that_cannot_be_decoded_are_no_fault_of_the_model(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    """A shard of two such images once stopped every night, with a sentence about the model."""
    broken = ImageError("decode_failed", "It is damaged.")
    with answers_of_workers(broken):
        outcomes = embedded(shards, run, settings)
    assert [one.rejected for one in outcomes] == [4, 4, 4, 2]
    reasons = manifest.read_rejects(run.out, shards[0])["reason"].to_pylist()
    assert reasons == ["decode_failed"] * 4


@pytest.mark.parametrize("reason", ["timeout", "oom"])
def test_limits_that_no_image_keeps_empty_no_shard(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours, reason: Reason
) -> None:
    with (
        answers_of_workers(ImageError(reason, "It takes too much.")),
        pytest.raises(ClipcapError, match=r"None of the 4 images .* within the limits"),
    ):
        embedded(shards, run, settings)
    assert len(live(run)) == IMAGES


@contextmanager
def answers_of_workers(error: ImageError) -> Iterator[None]:
    """Have every image answered by the same error."""

    def submit(_: Pool, __: object, items: list[object]) -> list[Future[list[ImageError]]]:
        future: Future[list[ImageError]] = Future()
        future.set_result([error] * len(items))
        return [future]

    with patch.object(Pool, "submit", submit):
        yield


def test_a_tar_that_was_changed_keeps_no_other_shard_from_it(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    path = storage.local_path(layout.tar(run.out, shards[2]))
    assert path is not None
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(StorageError, match=r"1 of 4 shards could not be .* must hold"):
        embedded(shards, run, settings)
    assert len(rows(run, settings)) == IMAGES - PER_SHARD
    model_id = embedding.reference(settings).model_id
    assert commits.find(layout.embeddings(run.out, shards[2], model_id=model_id)) is None


def test_the_model_goes_on_while_a_table_is_written(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    real = storage.write
    overlapped = []

    def slow(url: str, *parts: bytes) -> None:
        if "/embeddings/" in url:  # the second batch begins before the first is waited for
            overlapped.append(colours.third_batch.wait(10))
        real(url, *parts)

    with patch.object(storage, "write", slow):
        embedded(shards, run, settings)
    assert overlapped[0], "the third shard waited for the table of the first"


def test_tables_that_wait_to_be_written_are_bounded(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    waiting, most = 0, 0
    real = Embedded.table

    class Counted(embed._Writer):
        def add(self, job: embed._Job, made: Embedded) -> None:
            nonlocal waiting, most
            waiting += 1
            super().add(job, made)
            most = max(most, waiting)

    def slow(self: Embedded, dim: int) -> pa.Table:
        nonlocal waiting
        time.sleep(0.2)
        waiting -= 1
        return real(self, dim)

    with patch.object(embed, "_Writer", Counted), patch.object(Embedded, "table", slow):
        embedded(shards, run, settings)
    assert 1 <= most <= embed._WRITTEN


def test_a_table_that_cannot_be_written_is_told_and_done_the_next_time(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    with refusing("/embeddings/"), pytest.raises(TransientStorageError, match="later"):
        embedded(shards, run, settings)
    assert storage.listed(layout.table(run.out, "embeddings")) == []
    assert [one.computed for one in embedded(shards, run, settings)] == [4, 4, 4, 2]


@contextmanager
def refusing(part: str) -> Iterator[None]:
    """Have the store refuse to write some objects."""
    real = storage.write

    def write(url: str, *parts: bytes) -> None:
        if part in url:
            raise TransientStorageError("Cannot put it: later.")
        real(url, *parts)

    with patch.object(storage, "write", write):
        yield


def test_a_shard_never_claims_fewer_rows_than_it_has_images(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    real = Embedded.table

    def short(self: Embedded, dim: int) -> pa.Table:
        return real(self, dim).slice(1)

    with (
        patch.object(Embedded, "table", short),
        pytest.raises(ClipcapError, match="has 4 live images, but 3 embeddings and 0 rejects"),
    ):
        embedded(shards, run, settings)
    assert storage.listed(layout.table(run.out, "embeddings")) == []


def test_it_says_where_the_seconds_went(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    real = Colours.encode_pixels

    def slow(self: Colours, pixels_BHWC: torch.Tensor) -> Callable[[], torch.Tensor]:
        result = real(self, pixels_BHWC)

        def wait() -> torch.Tensor:
            time.sleep(0.05)
            return result()

        return wait

    began = time.perf_counter()
    with patch.object(Colours, "encode_pixels", slow):
        outcomes = embedded(shards, run, settings)
    all_s = time.perf_counter() - began
    assert [one.model_s >= 0.05 for one in outcomes] == [True] * 4
    assert sum(one.decode_s for one in outcomes) > 0
    told = [one.model_s + one.decode_s + one.read_s for one in outcomes]
    assert sum(told) <= all_s, "some seconds were told twice"
    assert all(s <= one.duration_s + 0.1 for s, one in zip(told, outcomes, strict=True))


def test_other_pixels_make_other_embeddings(
    shards: list[Shard], run: Run, settings: EmbedSettings, colours: Colours
) -> None:
    embedded(shards, run, settings)
    managed = settings.model_copy(
        update={"pixels": settings.pixels.model_copy(update={"colours": "managed"})}
    )
    assert [one.computed for one in embedded(shards, run, managed)] == [4, 4, 4, 2]
    assert [one.computed for one in embedded(shards, run, managed)] == [0, 0, 0, 0]
