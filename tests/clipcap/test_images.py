"""What a file is, by its bytes alone: a format, pixels as Pillow makes them, or a reason for no."""

from __future__ import annotations

import io
import struct
import time
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipcap import images
from clipcap.errors import ImageError
from clipcap.images import ImageSettings
from tests.pictures import FORMS, flat, picture, saved

# Pillow warns of what is broken; the project's own filter is replaced by pytest's.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SETTINGS = ImageSettings()


def decoded(data: bytes, **chosen: int) -> Image.Image:
    return images.decode(data, ImageSettings.model_validate(chosen))


def refused(data: bytes, **chosen: int) -> str:
    """Return the reason for a no."""
    with pytest.raises(ImageError) as caught:
        decoded(data, **chosen)
    assert str(caught.value)
    return caught.value.reason


class TestFormats:
    """Bytes decide; there is no name to go by."""

    @pytest.mark.parametrize("form", FORMS)
    def test_each_is_known_by_its_bytes(self, form: str) -> None:
        data = picture(1, form=form, size=(40, 30))
        found = images.sniff(data)
        assert (found.pillow, found.media_type) == (form, Image.MIME[form])
        image = decoded(data)
        assert (image.mode, image.size) == ("RGB", (40, 30))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "F", "YCbCr"])
    def test_every_mode_becomes_rgb_as_pillow_converts_it(self, mode: str) -> None:
        image = Image.open(io.BytesIO(picture(2)))
        source = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image
        data = saved(source.convert(mode), "TIFF" if mode in ("CMYK", "F", "YCbCr") else "PNG")
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert decoded(data).tobytes() == expected.tobytes()

    def test_an_animation_is_its_first_frame(self) -> None:
        frames = [flat(16, 16, (n * 100, 0, 0)) for n in range(3)]
        data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert decoded(data).getpixel((3, 3)) == (0, 0, 0)

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
            decoded(data)
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
        assert decoded(data, max_pixels=5_000).width == 100
        assert refused(data, max_pixels=4_999) == "decompression_bomb"
        assert refused(data, min_side_px=51) == "too_small"
        assert refused(data, max_bytes=len(data) - 1) == "too_large"
        assert decoded(data, max_bytes=len(data), min_side_px=50).height == 50

    def test_too_small(self) -> None:
        assert refused(saved(flat(100, 7))) == "too_small"
        assert refused(saved(flat(1, 1))) == "too_small"

    @given(st.sampled_from(FORMS), st.data())
    def test_any_damage_gives_an_image_or_a_reason(self, form: str, data: st.DataObject) -> None:
        file = bytearray(picture(4, form=form, size=(20, 20)))
        for _ in range(data.draw(st.integers(1, 4))):
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
        with suppress(ImageError):  # whose reason mypy holds to the closed list
            found = decoded(bytes(file[: data.draw(st.integers(0, len(file)))]))
            assert min(found.size) >= SETTINGS.min_side_px

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to allocate memory")])
    def test_memory_that_ends_inside_is_no_fault_of_the_file(self, error: Exception) -> None:
        with pytest.raises(ImageError) as caught, images.reading(saved(flat(20, 20)), SETTINGS):
            raise error
        assert caught.value.reason == ("oom" if isinstance(error, MemoryError) else "decode_failed")


class TestDraft:
    """A JPEG made small as it is decoded, for thumbnails."""

    def test_its_sides_are_no_shorter_than_asked(self) -> None:
        data = saved(Image.effect_noise((640, 480), 60).convert("RGB"), "JPEG")
        image = images.decode(data, SETTINGS, draft_px=100)
        assert image.size == (160, 120)
        assert images.decode(data, SETTINGS, draft_px=1000).size == (640, 480)

    def test_other_formats_stay_as_they_are(self) -> None:
        assert images.decode(saved(flat(640, 480)), SETTINGS, draft_px=100).size == (640, 480)
