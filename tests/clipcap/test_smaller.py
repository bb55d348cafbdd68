"""Images made smaller on their way into a shard: what is kept, and that all of it agrees."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from clipcap import inspection, layout, photographs, storage, tables
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.images import ImageSettings
from clipcap.inspection import Inspected
from clipcap.layout import Run, Shard
from clipcap.planning import PackSettings
from clipcap.stages import embed, shard
from clipcap.stages.shard import ShardSettings
from tests.models import make_tiny_clip

SIDE_PX = 96


def photograph(size: tuple[int, int] = (640, 480), seed: int = 0) -> Image.Image:
    return photographs.photograph(np.random.default_rng(seed), size)


def saved(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def inspected(data: bytes, side_px: int | None = SIDE_PX) -> Inspected:
    return inspection.inspect(data, ImageSettings(), resize_px=side_px)


def opened(found: Inspected) -> Image.Image:
    assert found.smaller is not None
    return Image.open(io.BytesIO(found.smaller))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_shorter_side_is_as_asked_and_the_manifest_is_about_what_is_kept(form: str) -> None:
    whole = photograph((640, 479))
    found = inspected(saved(whole, form))
    kept = opened(found)
    assert (kept.format, kept.size) == ("JPEG", (128, SIDE_PX))
    assert (found.media_type, found.extension) == ("image/jpeg", "jpg")
    assert (found.width, found.height) == (128, SIDE_PX)
    assert (found.original_width, found.original_height) == (640, 479)
    assert found.content_sha256 == hashlib.sha256(found.smaller or b"").hexdigest()
    best = np.asarray(whole.resize(kept.size, Image.Resampling.BICUBIC), np.float64)
    assert np.abs(np.asarray(kept, np.float64) - best).mean() < 4


def test_one_that_is_small_stays_as_it_is() -> None:
    data = saved(photograph((SIDE_PX, 300)))
    found = inspected(data)
    assert found.smaller is None
    assert found == inspected(data, None)


def test_it_is_turned_and_its_exif_is_told_but_not_kept() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "a camera"
    found = inspected(saved(photograph(), exif=exif))
    assert opened(found).size == (SIDE_PX, 128)
    assert not opened(found).getexif()
    assert (found.original_width, found.original_height) == (640, 480)
    assert "a camera" in (found.exif or "")


def test_a_profile_of_rgb_stays_with_it_and_one_of_cmyk_does_not() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (
        opened(inspected(saved(photograph(), icc_profile=profile))).info["icc_profile"] == profile
    )
    cmyk = saved(photograph().convert("CMYK"), icc_profile=profile)
    assert "icc_profile" not in opened(inspected(cmyk)).info


@pytest.mark.parametrize("kind", ["16 bits", "alpha", "palette with a transparent colour"])
def test_what_a_jpeg_cannot_hold_stays_as_it_is(kind: str) -> None:
    """Sixteen bits once became white."""
    image = photograph((320, 240))
    if kind == "16 bits":
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        data = saved(Image.fromarray(deep), "PNG")
    elif kind == "alpha":
        image.putalpha(128)
        data = saved(image, "PNG")
    else:
        data = saved(image.quantize(32), "PNG", transparency=3)
    assert inspected(data) == inspected(data, None)


def test_one_that_would_need_more_bytes_stays_as_it_is() -> None:
    data = saved(Image.new("RGB", (2_000, 2_000), (3, 60, 200)), "PNG")
    assert inspected(data, 1_999) == inspected(data, None)


def test_it_is_the_same_file_every_time() -> None:
    data = saved(photograph())
    assert inspected(data) == inspected(data)


def test_the_same_picture_keeps_nearly_the_same_hash() -> None:
    data = saved(photograph((1200, 900)))
    hashes = [int(inspected(data, side).phash, 16) for side in (None, SIDE_PX, 400)]
    assert max((hashes[0] ^ other).bit_count() for other in hashes) <= 4


def taken(tmp_path: Path, **chosen: object) -> tuple[Shard, Run]:
    """Take two photographs in, one of them small."""
    folder = tmp_path / "in"
    if not folder.exists():
        folder.mkdir()
        (folder / "large.png").write_bytes(saved(photograph((320, 240)), "PNG"))
        (folder / "small.png").write_bytes(saved(photograph((80, 64)), "PNG"))
    run = Run("r1", storage.canonical(str(tmp_path / "out")), "2026-11-20")
    settings = ShardSettings.model_validate(chosen)
    plan = shard.plan(str(folder), run=run, settings=settings)
    done = [shard.shard(part.shard, run=run, settings=settings) for part in plan.planned]
    return done[0].shard, run


def test_the_tar_holds_the_smaller_one_and_embedding_reads_it(tmp_path: Path) -> None:
    target, run = taken(tmp_path, resize_px=SIDE_PX)
    rows = {
        Path(row["source_uri"]).stem: row
        for row in tables.read(layout.manifest(run.out, target)).to_pylist()
    }
    assert rows["large"]["member"].endswith(".jpg")
    assert rows["small"]["member"].endswith(".png")
    assert (rows["large"]["extra_json"], rows["small"]["extra_json"]) == ('{"resized": true}', None)
    tar = storage.read(layout.tar(run.out, target))
    for row in rows.values():
        data = tar[row["member_offset"] :][: row["member_bytes"]]
        assert hashlib.sha256(data).hexdigest() == row["content_sha256"]
        assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"])
    assert rows["large"]["source_bytes"] == (tmp_path / "in" / "large.png").stat().st_size
    (tmp_path / "clip").mkdir()
    settings = EmbedSettings(model=str(make_tiny_clip(tmp_path / "clip")))
    [done] = embed.embed([target], run=run, settings=settings, speed=Speed(batch_size=2))
    assert (done.rows, done.rejected) == (2, 0)


def test_it_changes_what_comes_and_not_what_is_there(tmp_path: Path) -> None:
    taken(tmp_path)
    run = Run("r2", storage.canonical(str(tmp_path / "out")), "2026-11-21")
    settings = ShardSettings(resize_px=SIDE_PX)
    assert shard.plan(str(tmp_path / "in"), run=run, settings=settings).unchanged == 2


def test_images_cannot_stay_where_they_are_and_be_made_smaller(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose one"):
        taken(tmp_path, resize_px=SIDE_PX, pack=PackSettings(in_place=True))
