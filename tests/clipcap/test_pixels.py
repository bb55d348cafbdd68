"""The pixels that a model looks at: open_clip's own within 2 levels, whatever the file is."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import struct
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torch import Tensor

from clipcap import images, pixels, sharedmemory
from clipcap.errors import ImageError
from clipcap.preprocessing import PixelSettings, Preprocess
from clipcap.sharedmemory import SharedMemory

LEVELS = 2
MADE_FOR: list[dict[str, Any]] = [
    {"size": 224},
    {"size": 32, "interpolation": "bilinear"},
    {"size": 224, "resize_mode": "squash"},
    {"size": 96, "resize_mode": "squash", "interpolation": "bilinear"},
    {"size": (40, 200), "resize_mode": "squash"},
    {"size": 384, "resize_mode": "longest", "fill_color": 128},
    {"size": (100, 200), "resize_mode": "longest", "interpolation": "bilinear", "fill_color": 255},
    {"size": (224, 168)},
    {"size": (60, 90), "interpolation": "bilinear"},
]
CLIP, SQUASH = MADE_FOR[0], MADE_FOR[2]
OPEN_CLIP = PixelSettings()
SCALED, MANAGED = PixelSettings(scaled=True), PixelSettings(colours="managed")

Pixels = NDArray[np.uint8]


def settings_of(made_for: dict[str, Any]) -> Preprocess:
    return Preprocess.of(asdict(PreprocessCfg(**made_for)))


def theirs(data: bytes, made_for: dict[str, Any]) -> NDArray[np.float32]:
    """Return what open_clip makes of a file, upright, before it is normalised."""
    config = PreprocessCfg(mean=(0, 0, 0), std=(1, 1, 1), **made_for)
    opened = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image_CHW: Tensor = image_transform_v2(config, is_train=False)(opened)
    return image_CHW.permute(1, 2, 0).numpy() * 255


def ours(data: bytes, made_for: dict[str, Any], settings: PixelSettings = OPEN_CLIP) -> Pixels:
    return pixels.pixels(data, settings_of(made_for), settings)


def distance(data: bytes, made_for: dict[str, Any]) -> float:
    found, expected = ours(data, made_for), theirs(data, made_for)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


@cache
def picture(width: int = 427, height: int = 301, seed: int = 0) -> Image.Image:
    """Return something with smooth light, hard edges, stripes and noise."""
    rng = np.random.default_rng(seed)
    light = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    levels = np.asarray(light.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int32)
    levels[height // 4 : height // 2, width // 3 :] = (230, 20, 60)
    levels[:, : width // 5] += 200 * (np.arange(height) // 2 % 2)[:, None, None]
    levels += rng.integers(-30, 30, levels.shape)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def noise(width: int, height: int, seed: int) -> Image.Image:
    """Return what shows every difference: each pixel black or white, or any colour."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(np.where(levels > 127, 255, 0).astype(np.uint8) if seed % 2 else levels)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(image: Image.Image, form: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, form, exif=exif, **options)


def with_alpha(image: Image.Image) -> Image.Image:
    found = image.copy()
    found.putalpha(picture(*image.size, seed=1).convert("L"))
    return found


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)


def ycck() -> bytes:
    """Return a CMYK file whose marker says that it holds YCCK, as those of Photoshop do."""
    data = bytearray(saved(picture().convert("CMYK"), "JPEG"))
    at = data.index(b"Adobe")
    data[at + 11] = 2
    return bytes(data)


def odd() -> bytes:
    """Return a file that decoders accept with a warning: bytes that belong to no part."""
    data = saved(picture(), "JPEG")
    at = data.index(b"\xff\xdb")
    return data[:at] + b"\x00\x01\x02" + data[at:]


def frames(form: str) -> bytes:
    return saved(picture(), form, save_all=True, append_images=[picture(seed=2)])


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(picture(), "JPEG", quality=88),
    "jpeg 4:4:4": lambda: saved(picture(), "JPEG", subsampling=0),
    "jpeg 4:2:2": lambda: saved(picture(), "JPEG", subsampling=1),
    "jpeg progressive": lambda: saved(picture(), "JPEG", progressive=True),
    "jpeg of RGB": lambda: saved(picture(), "JPEG", keep_rgb=True),
    "jpeg gray": lambda: saved(picture().convert("L"), "JPEG"),
    "jpeg CMYK": lambda: saved(picture().convert("CMYK"), "JPEG"),
    "jpeg YCCK": ycck,
    "jpeg with bytes between its parts": odd,
    "mpo": lambda: frames("MPO"),
    "png": lambda: saved(picture(), "PNG"),
    "png gray": lambda: saved(picture().convert("L"), "PNG"),
    "png turned": lambda: turned(picture(), "PNG", 6),
    "png 16": lambda: saved(deep(), "PNG"),
    "png palette": lambda: saved(picture().quantize(64), "PNG"),
    "png palette, transparent": lambda: saved(picture().quantize(64), "PNG", transparency=3),
    "png 1": lambda: saved(picture().convert("1"), "PNG"),
    "png LA": lambda: saved(with_alpha(picture().convert("L")), "PNG"),
    "png RGBA": lambda: saved(with_alpha(picture()), "PNG"),
    "png RGB, one colour transparent": lambda: saved(picture(), "PNG", transparency=(9, 9, 9)),
    "png animated": lambda: frames("PNG"),
    "webp": lambda: saved(picture(), "WEBP"),
    "webp lossless": lambda: saved(picture(), "WEBP", lossless=True),
    "webp alpha": lambda: saved(with_alpha(picture()), "WEBP"),
    "webp animated": lambda: frames("WEBP"),
    "webp turned": lambda: turned(picture(), "WEBP", 8),
    "avif": lambda: saved(picture(), "AVIF"),
    "avif alpha": lambda: saved(with_alpha(picture()), "AVIF"),
    "tiff": lambda: saved(picture(), "TIFF"),
    "tiff CMYK": lambda: saved(picture().convert("CMYK"), "TIFF"),
    "tiff 16": lambda: saved(deep(), "TIFF"),
    "tiff float": lambda: saved(deep().convert("F"), "TIFF"),
    "tiff turned": lambda: turned(picture(), "TIFF", 5),
    "bmp": lambda: saved(picture(), "BMP"),
    "bmp palette": lambda: saved(picture().quantize(16), "BMP"),
    "gif": lambda: saved(picture().quantize(64), "GIF"),
    "gif animated": lambda: frames("GIF"),
    "1 x 1": lambda: saved(picture(1, 1), "PNG"),
    "small": lambda: saved(picture(32, 20), "JPEG"),
    "of the model's size": lambda: saved(picture(224, 224), "JPEG"),
    "thin": lambda: saved(picture(3000, 40), "JPEG"),
    "thin upright": lambda: saved(picture(40, 3000), "JPEG"),
    "tall": lambda: saved(noise(200, 900, 1), "PNG"),
} | {
    f"jpeg turned {orientation}": lambda turn=orientation: turned(picture(), "JPEG", turn)
    for orientation in range(10)
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_open_clips_own(name: str) -> None:
    data = FILES[name]()
    far = {str(made_for): distance(data, made_for) for made_for in MADE_FOR}
    assert {found: levels for found, levels in far.items() if levels > LEVELS} == {}


FORMS: dict[str, Callable[[Image.Image, int], bytes]] = {
    "PNG": lambda image, _: saved(image, "PNG"),
    "JPEG": lambda image, _: saved(image, "JPEG", subsampling=0),
    "gray JPEG": lambda image, _: saved(image.convert("L"), "JPEG"),
    "turned JPEG": lambda image, number: turned(image, "JPEG", 2 + number % 7),
    "palette PNG": lambda image, _: saved(image.quantize(8), "PNG"),
}


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_open_clips_own_for_any_shape_and_model(form: str) -> None:
    """Noise in shapes from a point to a line: the passes of a resize in Pillow's own order."""
    rng = np.random.default_rng(len(form))
    for number in range(80):
        width, height = (int(side) for side in np.exp(rng.uniform(0, np.log(600), 2)))
        image = noise(width, height, number)
        data = FORMS[form](image, number)
        sides = [int(side) for side in rng.integers(16, 300, 2)]
        made_for = {
            "size": sides[0] if number % 3 else tuple(sides),
            "resize_mode": ("shortest", "longest", "squash")[number // 3 % 3],
            "interpolation": ("bicubic", "bilinear")[number % 2],
            "fill_color": int(rng.integers(256)),
        }
        if made_for["resize_mode"] == "longest" and max(width, height) > 15 * min(width, height):
            continue  # open_clip has no size for those
        assert distance(data, made_for) <= LEVELS, (width, height, made_for)


@pytest.mark.parametrize("size", [(200, 900), (300, 601), (427, 640), (640, 427), (100, 100)])
def test_the_height_goes_first_where_pillow_does_so(size: tuple[int, int]) -> None:
    """Both orders of the passes differ by many levels where they meet black beside white."""
    for side in (64, 224):
        assert distance(saved(noise(*size, 1), "PNG"), SQUASH | {"size": side}) <= LEVELS


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photograph_is_upright(orientation: int) -> None:
    """One corner is red, and EXIF says which one was up left."""
    image = Image.new("RGB", (96, 64), "white")
    image.paste("red", (0, 0, 48, 32))
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif = Image.Exif()
    exif[0x0112] = back
    stored = Image.open(io.BytesIO(saved(image, "TIFF")))
    stored.getexif()[0x0112] = back
    lying = ImageOps.exif_transpose(stored)
    found = ours(turned(lying, "JPEG", orientation, quality=95), {"size": (64, 96)})
    assert np.abs(found.astype(int) - np.asarray(image)).max(axis=2)[:30, :46].max() < 30
    assert found[34:, 50:].min() > 225


def test_broken_exif_leaves_a_photograph_as_it_lies() -> None:
    whole = saved(picture(), "JPEG")
    spoilt = turned(picture(), "JPEG", 6)
    spoilt = spoilt.replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0XX\0*\0\0\xff\xff")
    assert spoilt.count(b"Exif\0\0XX") == 1
    assert np.array_equal(ours(spoilt, CLIP), ours(whole, CLIP))


def test_exif_that_pillow_fails_on_does_not_matter_either(monkeypatch: pytest.MonkeyPatch) -> None:
    data = turned(picture(), "JPEG", 6)

    def fails(_: Image.Image) -> Image.Exif:
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fails)
    assert np.array_equal(ours(data, CLIP), ours(saved(picture(), "JPEG"), CLIP))


@pytest.mark.parametrize("name", ["jpeg", "jpeg gray", "jpeg turned 6", "jpeg progressive", "mpo"])
def test_photographs_go_the_fast_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens them, and decodes none of them."""

    def fails(_: Image.Image) -> Image.Image:
        pytest.fail("Pillow decoded it.")

    monkeypatch.setattr(images, "upright", fails)
    assert ours(FILES[name](), CLIP).any()


def test_a_line_that_has_no_size_for_open_clip_is_one_pixel_high() -> None:
    """Its own preprocessing fails on a picture that would be scaled to nothing."""
    data = saved(Image.new("RGB", (900, 1), "red"), "PNG")
    with pytest.raises(ValueError, match="must be > 0"):
        theirs(data, {"size": 32, "resize_mode": "longest"})
    found = ours(data, {"size": 32, "resize_mode": "longest", "fill_color": 7})
    is_red = (found == (255, 0, 0)).all(axis=2)
    assert is_red.any(axis=1).sum() == 1
    assert (found[~is_red] == 7).all()


@pytest.mark.parametrize(("width", "height"), [(4000, 40), (40, 4000), (4001, 40)])
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_of_a_very_thin_picture_only_the_middle_is_resized(
    width: int, height: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 x 6,250,000 pixels would become 224 x 175,000,000; the limit is lowered to see it."""
    light = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 9, 3), dtype=np.uint8))
    image = light.resize((width, height), Image.Resampling.BICUBIC)
    data = saved(image if mode == "RGB" else image.quantize(64, dither=Image.Dither.NONE), "PNG")
    whole = ours(data, CLIP).astype(int)
    monkeypatch.setattr(pixels, "_MOST", 2**18)
    resized = []
    kept = pixels._middle

    def seen(high: int, wide: int, wanted: Preprocess) -> tuple[int, int, int, int]:
        left, top, right, bottom = found = kept(high, wide, wanted)
        resized.append(math.prod(wanted.resized(bottom - top, right - left)))
        return found

    monkeypatch.setattr(pixels, "_middle", seen)
    assert np.abs(ours(data, CLIP) - whole).mean() < 1
    assert 224 * 224 < resized[0] < 1.1 * 2**18


class TestScaled:
    """A large JPEG decoded at a fraction of its size."""

    def test_it_is_the_same_picture(self) -> None:
        data = saved(picture(2700, 2000).reduce(2).resize((2700, 2000)), "JPEG")
        whole, scaled = ours(data, CLIP), ours(data, CLIP, SCALED)
        assert not np.array_equal(whole, scaled)
        assert np.abs(whole.astype(int) - scaled).mean() < 1

    @pytest.mark.parametrize(("short", "same"), [(2 * 672 - 2, True), (2 * 672, False)])
    def test_it_begins_where_three_times_the_side_is_left(self, short: int, same: bool) -> None:
        data = saved(noise(short + 100, short, 0), "JPEG")
        assert np.array_equal(ours(data, CLIP), ours(data, CLIP, SCALED)) == same

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_never_below_three_times_what_the_model_sees(
        self, orientation: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And never more than needed, of the eighths from 1/2 down; for any shape, any turn."""
        decoded = []
        decode = simplejpeg.decode_jpeg

        def seen(*given: object, **options: object) -> Pixels:
            found: Pixels = decode(*given, **options)
            decoded.append(found)
            return found

        monkeypatch.setattr(simplejpeg, "decode_jpeg", seen)
        rng, eighths = np.random.default_rng(0), set()
        for number in range(40):
            width, height = (int(side) for side in np.exp(rng.uniform(4, 8, 2)))
            made_for = MADE_FOR[number % len(MADE_FOR)] | {"size": (16, 48) if number % 2 else 32}
            upright = (height, width) if orientation == 1 else (width, height)
            ours(turned(Image.new("L", upright[::-1]), "JPEG", orientation), made_for, SCALED)
            found = decoded.pop().shape[:2]
            found = found if orientation == 1 else found[::-1]
            eighths.add(self.check(found, (height, width), made_for))
        assert eighths >= {1, 2, 4, 8}

    def check(
        self, found: tuple[int, ...], whole: tuple[int, int], made_for: dict[str, Any]
    ) -> int:
        """Return how many eighths were decoded."""
        least = [3 * side for side in settings_of(made_for).resized(*whole)]

        def sides(eighths: int) -> list[int]:
            return [-(-side * eighths // 8) for side in whole]

        enough = [n for n in (1, 2, 3, 4, 8) if np.greater_equal(sides(n), least).all()]
        expected = enough[0] if enough else 8
        assert list(found) == sides(expected), (found, whole, made_for)
        return expected

    @pytest.mark.parametrize("name", ["png", "webp", "jpeg", "jpeg CMYK"])
    def test_other_files_and_small_ones_are_decoded_whole(self, name: str) -> None:
        data = FILES[name]()
        assert np.array_equal(ours(data, CLIP), ours(data, CLIP, SCALED))

    def test_cmyk_too(self) -> None:
        data = saved(picture(2700, 2000).convert("CMYK"), "JPEG")
        whole, scaled = ours(data, CLIP), ours(data, CLIP, SCALED)
        assert np.abs(whole.astype(int) - scaled).mean() < 2


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        ours(data, CLIP)
    return caught.value.reason


class TestRefused:
    """What is no picture says why."""

    @pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "jpeg CMYK", "png", "gif"])
    def test_cut_off(self, name: str) -> None:
        data = FILES[name]()
        assert reason(data[: len(data) // 2]) == "truncated"

    def test_cut_off_at_the_very_end(self) -> None:
        assert reason(FILES["jpeg"]()[:-2]) == "truncated"

    @pytest.mark.parametrize("name", ["webp", "avif", "tiff"])
    def test_cut_off_where_the_decoder_cannot_tell(self, name: str) -> None:
        data = FILES[name]()
        assert reason(data[: len(data) // 2]) in ("truncated", "decode_failed")

    def test_damaged(self) -> None:
        assert reason(b"\xff\xd8\xff\xe0" + bytes(2_000)) == "decode_failed"
        data = bytearray(FILES["png"]())
        data[len(data) // 2] ^= 0xFF
        assert reason(bytes(data)) == "decode_failed"

    def test_no_image(self) -> None:
        assert reason(b"<html>404 Not Found</html>") == "not_an_image"
        assert reason(b"") == "empty_file"
        assert reason(b"8BPS\x00\x01" + bytes(100)) == "unsupported_format"

    def test_more_memory_than_there_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also after decoding."""

        def fails(*_: object, **__: object) -> Tensor:
            raise MemoryError

        monkeypatch.setattr(pixels, "interpolate", fails)
        assert reason(FILES["jpeg"]()) == "oom"


class TestWork:
    """What a worker process does with one image."""

    wanted = settings_of({"size": 32})
    files = (FILES["jpeg"](), FILES["png palette"](), FILES["jpeg turned 6"]())

    serials = itertools.count()

    def shared(self, memory: str, settings: PixelSettings = OPEN_CLIP) -> dict[str, Any]:
        return {
            "memory": memory,
            "serial": str(next(self.serials)),
            "preprocess": asdict(self.wanted),
            "settings": settings.model_dump(),
        }

    def items(self, memory: SharedMemory) -> list[list[Any]]:
        """Lay the files into memory, one after another; each gets the slot of its number."""
        found, at = [], 5
        for slot, data in enumerate(self.files):
            memory.map[at : at + len(data)] = data
            sha256 = hashlib.sha256(data).hexdigest()
            found.append([memory.path, at, len(data), sha256, slot])
            at += len(data)
        return found

    def slots(self, memory: SharedMemory) -> Pixels:
        return np.frombuffer(memory.map, np.uint8).reshape(-1, 32, 32, 3).copy()

    def test_each_image_goes_to_its_slot(self) -> None:
        with SharedMemory(10**6) as source, SharedMemory(4 * 32 * 32 * 3) as target:
            items = self.items(source)
            for item in (items[2], items[0]):
                assert pixels.work(self.shared(target.path), item) is None
            found = self.slots(target)
        assert np.array_equal(found[0], pixels.pixels(self.files[0], self.wanted))
        assert np.array_equal(found[2], pixels.pixels(self.files[2], self.wanted))
        assert not found[[1, 3]].any()

    def test_other_bytes_than_the_manifests_are_not_looked_at(self) -> None:
        with SharedMemory(10**6) as source, SharedMemory(4 * 32 * 32 * 3) as target:
            item = self.items(source)[0]
            source.map[item[1] + 500] ^= 1
            assert pixels.work(self.shared(target.path), item) == pixels.CHANGED
            assert not self.slots(target).any()

    def test_bytes_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "one.tar").write_bytes(b"head" + self.files[1] + b"tail")
        digest = hashlib.sha256(self.files[1]).hexdigest()
        item = [str(tmp_path / "one.tar"), 4, len(self.files[1]), digest, 0]
        with SharedMemory(32 * 32 * 3) as target:
            assert pixels.work(self.shared(target.path), item) is None
            expected = pixels.pixels(self.files[1], self.wanted)
            assert np.array_equal(self.slots(target)[0], expected)

    def test_settings_arrive(self) -> None:
        data = saved(with_alpha(picture()), "PNG")
        with SharedMemory(len(data)) as source, SharedMemory(32 * 32 * 3) as target:
            source.map[:] = data
            item = [source.path, 0, len(data), hashlib.sha256(data).hexdigest(), 0]
            pixels.work(self.shared(target.path, MANAGED), item)
            managed = pixels.pixels(data, self.wanted, MANAGED)
            assert np.array_equal(self.slots(target)[0], managed)
            assert not np.array_equal(managed, pixels.pixels(data, self.wanted))

    def test_memory_at_a_path_that_was_there_before(self, tmp_path: Path) -> None:
        """Handles are numbered anew: the next batch may lie at the path of one that is gone."""
        place = tmp_path / "slots"
        with SharedMemory(10**6) as source:
            item = self.items(source)[0]
            for _ in range(2):
                place.unlink(missing_ok=True)
                place.write_bytes(bytes(32 * 32 * 3))
                assert pixels.work(self.shared(str(place)), item) is None
                assert any(place.read_bytes())

    def test_a_refusal_is_an_image_error(self) -> None:
        with SharedMemory(100) as source, SharedMemory(32 * 32 * 3) as target:
            digest = hashlib.sha256(sharedmemory.part(source.path, 0, 100)).hexdigest()
            with pytest.raises(ImageError) as caught:
                pixels.work(self.shared(target.path), [source.path, 0, 100, digest, 0])
        assert caught.value.reason == "not_an_image"
