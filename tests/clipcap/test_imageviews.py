"""Augmented views: the same after a kill, kept by shard, drawn in training, off by default."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from clipcap import cards, commits, embedding, imageviews, pairs, pixels, storage, tables, verify
from clipcap.embedding import Speed
from clipcap.errors import ClipcapError, SettingsError, StorageError
from clipcap.layout import Run
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.sharedmemory import SharedMemory
from clipcap.stages import train
from clipcap.trainer import _Loop
from clipcap.trainer import train as learn
from clipcap.training import TrainSettings as LoopSettings
from tests.captioners import embeddings, tiny_captioner
from tests.nights import Tiny, draw, make_tiny, things

SPEED = Speed(device="cpu", batch_size=3)
IMAGES, VIEWS, DIM = 5, 2, 16
WANTED = Preprocess(32, 32, "bicubic", "shortest", 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """An output of two shards that nobody changes."""
    return things(tmp_path_factory.mktemp("whole"), tiny, IMAGES)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Run:
    folder = shutil.copytree(whole, tmp_path / "out")
    return Run("run", storage.canonical(str(folder)), "2026-11-21")


def made(run: Run, tiny: Tiny, views: int = VIEWS) -> np.ndarray:
    found = pairs.read(run.out, embedding.reference(tiny.encoder), None)
    found = imageviews.added(found, run, encoder=tiny.encoder, speed=SPEED, views=views)
    view_NVD, norm_NV = imageviews.vectors(found)
    assert norm_NV.shape == (IMAGES, views)
    assert np.allclose(np.linalg.norm(view_NVD, axis=2), 1.0, atol=1e-3)
    return view_NVD


def kept(run: Run) -> dict[str, int]:
    """Return the objects of views by path, with the time they were written."""
    folder = storage.local_path(run.out)
    assert folder is not None
    found = sorted((folder / "_training" / "views").rglob("*.parquet"))
    return {str(path): path.stat().st_mtime_ns for path in found}


# --- pixels -------------------------------------------------------------------------------------


def test_a_view_is_made_of_content_and_number_alone(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 3, (90, 60))
    data = (tmp_path / "a.png").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    with SharedMemory(len(data)) as source, SharedMemory(4 * 32 * 32 * 3) as target:
        source.map[:] = data
        shared = {
            "memory": target.path, "serial": 99, "settings": PixelSettings().model_dump(),
            "preprocess": asdict(WANTED),
        }  # fmt: skip
        item = [source.path, 0, len(data), sha256]
        torch.manual_seed(5)
        for slot, view in enumerate(([1], [2], [], [1])):
            torch.rand(slot)
            assert pixels.work(shared, [*item, slot, *view]) is None
        found = np.frombuffer(target.map, np.uint8).reshape(-1, 32, 32, 3).copy()
    assert np.array_equal(found[0], found[3])
    assert np.array_equal(found[2], pixels.pixels(data, WANTED))
    assert not any(np.array_equal(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_view_of_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    """Sky above ground, whatever EXIF says of how the camera was held; mirroring keeps that."""
    levels = np.zeros((60, 60, 3), np.uint8)
    levels[:30] = (80, 120, 250)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(levels)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    for n in range(5):
        view = pixels.viewed(data, WANTED, PixelSettings(), seed=str(n)).astype(int)
        assert view[:4, :, 2].mean() > view[-4:, :, 2].mean() + 100


# --- embeddings ---------------------------------------------------------------------------------


def test_views_are_kept_and_found_again(run: Run, tiny: Tiny) -> None:
    first = made(run, tiny)
    before = kept(run)
    assert len(before) == 2 * VIEWS  # two shards
    assert np.array_equal(made(run, tiny), first)
    assert kept(run) == before
    assert not np.array_equal(first[:, 0], first[:, 1])
    own_ND = tables.vectors(pairs.read(run.out, embedding.reference(tiny.encoder), None))
    own = np.einsum("nd,nvd->nv", own_ND, first)
    other = np.einsum("nd,nvd->nv", np.roll(own_ND, 1, axis=0), first)
    assert own.mean() > other.mean()
    assert not [one for one in verify.verify(run.out).problems if "_training" in str(one)]


def test_a_killed_run_goes_on_with_the_views_that_are_not_there(run: Run, tiny: Tiny) -> None:
    whole = made(run, tiny)
    before = kept(run)
    for path in list(before)[1:3]:
        Path(path).unlink()
    again = made(run, tiny)
    assert np.array_equal(again, whole)
    after = kept(run)
    changed = [path for path in before if after[path] != before[path]]
    assert changed == list(before)[1:3]


class _KilledError(ClipcapError):
    """Raised where a kill would be."""


def test_what_was_written_before_a_kill_stays(run: Run, tiny: Tiny) -> None:
    real = commits.publish

    def publish(url: str, *rest: object, **more: object) -> object:
        if len(kept(run)) == 2:
            raise _KilledError
        return real(url, *rest, **more)  # type: ignore[arg-type]

    with patch.object(commits, "publish", publish), pytest.raises(_KilledError):
        made(run, tiny)
    assert len(kept(run)) == 2
    assert len(made(run, tiny)) == IMAGES


def test_views_of_shards_that_are_no_more_go(run: Run, tiny: Tiny) -> None:
    made(run, tiny, views=1)
    one = Path(next(iter(kept(run))))
    shutil.copy(one, one.with_name("shard-of-another-day.parquet"))
    made(run, tiny, views=1)
    assert str(one) in kept(run)
    assert len(kept(run)) == 2


def test_views_need_the_images(run: Run, tiny: Tiny) -> None:
    folder = storage.local_path(run.out)
    assert folder is not None
    shutil.rmtree(folder / "shards")
    with pytest.raises(StorageError, match="it is not there"):
        made(run, tiny)
    found = pairs.read(run.out, embedding.reference(tiny.encoder), None)
    at = found.schema.get_field_index("shard")
    without = found.set_column(at, "shard", [[None] * IMAGES])
    with pytest.raises(SettingsError, match="the embeddings came without"):
        imageviews.added(without, run, encoder=tiny.encoder, speed=SPEED, views=1)


# --- training -----------------------------------------------------------------------------------


def settings(tiny: Tiny, **changed: object) -> train.TrainSettings:
    loop = LoopSettings(steps=6, batch_size=4, learning_rate=1e-3, validation_share=0.2)
    given = {"start": tiny.captioner.captioner, "prefix_length": 3, "loop": loop}
    return train.TrainSettings.model_validate(given | changed)


def test_training_on_views_is_another_training_and_the_same_again(run: Run, tiny: Tiny) -> None:
    folders = [
        train.train(run, settings=settings(tiny, name=name, views=views), encoder=tiny.encoder)
        for name, views in (("plain", 0), ("one", VIEWS), ("two", VIEWS))
    ]
    plain, one, two = (storage.read(f"{done.folder}/{cards.MAPPER_NAME}") for done in folders)
    assert one == two != plain
    again = settings(tiny, name="plain", views=1)
    assert not train.train(run, settings=again, encoder=tiny.encoder).was_there


@pytest.mark.parametrize("packing", [True, False])
def test_each_step_draws_a_view_and_measures_on_the_image_itself(packing: bool) -> None:
    embedding_NVD = torch.stack([embeddings(8), embeddings(8, seed=7)], 1)
    chosen = LoopSettings(steps=8, batch_size=4, validation_share=0.25, packing=packing)
    read: list[tuple[bool, torch.Tensor]] = []
    real = _Loop._read

    def spy(self: _Loop, row_B: torch.Tensor, *, noisy: bool) -> torch.Tensor:
        found = real(self, row_B, noisy=noisy)
        own_B = torch.isclose(found.float(), embedding_NVD[row_B, 0], atol=1e-2).all(1)
        other_B = torch.isclose(found.float(), embedding_NVD[row_B, 1], atol=1e-2).all(1)
        assert bool((own_B | other_B).all())
        read.append((noisy, own_B))
        return found

    with patch.object(_Loop, "_read", spy):
        learn(embedding_NVD, [["a cat."]] * 8, tiny_captioner(), chosen)
    trained = torch.cat([own_B for noisy, own_B in read if noisy])
    measured = torch.cat([own_B for noisy, own_B in read if not noisy])
    assert 0 < int(trained.sum()) < len(trained)
    assert bool(measured.all())
    assert len(measured)
