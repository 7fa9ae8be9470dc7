"""Colour profiles: the colours that an image has by its profile are the ones that the network sees."""

from __future__ import annotations

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from benchmarks.profiles import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO_RGB,
    SRGB,
    SRGB_CURVE,
    cmyk_profile,
    grey_profile,
)
from model.inputs.decode import decode_image
from model.inputs.profiles import MAX_PROFILE_BYTES, UnreadableProfileError, conversion_to_srgb
from model.situations import ListingWarning

CMYK = cmyk_profile("press")
UNREADABLE = (ListingWarning.PROFILE_UNREADABLE,)

GRADIENT = Image.merge(
    "RGB",
    [Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L")],
).resize((64, 64))


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def as_in(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an sRGB image's values in the space of `profile`."""
    profiles = (ImageCms.createProfile("sRGB"), io.BytesIO(profile))
    source, target = (ImageCms.ImageCmsProfile(each) for each in profiles)
    found = ImageCms.profileToProfile(image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC)
    assert found is not None
    return found


def difference(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference, of 255."""
    return float(np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).mean())


# ── profiles that are applied ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("profile", [DISPLAY_P3, ADOBE_RGB, PROPHOTO_RGB])
def test_a_photo_in_another_space_is_seen_as_the_photo_itself(file_format: str, profile: bytes) -> None:
    options = {} if file_format in ("PNG", "TIFF") else {"quality": 95}
    if file_format == "JPEG":
        options["subsampling"] = 0
    other = as_in(GRADIENT, profile)
    assert difference(other, GRADIENT) > 5
    decoded = decode_image(encoded(other, file_format, icc_profile=profile, **options))
    assert difference(decoded.image, GRADIENT) < 3
    assert decoded.warnings == ()


@pytest.mark.parametrize(
    ("profile", "given", "expected"),
    [
        # Computed with the published matrices, without LittleCMS.
        (DISPLAY_P3, (200, 100, 50), (215, 93, 31)),
        (ADOBE_RGB, (100, 150, 80), (66, 151, 74)),
    ],
)
def test_colours_are_those_of_the_definition(
    profile: bytes, given: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    decoded = decode_image(encoded(Image.new("RGB", (4, 4), given), icc_profile=profile))
    assert np.allclose(np.asarray(decoded.image)[1, 1], expected, atol=2)


@pytest.mark.parametrize("profile", [SRGB, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_an_srgb_profile_changes_nothing_at_all(profile: bytes) -> None:
    assert conversion_to_srgb(profile, "RGB") is None
    large = GRADIENT.resize((1500, 1500))
    with_profile, without = (decode_image(encoded(large, icc_profile=each), (80, 60)).image for each in (profile, None))
    assert with_profile.tobytes() == without.tobytes()


def test_grey_has_the_curve_of_its_profile() -> None:
    linear = grey_profile("linear", (1.0,))
    for mode in ("L", "LA"):
        decoded = decode_image(encoded(Image.new("L", (4, 4), 55).convert(mode), icc_profile=linear))
        assert decoded.warnings == ()
        assert decoded.image.getpixel((1, 1)) == (128, 128, 128)  # sRGB's curve encodes 21.6 % of the light as 128
    deep = Image.fromarray(np.full((4, 4), 55 * 256, dtype=np.uint16))
    assert decode_image(encoded(deep, icc_profile=linear)).image.getpixel((1, 1)) == (128, 128, 128)


def test_a_grey_image_may_have_the_profile_of_the_colours_that_it_was() -> None:
    decoded = decode_image(encoded(Image.new("L", (4, 4), 100), icc_profile=PROPHOTO_RGB))
    assert decoded.warnings == ()
    assert decoded.image.getpixel((1, 1)) == pytest.approx((119, 119, 119), abs=1)


def test_a_palette_is_converted_too() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    decoded = decode_image(encoded(palette, icc_profile=DISPLAY_P3))
    assert np.allclose(np.asarray(decoded.image)[1, 1], (215, 93, 31), atol=2)


def test_transparent_areas_are_white_and_the_rest_is_converted() -> None:
    image = Image.new("RGBA", (8, 4), (200, 100, 50, 255))
    image.paste((200, 100, 50, 0), (4, 0, 8, 4))
    decoded = decode_image(encoded(image, icc_profile=ADOBE_RGB))
    assert decoded.image.getpixel((6, 1)) == (255, 255, 255)
    opaque = decode_image(encoded(image.convert("RGB"), icc_profile=ADOBE_RGB))
    assert decoded.image.getpixel((1, 1)) == opaque.image.getpixel((1, 1)) != (200, 100, 50)


def test_inks_are_seen_as_the_press_prints_them() -> None:
    for ink, strongest in (((0, 255, 255, 0), 0), ((255, 0, 0, 0), 2)):
        image = Image.new("CMYK", (16, 16), ink)
        decoded = decode_image(encoded(image, "JPEG", quality=95, icc_profile=CMYK))
        plain = decode_image(encoded(image, "JPEG", quality=95))
        assert decoded.warnings == plain.warnings == ()
        assert np.asarray(decoded.image)[8, 8].argmax() == strongest
        assert difference(decoded.image, plain.image) > 5
    paper = decode_image(encoded(Image.new("CMYK", (16, 16)), "JPEG", icc_profile=CMYK))
    assert np.asarray(paper.image).min() >= 254


def test_lab_images_are_read_with_and_without_a_profile() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = ImageCms.profileToProfile(GRADIENT, srgb, lab, outputMode="LAB")
    assert image is not None
    for options in ({}, {"icc_profile": lab.tobytes()}):
        decoded = decode_image(encoded(image, "TIFF", **options), (8, 8))
        assert decoded.warnings == ()
        assert difference(decoded.image, GRADIENT) < 4


def test_a_large_image_is_reduced_before_it_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[tuple[int, int]] = []
    apply = ImageCms.ImageCmsTransform.apply

    def recorded(self: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
        converted.append(image.size)
        return apply(self, image)

    conversion_to_srgb(ADOBE_RGB, "RGB")
    monkeypatch.setattr(ImageCms.ImageCmsTransform, "apply", recorded)
    large = as_in(GRADIENT, ADOBE_RGB).resize((1200, 1600))
    for file_format in ("PNG", "JPEG"):
        decoded = decode_image(encoded(large, file_format, icc_profile=ADOBE_RGB), (80, 60))
        plain = GRADIENT.resize((1200, 1600)).resize((60, 80))
        assert difference(decoded.image.resize((60, 80)), plain) < 2
    assert max(max(size) for size in converted) <= 500


def test_conversions_run_side_by_side() -> None:
    data = [
        encoded(as_in(GRADIENT, profile), icc_profile=profile) for profile in (DISPLAY_P3, ADOBE_RGB, PROPHOTO_RGB)
    ] * 20
    with ThreadPoolExecutor(4) as pool:
        for decoded in pool.map(decode_image, data):
            assert difference(decoded.image, GRADIENT) < 3


# ── profiles that are not ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"x"),
        ("RGB", bytes(500)),
        ("RGB", DISPLAY_P3[:200]),
        ("RGB", DISPLAY_P3[:128] + bytes(400)),
        ("RGB", CMYK),
        ("RGB", grey_profile("grey", (2.2,))),
        ("L", CMYK),
        ("RGB", DISPLAY_P3 + bytes(MAX_PROFILE_BYTES)),
    ],
)
def test_what_cannot_be_applied_is_ignored_and_said_so(mode: str, profile: bytes) -> None:
    image = Image.new(mode, (8, 8), 77 if mode == "L" else (200, 100, 50))
    decoded = decode_image(encoded(image, "TIFF", icc_profile=profile))
    assert decoded.warnings == UNREADABLE
    assert decoded.image.tobytes() == image.convert("RGB").tobytes()


def test_inks_with_another_profile_are_read_as_without_one() -> None:
    image = Image.new("CMYK", (16, 16), (200, 30, 60, 10))
    decoded = decode_image(encoded(image, "JPEG", icc_profile=SRGB))
    assert decoded.warnings == UNREADABLE
    assert decoded.image.tobytes() == decode_image(encoded(image, "JPEG")).image.tobytes()


def test_a_profile_that_is_a_program_is_refused_before_it_runs() -> None:
    """A table of 300,000 operations, each of them the same few bytes: LittleCMS would run them for every grid point."""
    elements = 300_000
    matrix = b"matf\0\0\0\0" + struct.pack(">HH", 3, 3) + np.eye(4, 3, dtype=">f4").tobytes()
    at = 16 + 8 * elements
    program = b"mpet\0\0\0\0" + struct.pack(">HHI", 3, 3, elements)
    program += struct.pack(">II", at, len(matrix)) * elements + matrix
    header, start = DISPLAY_P3[:128], 128 + 4 + 12
    profile = header + struct.pack(">I4sII", 1, b"D2B1", start, len(program)) + program
    profile = struct.pack(">I", len(profile)) + profile[4:]
    assert len(profile) < MAX_PROFILE_BYTES
    began = time.thread_time()
    with pytest.raises(UnreadableProfileError, match="chains"):
        conversion_to_srgb(profile, "RGB")
    assert time.thread_time() - began < 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_profile_however_damaged_fails_a_listing(data: st.DataObject) -> None:
    mode, whole = data.draw(st.sampled_from([("RGB", ADOBE_RGB), ("CMYK", CMYK), ("L", grey_profile("g", SRGB_CURVE))]))
    profile = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        profile[data.draw(st.integers(0, len(profile) - 1))] = data.draw(st.integers(0, 255))
    del profile[data.draw(st.integers(1, len(profile))) :]
    image = Image.new(mode, (4, 4))
    decoded = decode_image(encoded(image, "TIFF", icc_profile=bytes(profile)))
    assert decoded.image.mode == "RGB"
    assert decoded.image.size == (4, 4)
    assert decoded.warnings in ((), UNREADABLE)
