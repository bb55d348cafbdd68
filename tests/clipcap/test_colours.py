"""Colours as a viewer that knows profiles shows them: sRGB, 8 bits, on white."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from clipcap import colours, pixels
from clipcap.preprocessing import PixelSettings, Preprocess

MANAGED, OPEN_CLIP = PixelSettings(colours="managed"), PixelSettings()
SIDE = 48
WANTED = Preprocess(SIDE, SIDE, "bicubic", "shortest", 0)

Levels = NDArray[np.uint8]


def ramps() -> Image.Image:
    """Return red to the right, green down, blue across: smooth, so that JPEG keeps it."""
    right, down = np.meshgrid(np.linspace(0, 255, SIDE), np.linspace(0, 255, SIDE))
    return Image.fromarray(np.stack([right, down, (right + down) / 2], axis=-1).astype(np.uint8))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def seen(data: bytes, settings: PixelSettings = MANAGED) -> NDArray[np.int64]:
    return pixels.pixels(data, WANTED, settings).astype(np.int64)


def far(found: NDArray[np.int64], expected: NDArray[np.int64] | Levels) -> int:
    return int(np.abs(found - expected).max())


def profile(space: bytes, tags: dict[bytes, bytes], connected: bytes = b"XYZ ") -> bytes:
    """Return an ICC profile, version 2."""
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += struct.pack(">4sII", name, at, len(value))
        at, body = at + len(padded), body + padded
    head = struct.pack(">I4sI4s4s4s", at, b"none", 0x02400000, b"prtr", space, connected)
    head += bytes(12) + b"acsp" + bytes(28)  # date, signature; flags to intent
    head += struct.pack(">3i", 63190, 65536, 54061)  # D50
    return head.ljust(128, b"\0") + table + body


def swapped() -> bytes:
    """Return sRGB whose red is called blue."""
    found = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return found.replace(b"rXYZ", b"keep").replace(b"bXYZ", b"rXYZ").replace(b"keep", b"bXYZ")


def gray_of_gamma_1_8() -> bytes:
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    return profile(b"GRAY", {b"wtpt": white, b"kTRC": b"curv" + struct.pack(">IIH", 0, 1, 461)})


def black_ink_only() -> bytes:
    """Return a printer that shows black ink, and no other."""
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    lut += bytes(range(256)) * 4
    lut += b"".join(bytes([0 if corner % 2 else 255, 128, 128]) for corner in range(16))
    return profile(b"CMYK", {b"A2B0": lut + bytes(range(256)) * 3}, b"Lab ")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_becomes_srgb(form: str) -> None:
    lossless = {"quality": 95, "subsampling": 0} if form == "JPEG" else {"lossless": True}
    data = saved(ramps(), form, icc_profile=swapped(), **({} if form == "TIFF" else lossless))
    plain = seen(data, OPEN_CLIP)
    assert far(plain, np.asarray(ramps())) <= 8  # the file is what it was made of
    assert far(seen(data), plain[..., ::-1]) <= 3


def test_a_palette_and_transparent_pictures_have_profiles_too() -> None:
    palette = saved(ramps().quantize(250), "PNG", icc_profile=swapped())
    assert far(seen(palette), seen(palette, OPEN_CLIP)[..., ::-1]) <= 3
    clear = ramps()
    clear.putalpha(128)
    found = seen(saved(clear, "PNG", icc_profile=swapped()))
    assert far(found, (np.asarray(ramps())[..., ::-1].astype(int) + 255) // 2) <= 3


def test_a_gray_profile() -> None:
    levels = np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1))
    data = saved(Image.fromarray(levels), "PNG", icc_profile=gray_of_gamma_1_8())
    light = (levels / 255) ** 1.8
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    expected = np.repeat(np.rint(curve * 255)[..., None], 3, axis=-1).astype(np.int64)
    assert far(seen(data), expected) <= 2
    assert far(seen(data, OPEN_CLIP), levels[..., None]) == 0


def test_a_cmyk_profile() -> None:
    inks = np.zeros((SIDE, SIDE, 4), np.uint8)
    inks[..., 0], inks[SIDE // 2 :, :, 3] = 255, 255
    image = Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes())
    for form in ("JPEG", "TIFF"):
        found = seen(saved(image, form, icc_profile=black_ink_only()))
        assert found[: SIDE // 2 - 8].min() > 245
        assert found[SIDE // 2 + 8 :].max() < 10
        plain = seen(saved(image, form))  # without a profile: as open_clip makes it
        assert far(plain, seen(saved(image, form), OPEN_CLIP)) <= 2
        assert plain[2, 2].tolist() == pytest.approx([0, 255, 255], abs=3)


@pytest.mark.parametrize("wrong", [b"no profile", swapped()[:200], gray_of_gamma_1_8()])
def test_a_profile_that_cannot_be_used_is_left_out(wrong: bytes) -> None:
    for form in ("PNG", "JPEG"):
        data = saved(ramps(), form, icc_profile=wrong)
        assert far(seen(data), seen(saved(ramps(), form))) <= 1


def test_a_profile_of_colours_does_not_touch_gray() -> None:
    data = saved(ramps().convert("L"), "PNG", icc_profile=swapped())
    assert far(seen(data), seen(data, OPEN_CLIP)) == 0


def test_without_a_profile_nothing_changes() -> None:
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        data = saved(ramps().quantize(256) if form == "GIF" else ramps(), form)
        assert far(seen(data), seen(data, OPEN_CLIP)) <= 2, form


class TestDeep:
    """More than 8 bits."""

    gray = np.tile(np.arange(SIDE) * 5, (SIDE, 1))

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_16_bits_are_scaled(self, form: str) -> None:
        data = saved(Image.fromarray((self.gray * 257).astype(np.uint16)), form)
        assert far(seen(data), self.gray[..., None]) == 0
        assert seen(data, OPEN_CLIP)[:, 2:].min() == 255  # open_clip clips them to white

    def test_a_dark_picture_of_16_bits_stays_dark(self) -> None:
        data = saved(Image.fromarray((self.gray // 5).astype(np.uint16)), "PNG")
        assert seen(data).max() == 0

    @pytest.mark.parametrize(("top", "kind"), [(1.0, "<f4"), (255, "<f4"), (255, "<i4")])
    def test_numbers_of_any_range(self, top: float, kind: str) -> None:
        data = saved(Image.fromarray((self.gray * (top / 255)).astype(kind)), "TIFF")
        assert far(seen(data), self.gray[..., None]) <= 1

    def test_what_is_no_number_is_black(self) -> None:
        levels = (self.gray / 255).astype(np.float32)
        levels[:, :12] = np.nan
        found = seen(saved(Image.fromarray(levels), "TIFF"))
        assert found[:, :8].max() <= 1
        assert far(found[:, 16:], self.gray[:, 16:, None]) <= 1


class TestTransparent:
    """What cannot be seen is white; open_clip shows what lies below."""

    half = np.tile(np.where(np.arange(SIDE) < SIDE // 2, 0, 255).astype(np.uint8), (SIDE, 1))
    """Left nothing, right everything can be seen."""

    def check(self, data: bytes, colour: tuple[int, int, int]) -> None:
        found = seen(data)
        assert found[:, : SIDE // 2 - 4].min() == 255
        assert far(found[:, SIDE // 2 + 4 :], np.array(colour)) <= 2
        assert far(seen(data, OPEN_CLIP)[:, SIDE // 2 + 4 :], np.array(colour)) <= 2
        assert seen(data, OPEN_CLIP)[:, : SIDE // 2 - 4].min() < 100

    @pytest.mark.parametrize("form", ["PNG", "WEBP"])
    def test_alpha(self, form: str) -> None:
        image = Image.new("RGB", (SIDE, SIDE), (200, 40, 40))
        image.putalpha(Image.fromarray(self.half))
        self.check(
            saved(image, form, **({"lossless": True} if form == "WEBP" else {})), (200, 40, 40)
        )

    def test_gray_with_alpha(self) -> None:
        image = Image.new("L", (SIDE, SIDE), 60)
        image.putalpha(Image.fromarray(self.half))
        self.check(saved(image, "PNG"), (60, 60, 60))

    @pytest.mark.parametrize("form", ["PNG", "GIF"])
    def test_a_colour_of_a_palette(self, form: str) -> None:
        image = Image.fromarray(self.half // 255).convert("P")
        image.putpalette([10, 20, 30, 200, 40, 40])
        self.check(saved(image, form, transparency=0), (200, 40, 40))

    def test_a_colour_of_rgb(self) -> None:
        image = Image.new("RGB", (SIDE, SIDE), (200, 40, 40))
        image.paste((9, 9, 9), (0, 0, SIDE // 2, SIDE))
        self.check(saved(image, "PNG", transparency=(9, 9, 9)), (200, 40, 40))

    def test_half_of_it(self) -> None:
        image = Image.new("RGBA", (SIDE, SIDE), (200, 40, 0, 128))
        assert far(seen(saved(image, "PNG")), np.array([227, 147, 127])) <= 1


def test_every_mode_becomes_rgb_or_gray() -> None:
    for mode in (
        "1",
        "L",
        "LA",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "HSV",
        "I",
        "F",
        "I;16",
    ):
        image = Image.new(mode, (3, 2))
        assert colours.managed(image).mode in ("RGB", "L"), mode
        assert not colours.is_profiled(image)
