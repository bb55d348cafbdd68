"""What is said of an image: format by content, upright pixels, no place, a reason for every no."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, features

from clipcap import images
from clipcap.errors import REASONS, ImageError
from clipcap.images import ImageSettings, Inspected
from tests.pictures import picture

# Pillow warns of what is broken; the project's own filter is replaced by pytest's.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SETTINGS = ImageSettings()
FORMS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", *(["AVIF"] if features.check("avif") else [])]
WITH_EXIF = [form for form in FORMS if form not in ("GIF", "BMP")]
HOSTILE = Path(__file__).parents[3] / "shared" / "data" / "hostile"
HOSTILE_LIMIT_S = 10.0  # for one file; the slowest takes 0.5 s on one core


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def flat(width: int, height: int, colour: tuple[int, int, int] = (10, 200, 30)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def inspected(data: bytes, **chosen: int) -> Inspected:
    return images.inspect(data, ImageSettings.model_validate(chosen))


def refused(data: bytes, **chosen: int) -> str:
    """Return the reason for a no, which decoding must give just as inspecting does."""
    with pytest.raises(ImageError) as caught:
        inspected(data, **chosen)
    with pytest.raises(ImageError) as decoding:
        images.decode(data, ImageSettings.model_validate(chosen))
    assert decoding.value.reason == caught.value.reason
    assert str(caught.value)
    return caught.value.reason


class TestFormats:
    """Bytes decide; there is no name to go by."""

    @pytest.mark.parametrize("form", FORMS)
    def test_each_is_known_by_its_bytes(self, form: str) -> None:
        data = picture(1, form=form, size=(40, 30))
        found = inspected(data)
        assert found.format.pillow == form
        assert found.format.media_type == Image.MIME[form]
        assert (found.width, found.height) == (40, 30)
        assert found.content_sha256 == hashlib.sha256(data).hexdigest()
        assert images.decode(data, SETTINGS).mode == "RGB"

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "F", "YCbCr"])
    def test_every_mode_becomes_rgb_as_pillow_converts_it(self, mode: str) -> None:
        image = Image.open(io.BytesIO(picture(2)))
        source = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image
        data = saved(source.convert(mode), "TIFF" if mode in ("CMYK", "F", "YCbCr") else "PNG")
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert images.decode(data, SETTINGS).tobytes() == expected.tobytes()

    def test_an_animation_is_its_first_frame(self) -> None:
        frames = [flat(16, 16, (n * 100, 0, 0)) for n in range(3)]
        data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert images.decode(data, SETTINGS).getpixel((3, 3)) == (0, 0, 0)

    @pytest.mark.parametrize(
        ("data", "media_type"),
        [
            (b"\0\0\0\x18ftypheic\0\0\0\0", "image/heic"),
            (b"\xff\x0a" + bytes(20), "image/jxl"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
            (b"8BPS\0\x01" + bytes(20), "image/vnd.adobe.photoshop"),
            (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"),
            (b"P6\n1 1\n255\n\0\0\0", "image/x-portable-anymap"),
            (b"qoif" + bytes(20), "image/qoi"),
            (b"%!PS-Adobe-3.0 EPSF-3.0", "application/postscript"),
        ],
    )
    def test_what_is_known_but_not_read_says_so(self, data: bytes, media_type: str) -> None:
        with pytest.raises(ImageError, match=media_type.replace("+", r"\+")) as caught:
            inspected(data)
        assert caught.value.reason == "unsupported_format"


class TestReasons:
    """Each reason that an image can have, on purpose."""

    def test_no_bytes(self) -> None:
        assert refused(b"") == "empty_file"

    @pytest.mark.parametrize(
        "data", [b"hello", b"\0" * 64, b"<html><body>404", b"%PDF-1.7", b"PK\x03\x04", b"\xff\xd8"]
    )
    def test_no_image(self, data: bytes) -> None:
        assert refused(data) == "not_an_image"

    @pytest.mark.parametrize("form", [form for form in FORMS if form != "AVIF"])
    def test_cut_short(self, form: str) -> None:
        """A download that broke off: a head that says all is well, and half of the pixels."""
        data = picture(3, form=form, size=(200, 200))
        assert refused(data[: len(data) // 2]) in ("truncated", "decode_failed")

    @pytest.mark.parametrize("form", ["JPEG", "PNG"])
    def test_the_usual_formats_say_that_they_are_cut(self, form: str) -> None:
        data = picture(3, form=form, size=(200, 200))
        assert refused(data[: len(data) // 2]) == "truncated"

    def test_broken_inside(self) -> None:
        data = bytearray(picture(3, size=(200, 200)))
        at = data.index(b"IDAT") + 4
        data[at : at + 2] = b"\0\0"  # no head of compressed data
        assert refused(bytes(data)) == "decode_failed"

    def test_only_a_head(self) -> None:
        assert refused(b"\x89PNG\r\n\x1a\n") == "decode_failed"

    def test_too_many_pixels_are_not_decoded(self) -> None:
        """A bomb: 10 KB that would need 30 GB; judged by its header alone."""
        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n"
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**7)))):
            data += struct.pack(">I", len(content)) + kind + content
            data += struct.pack(">I", zlib.crc32(kind + content))
        started = time.perf_counter()
        assert refused(data) == "decompression_bomb"
        assert time.perf_counter() - started < 1

    def test_limits_are_settings(self) -> None:
        data = saved(flat(100, 50))
        assert inspected(data, max_pixels=5_000).width == 100
        assert refused(data, max_pixels=4_999) == "decompression_bomb"
        assert refused(data, min_side_px=51) == "too_small"
        assert refused(data, max_bytes=len(data) - 1) == "too_large"
        assert inspected(data, max_bytes=len(data), min_side_px=50).height == 50

    def test_too_small(self) -> None:
        assert refused(saved(flat(100, 7))) == "too_small"
        assert refused(saved(flat(1, 1))) == "too_small"

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
        assert images.phash(self.drawn(name)) == known

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
        assert images.phash(image) == f"{int(bits, 2):016x}"

    def test_a_smaller_copy_is_near_and_another_picture_far(self) -> None:
        image = self.drawn("disc").resize((640, 480))
        small = images.decode(saved(image.resize((200, 150)), "JPEG", quality=60), SETTINGS)
        one, same, other = (images.phash(i) for i in (image, small, self.drawn("noise")))
        assert (int(one, 16) ^ int(same, 16)).bit_count() <= 6
        assert (int(one, 16) ^ int(other, 16)).bit_count() > 16


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


@pytest.mark.skipif(not HOSTILE.is_dir(), reason=f"needs the hostile files in {HOSTILE}")
def test_every_hostile_file_gets_an_image_or_a_reason() -> None:
    """994 odd, broken and malicious files: past crashes, hangs and bombs of many decoders."""
    with (HOSTILE / "manifest.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    accepted, reasons = set(), set()
    for row in rows:
        started = time.perf_counter()
        try:
            found = inspected((HOSTILE / row["file"]).read_bytes())
            accepted.add(row["file"])
            assert min(found.width, found.height) >= SETTINGS.min_side_px
        except ImageError as error:
            reasons.add(error.reason)
        assert time.perf_counter() - started < HOSTILE_LIMIT_S, row["file"]
    assert len(rows) == 994
    assert reasons <= set(REASONS)
    usual = [
        row["file"]
        for row in rows
        if row["verdict"] == "ok" and row["magic"] in ("jpeg", "png", "webp") and row["width"]
        if min(int(row["width"]), int(row["height"])) >= SETTINGS.min_side_px
    ]
    assert set(usual) <= accepted
    assert len(usual) > 250


def test_no_more_decoded_images_are_held_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """16 threads take images in: of 50 megapixels each, they would hold 2.4 GB."""
    monkeypatch.setattr(images, "_decoding", threading.BoundedSemaphore(1))
    held: list[int] = []
    most: list[int] = []
    real = images.phash

    def slow(image: Image.Image) -> str:
        held.append(1)
        most.append(len(held))
        time.sleep(0.02)
        held.pop()
        return real(image)

    monkeypatch.setattr(images, "phash", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(inspected, [saved(flat(20, 20))] * 8))
    assert max(most) == 1
