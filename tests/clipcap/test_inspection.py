"""What a manifest says of an image: upright size, digest, hash, flags; no place, no broken file."""

from __future__ import annotations

import hashlib
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, TiffImagePlugin

from clipcap import images, inspection
from clipcap.errors import ImageError
from clipcap.images import ImageSettings
from clipcap.inspection import Inspected
from clipcap.sharedmemory import SharedMemory
from tests.pictures import FORMS, flat, picture, saved

# Pillow warns of what is broken; the project's own filter is replaced by pytest's.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SETTINGS = ImageSettings()
WITH_EXIF = [form for form in FORMS if form not in ("GIF", "BMP")]


def inspected(data: bytes, **chosen: int) -> Inspected:
    return inspection.inspect(data, ImageSettings.model_validate(chosen))


def reason(data: bytes, *, whole: bool = False) -> str:
    """Return why a file cannot be used, "" if it can; `whole` is by decoding every pixel."""
    try:
        if whole:
            images.decode(data, SETTINGS)
        else:
            inspected(data)
    except ImageError as error:
        return error.reason
    return ""


def photograph(width: int = 640, height: int = 480, seed: int = 3) -> Image.Image:
    """Return a picture whose detail falls with its frequency, as that of photographs does."""
    draw = np.random.default_rng(seed)
    found = np.full((height, width, 3), 60.0)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        noise = draw.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        large = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        found += np.asarray(large, float) / cells
    return Image.fromarray(found.clip(0, 255).astype(np.uint8))


class TestPictures:
    """Each format, and every byte of it."""

    @pytest.mark.parametrize("form", FORMS)
    def test_each_is_said_to_be_what_it_is(self, form: str) -> None:
        data = picture(1, form=form, size=(40, 30))
        found = inspected(data)
        assert (found.media_type, found.extension) == (
            Image.MIME[form],
            {"JPEG": "jpg", "TIFF": "tif"}.get(form, form.lower()),
        )
        assert (found.width, found.height) == (found.original_width, found.original_height)
        assert (found.width, found.height) == (40, 30)
        assert found.content_sha256 == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize("form", FORMS)
    def test_another_process_says_the_same(self, form: str) -> None:
        data = saved(flat(48, 32), form, **({"exif": located()} if form in WITH_EXIF else {}))
        with SharedMemory(0) as memory:
            [_, place] = memory.refilled([b"before", data])
            shared = {"settings": SETTINGS.model_dump()}
            answer = json.loads(json.dumps(inspection.work(shared, list(place))))
        assert inspection.received(answer) == inspected(data)
        assert asdict(inspected(data)).keys() == answer.keys()

    @pytest.mark.parametrize(
        "how",
        [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"mode": "L"}, {"mode": "CMYK"}],
    )
    def test_a_jpeg_made_small_is_judged_like_a_whole_one(self, how: dict[str, Any]) -> None:
        """Cut anywhere, or overwritten: what is found broken is the same."""
        mode = how.get("mode", "RGB")
        given = {name: value for name, value in how.items() if name != "mode"}
        data = saved(photograph().convert(mode), "JPEG", quality=80, **given)
        assert reason(data) == ""
        for at in range(2, len(data) - 2, len(data) // 150):
            assert reason(data[:at]) == reason(data[:at], whole=True) != ""
            broken = data[:at] + b"\xff\xd9" + data[at + 2 :]
            assert reason(broken) == reason(broken, whole=True)

    def test_a_lossless_jpeg_is_read(self) -> None:
        """A square of 512 times the first prediction; libjpeg makes no small one of it."""
        table = b"\xff\xc4\0\x14\0\1" + bytes(15) + b"\0"
        frame = b"\xff\xc3\0\x0b\x08\2\0\2\0\1\1\x11\0"
        scan = b"\xff\xda\0\x08\1\1\0\1\0\0" + bytes(2**15)
        found = inspected(b"\xff\xd8" + table + frame + scan + b"\xff\xd9")
        assert (found.width, found.height, found.phash) == (512, 512, "8000000000000000")

    def test_a_jpeg_that_lacks_its_last_rows_is_truncated(self) -> None:
        data = saved(photograph(2000, 1500), "JPEG", quality=80)
        assert reason(data[: len(data) * 99 // 100]) == "truncated"

    def test_limits_are_settings(self) -> None:
        data = saved(flat(100, 50))
        assert inspected(data, max_pixels=5_000).width == 100
        for chosen, expected in (
            ({"max_pixels": 4_999}, "decompression_bomb"),
            ({"min_side_px": 51}, "too_small"),
            ({"max_bytes": len(data) - 1}, "too_large"),
        ):
            with pytest.raises(ImageError) as caught:
                inspected(data, **chosen)
            assert caught.value.reason == expected

    @given(st.sampled_from(FORMS), st.data())
    def test_any_damage_gives_an_image_or_a_reason(self, form: str, data: st.DataObject) -> None:
        file = bytearray(picture(4, form=form, size=(20, 20)))
        for _ in range(data.draw(st.integers(1, 4))):
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
        with suppress(ImageError):  # whose reason mypy holds to the closed list
            found = inspected(bytes(file[: data.draw(st.integers(0, len(file)))]))
            assert min(found.width, found.height) >= SETTINGS.min_side_px


def exif_of(**tags: int | str) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[getattr(ExifTags.Base, name)] = value
    return exif


def located() -> Image.Exif:
    """Return what a telephone writes: camera, time, place."""
    exif = exif_of(Make="Kamera", Model="Zwei\0", DateTime="2024:05:06 07:08:09")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:01:02 03:04:05"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"secret 12.345"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif


class TestExif:
    """What the camera wrote: turned by it, kept, and cleared of the place."""

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_picture_stands_upright(self, orientation: int, form: str) -> None:
        upright = flat(48, 32)
        upright.paste((250, 0, 0), (0, 0, 24, 16))  # red at the upper left
        back = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]  # how it lay on the sensor
        lying = upright if back is None else upright.transpose(Image.Transpose(back))
        quality = {"quality": 95} if form in ("JPEG", "WEBP") else {}
        data = saved(lying, form, exif=exif_of(Orientation=orientation), **quality)
        found, image = inspected(data), images.decode(data, SETTINGS)
        assert (found.width, found.height) == image.size == (48, 32)
        assert (found.original_width, found.original_height) == lying.size
        differs = np.abs(np.asarray(image, float) - np.asarray(upright, float)).mean()
        assert differs < 12, "the edges of a JPEG may be soft"

    @pytest.mark.parametrize("form", WITH_EXIF)
    def test_the_place_is_dropped_unless_it_is_asked_for(self, form: str) -> None:
        data = saved(flat(32, 32), form, exif=located().tobytes())
        text = inspected(data).exif
        assert text is not None
        assert json.loads(text)["Make"] == "Kamera"
        assert "GPS" not in text
        assert "52" not in text
        assert "secret" not in text
        kept = json.loads(inspected(data, keep_gps=True).exif or "")
        assert kept["GPSLatitude"] == "52.0 31.0 12.0"
        assert kept["GPSLatitudeRef"] == "N"

    @pytest.mark.parametrize("form", WITH_EXIF)
    def test_text_and_numbers_are_kept(self, form: str) -> None:
        found = inspected(saved(flat(32, 32), form, exif=located().tobytes()))
        values = json.loads(found.exif or "")
        assert (values["Model"], values["ISOSpeedRatings"]) == ("Zwei", 400)
        assert found.taken_at == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)

    def test_without_any_there_is_none(self) -> None:
        found = inspected(saved(flat(32, 32)))
        assert (found.exif, found.taken_at) == (None, None)

    @pytest.mark.parametrize(
        "text", ["", "0000:00:00 00:00:00", "yesterday", "2024:13:01 00:00:00"]
    )
    def test_a_time_that_is_none_is_none(self, text: str) -> None:
        assert inspected(saved(flat(32, 32), exif=exif_of(DateTime=text))).taken_at is None

    def test_no_more_is_kept_than_cameras_write(self) -> None:
        """65,535 entries may point to the same text: thirteen megabytes for one row."""
        exif = Image.Exif()
        for tag in range(60_000, 62_000):
            exif[tag] = "x" * 300
        values = json.loads(inspected(saved(flat(32, 32), "PNG", exif=exif)).exif or "")
        assert len(values) == 256
        assert set(map(len, values.values())) == {200}

    def test_a_long_row_of_numbers_is_cut(self) -> None:
        entries = TiffImagePlugin.ImageFileDirectory_v2()
        entries[50_000] = tuple(range(50_000))
        entries.tagtype[50_000] = 4
        data = saved(flat(32, 32), "TIFF", tiffinfo=entries)
        [text] = [v for v in json.loads(inspected(data).exif or "").values() if "0 1 2" in str(v)]
        assert len(text) == 200

    def test_broken_exif_does_not_cost_the_picture(self) -> None:
        data = saved(flat(32, 32), "JPEG", exif=exif_of(Orientation=6, Make="x" * 50))
        for at in range(data.index(b"Exif\0\0") + 6, data.index(b"xxxx"), 3):
            broken = data[:at] + b"\xff\xfe" + data[at + 2 :]
            assert inspected(broken).width == 32


class TestPerceptualHash:
    """The usual 64 bits, so that hashes of other tools can be compared with ours."""

    # By imagehash 4.3.2 (`str(imagehash.phash(image))`) from the pictures of `drawn`.
    KNOWN = (
        ("ramp", "aa11e4566217f65b"),
        ("stripes", "8000000000000000"),
        ("check", "8000000000000055"),
        ("noise", "e250a0eded8d8c97"),
        ("flat", "8000000000000000"),
        ("black", "0000000000000000"),
        ("white", "8000000000000000"),
        ("disc", "c6393bc03f473839"),
    )

    @staticmethod
    def drawn(name: str) -> Image.Image:
        y, x = np.mgrid[0:48, 0:64]
        drawings = {
            "ramp": np.stack([x * 4, y * 5, (x + y) * 2], -1),
            "stripes": np.repeat(((x // 8) % 2 * 255)[..., None], 3, -1),
            "check": np.repeat((((x // 8) + (y // 8)) % 2 * 255)[..., None], 3, -1),
            "noise": np.random.RandomState(7).randint(0, 256, (48, 64, 3)),
            "flat": np.full((48, 64, 3), (200, 30, 60)),
            "black": np.zeros((48, 64, 3)),
            "white": np.full((48, 64, 3), 255),
            "disc": np.stack([((x - 20) ** 2 + (y - 30) ** 2 < 150) * 250, y * 3, x * 2], -1),
        }
        return Image.fromarray(drawings[name].astype(np.uint8))

    @pytest.mark.parametrize(("name", "known"), KNOWN)
    def test_it_is_that_of_imagehash(self, name: str, known: str) -> None:
        """Flat pictures once got noise of 1e-13 for a hash, and so no twins."""
        assert inspection.phash(self.drawn(name)) == known

    def test_it_is_the_sign_of_64_cosine_sums_against_their_median(self) -> None:
        """The definition, by the exact sums of `math.fsum`."""
        image = Image.open(io.BytesIO(picture(5)))
        small = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
        pixels = np.asarray(small, float)
        wave = [[math.cos(math.pi * k * (2 * n + 1) / 64) for n in range(32)] for k in range(8)]
        low = [
            math.fsum(pixels[y, x] * wave[v][y] * wave[u][x] for y in range(32) for x in range(32))
            for v in range(8)
            for u in range(8)
        ]
        middle = sum(sorted(low)[31:33]) / 2
        bits = "".join("1" if value > middle else "0" for value in low)
        assert inspection.phash(image) == f"{int(bits, 2):016x}"

    def test_a_smaller_copy_is_near_and_another_picture_far(self) -> None:
        image = self.drawn("disc").resize((640, 480))
        small = images.decode(saved(image.resize((200, 150)), "JPEG", quality=60), SETTINGS)
        one, same, other = (inspection.phash(i) for i in (image, small, self.drawn("noise")))
        assert (int(one, 16) ^ int(same, 16)).bit_count() <= 6
        assert (int(one, 16) ^ int(other, 16)).bit_count() > 16

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_a_jpeg_made_small_has_the_hash_of_the_whole_one(
        self, mode: str, orientation: int
    ) -> None:
        """Twins are found at three bits. Sides that eight does not divide once cost four, or 22."""
        exif = exif_of(Orientation=orientation)
        differing = []
        for size, seed in product(((640, 480), (521, 529), (601, 537)), range(4)):
            image = photograph(*size, seed).convert(mode)
            data = saved(image, "JPEG", quality=90, exif=exif)
            whole = inspection.phash(images.decode(data, SETTINGS))
            differing.append((int(inspected(data).phash, 16) ^ int(whole, 16)).bit_count())
        assert max(differing) <= 4  # of one picture in a hundred
        assert np.mean(differing) <= 1


class TestFlags:
    """What to look at twice."""

    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (flat(64, 64, (5, 5, 9)), {"dark", "low_information"}),
            (flat(64, 64, (255, 255, 240)), {"light", "low_information"}),
            (Image.effect_noise((64, 64), 80), {"grayscale"}),
            (Image.open(io.BytesIO(picture(6, size=(300, 40)))), {"odd_aspect_ratio"}),
            (Image.open(io.BytesIO(picture(6, size=(64, 64)))), set()),
        ],
    )
    def test_it_is_said(self, image: Image.Image, expected: set[str]) -> None:
        assert expected <= set(inspected(saved(image)).flags) <= expected | {"grayscale"}


def test_the_same_bytes_are_judged_the_same_by_many_threads() -> None:
    files = [picture(number, form=form) for number in range(8) for form in FORMS]
    alone = [inspected(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(inspected, files)) == alone


@pytest.mark.parametrize("form", FORMS)
def test_damage_inside_is_seen_as_decoding_every_pixel_sees_it(form: str) -> None:
    """Pillow loads a PNG to read its EXIF, where an error of its pixels was once lost."""
    whole = saved(photograph(96, 72), form)
    draw = np.random.default_rng(5)
    seen = set()
    for _ in range(25):
        damaged = bytearray(whole)
        for at in draw.integers(len(whole) // 3, len(whole), 6):
            damaged[at] ^= int(draw.integers(1, 256))
        found = reason(bytes(damaged), whole=True)
        assert reason(bytes(damaged)) == found
        seen.add(found)
    assert form not in ("PNG", "WEBP") or "decode_failed" in seen


@pytest.mark.parametrize("form", FORMS)
def test_a_smaller_one_is_never_made_of_a_broken_one(form: str) -> None:
    whole = saved(photograph(200, 160), form)
    damaged = whole[: len(whole) // 2]
    with pytest.raises(ImageError):
        inspection.inspect(damaged, SETTINGS, resize_px=64)


def test_a_palette_that_is_not_there_is_a_reject_or_a_picture() -> None:
    """Pillow's own question whether a picture is transparent fails on some of them."""
    whole = saved(photograph(64, 48).quantize(16), "PNG")
    for at in range(len(whole)):
        broken = whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]
        assert reason(broken) in ("", "decode_failed", "truncated", "not_an_image", "too_small",
                                  "decompression_bomb")  # fmt: skip
    without = whole.replace(b"PLTE", b"pLTE")
    assert reason(without) in ("", "decode_failed")
