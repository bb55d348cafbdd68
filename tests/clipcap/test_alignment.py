"""Embeddings that are not those of the images: found before training, and told which."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcap import alignment, embedding, manifest, pairs, storage, tables
from clipcap.embedding import Speed
from clipcap.errors import SettingsError
from clipcap.layout import Run
from clipcap.stages import train
from clipcap.training import TrainSettings as LoopSettings
from tests.nights import Tiny, make_tiny, things

SPEED = Speed(device="cpu", batch_size=3)
IMAGES = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of two shards that nobody changes."""
    return things(tmp_path_factory.mktemp("whole"), tiny, IMAGES)


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def required(out: Path, tiny: Tiny, images: int = IMAGES) -> int:
    url = storage.canonical(str(out))
    found = pairs.read(url, embedding.reference(tiny.encoder), None)
    return alignment.require(found, url, encoder=tiny.encoder, speed=SPEED, images=images)


def rewrite(out: Path, order: np.ndarray) -> None:
    """Put the vectors of the largest shard into another order; all else stays."""
    path = max((out / "embeddings").rglob("*.parquet"), key=lambda p: pq.read_metadata(p).num_rows)
    table = pq.ParquetFile(path).read()
    at = table.schema.get_field_index("embedding")
    moved = table["embedding"].combine_chunks().take(pa.array(order[: table.num_rows]))
    pq.write_table(table.set_column(at, table.schema.field(at), moved), path)


def test_embeddings_of_their_own_images_pass(out: Path, tiny: Tiny) -> None:
    assert required(out, tiny) == IMAGES
    assert required(out, tiny, images=2) == 2
    assert required(out, tiny, images=0) == 0


def test_shifted_rows_are_refused_with_the_image_and_the_row_that_it_fits(
    out: Path, tiny: Tiny
) -> None:
    rewrite(out, np.roll(np.arange(4), 1))
    with pytest.raises(SettingsError, match=r"stored embedding of file:.*png .*rows are shifted"):
        required(out, tiny)


def test_another_encoder_is_told_from_shifted_rows(out: Path, tiny: Tiny, tmp_path: Path) -> None:
    other = make_tiny(tmp_path / "other", seed=5)
    url = storage.canonical(str(out))
    found = pairs.read(url, embedding.reference(tiny.encoder), None)
    with pytest.raises(SettingsError, match="was the encoder exchanged"):
        alignment.require(found, url, encoder=other.encoder, speed=SPEED, images=3)


def test_images_that_cannot_be_read_are_passed_over_and_told(
    out: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    first, *_ = sorted((out / "shards").rglob("*.tar"))
    first.unlink()
    compared = required(out, tiny)
    assert 0 < compared < IMAGES
    assert (
        f"{IMAGES - compared} of {IMAGES} images cannot be read (Cannot read file:" in caplog.text
    )
    caplog.clear()
    required(out, tiny, images=0)
    assert not caplog.text


def test_a_tar_that_was_changed_is_told(
    out: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (out / "shards").rglob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    assert required(out, tiny) == 0
    assert "with the content digest of its manifest, but does not" in caplog.text


def test_training_looks_before_it_learns_and_not_twice(
    out: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = LoopSettings(steps=1, batch_size=4, validation_share=0.0)
    chosen = train.TrainSettings(start=tiny.captioner.captioner, prefix_length=3, loop=loop)
    run = Run("run", storage.canonical(str(out)), "2026-11-21")
    train.train(run, settings=chosen, encoder=tiny.encoder)
    monkeypatch.setattr(alignment, "require", lambda *_, **__: pytest.fail("looked again"))
    assert train.train(run, settings=chosen, encoder=tiny.encoder).was_there
    monkeypatch.undo()
    rewrite(out, np.array([1, 0, 3, 2]))
    other = chosen.model_copy(update={"prefix_length": 4})
    with pytest.raises(SettingsError, match="the rows are shifted"):
        train.train(run, settings=other, encoder=tiny.encoder)
    given = other.model_copy(update={"alignment_images": 0})
    assert not train.train(run, settings=given, encoder=tiny.encoder).was_there


def test_every_shard_is_looked_at_in_place(whole: Path, tiny: Tiny) -> None:
    url = storage.canonical(str(whole))
    found = pairs.read(url, embedding.reference(tiny.encoder), None)
    lying = list(pairs.lying(found, url))
    assert [one.shard for one in lying] == manifest.shards(url)
    assert sum(one.rows.num_rows for one in lying) == found.num_rows == IMAGES
    assert all(storage.info(one.tar) for one in lying)
    assert tables.vectors(found).shape == (IMAGES, 16)
