"""Bytes to RGB: every accepted format and mode, and everything that is not an image."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from model.inputs.decode import decode_image
from model.inputs.limits import ACCEPTED, sniff
from model.situations import ListingWarning
from service.errors import PayloadTooLarge, UndecodableImage, UnsupportedMediaType
from service.pipeline.admission import Admission, Deadline
from service.pipeline.decode import configure_pillow, decode
from service.pipeline.prepare import ImageLimits, Preparer
from service.schemas import ListingInput
from tests.service.conftest import shared_workers
from tests.service.fake_predictor import FakePredictor, FakePrepared
from tests.service.tally import TALLY

# Pillow warns of metadata that it cannot read: here the files are damaged on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _configured_pillow() -> None:
    configure_pillow()


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP")


def read(data: bytes, *, max_pixels: int = 1_000_000, target: tuple[int, int] = (80, 60)) -> Image.Image:
    image = decode(data, max_pixels=max_pixels, target=target).image
    assert image.mode == "RGB"
    return image


def write(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def scene(width: int = 64, height: int = 48) -> Image.Image:
    """Something with a top and a left: red above, blue below, a white spot in the top left corner."""
    image = Image.new("RGB", (width, height), "blue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width, height // 2), "red")
    draw.ellipse((0, 0, width // 4, height // 4), "white")
    return image


def pixel(image: Image.Image, column: int, row: int) -> tuple[int, ...]:
    value = image.getpixel((column, row))
    assert isinstance(value, tuple)
    return value


def difference(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference, of 255."""
    assert left.size == right.size
    return float(np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).mean())


# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_accepted_format_is_read(file_format: str) -> None:
    data = write(scene(), file_format)
    assert sniff(data) == file_format
    assert difference(read(data), scene()) < 8
    assert file_format.lower() in ACCEPTED.lower()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode)
    assert read(write(grey, "PNG")).getpixel((5, 5)) == (255, 255, 255)


def test_cmyk_jpegs_become_rgb() -> None:
    cyan = Image.new("CMYK", (20, 10), (255, 0, 0, 0))
    red, green, blue = pixel(read(write(cyan, "JPEG", quality=95)), 5, 5)
    assert red < 20
    assert min(green, blue) > 235


def test_16_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (10, 1))
    found = np.asarray(read(write(Image.fromarray(ramp), "PNG")))
    assert np.abs(found[5, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "AVIF"])
def test_transparency_lies_on_white(file_format: str) -> None:
    image = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 10, 10))
    found = read(write(image, file_format, **({"lossless": True} if file_format == "WEBP" else {})))
    assert min(pixel(found, 15, 5)) > 250
    red, _, blue = pixel(found, 4, 5)
    assert red < 30
    assert blue > 240


def test_a_transparent_colour_lies_on_white() -> None:
    black = Image.new("RGB", (20, 10))
    assert read(write(black, "PNG", transparency=(0, 0, 0))).getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (20, 10), 1)
    palette.putpalette([10, 10, 10, 20, 20, 20])
    assert read(write(palette, "PNG", transparency=1)).getpixel((5, 5)) == (255, 255, 255)
    grey = Image.fromarray(np.full((10, 20), 256, dtype=np.uint16))
    assert read(write(grey, "PNG", transparency=256)).getpixel((5, 5)) == (1, 1, 1)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "AVIF", "PNG"])
def test_of_an_animation_the_first_frame_is_read(file_format: str) -> None:
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    found = read(write(first, file_format, save_all=True, append_images=[second]))
    assert pixel(found, 5, 5)[0] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_cameras_orientation_is_undone(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = write(scene(), file_format, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(read(data), expected) == 0


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(range(256))])
def test_a_broken_exif_block_does_not_matter(exif: bytes) -> None:
    assert difference(read(write(scene(), "JPEG", exif=exif)), scene()) < 8


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000), (3, 2000)])
@pytest.mark.parametrize("file_format", FORMATS)
def test_extreme_shapes_are_read(size: tuple[int, int], file_format: str) -> None:
    assert read(write(Image.new("RGB", size, "red"), file_format)).size == size


# ── reduced scale ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_large_jpeg_is_decoded_at_a_scale_the_model_can_still_use() -> None:
    data = write(scene(1600, 1200), "JPEG", quality=90)
    small = read(data, max_pixels=10**7)
    assert small.size == (400, 300)  # one quarter: an eighth would be below 3 × 80


def test_reduced_and_full_decoding_agree_at_the_models_size() -> None:
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((1600, 1200))
    for image in (scene(1600, 1200), noise):
        data = write(image, "JPEG", quality=92)
        full = Image.open(io.BytesIO(data)).convert("RGB")
        found = [each.resize((60, 80), Image.Resampling.BICUBIC) for each in (read(data, max_pixels=10**7), full)]
        assert difference(*found) < 1.0


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP"])
def test_large_images_of_other_formats_are_reduced_after_decoding(file_format: str) -> None:
    data = write(scene(2400, 1800), file_format)
    found = read(data, max_pixels=10**7)
    assert found.size == (343, 258)  # one seventh: 1800 / 7 is still above 3 × 80
    full = Image.open(io.BytesIO(data)).convert("RGB")
    found, full = (image.resize((60, 80), Image.Resampling.BICUBIC) for image in (found, full))
    assert difference(found, full) < 1.5


@pytest.mark.parametrize("size", [(4000, 100), (100, 4000), (119, 159), (60, 80)])
def test_no_side_is_reduced_below_what_the_model_needs(size: tuple[int, int]) -> None:
    assert read(write(Image.new("RGB", size), "JPEG")).size == size


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data", [b"x", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", b"\0\0\0\0ftypisom", b"%PDF", b"II*\0", b"\0" * 99]
)
def test_other_formats_are_not_even_tried(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(UnsupportedMediaType):
        read(data)


def test_formats_that_pillow_could_read_but_are_not_listed_are_refused() -> None:
    for file_format in ("TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PCX"):
        with pytest.raises(UnsupportedMediaType):
            read(write(Image.new("RGB", (16, 16)), file_format))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_undecodable(file_format: str) -> None:
    generator = np.random.default_rng(0)
    data = write(Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)), file_format)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(UndecodableImage):
            read(data[: int(share * len(data))])


def test_an_empty_image_is_undecodable() -> None:
    with pytest.raises(UndecodableImage):
        read(b"")


@pytest.mark.parametrize("file_format", FORMATS)
def test_too_many_pixels_are_refused(file_format: str) -> None:
    data = write(Image.new("RGB", (101, 100)), file_format)
    with pytest.raises(PayloadTooLarge):
        read(data, max_pixels=10_000)
    assert read(data, max_pixels=10_100).size == (101, 100)


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def webp_header(width: int, height: int) -> bytes:
    data = write(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP")
    assert data[12:16] == b"VP8X"
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return data[:24] + canvas + data[30:]


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(write(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_frame(width: int, height: int) -> bytes:
    """A screen of one pixel whose frame claims to be far larger."""
    return b"GIF89a\1\0\1\0\0\0\0" + b",\0\0\0\0" + struct.pack("<HH", width, height) + b"\0" + b"\2\2\x4c\1\0;"


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(write(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


@pytest.mark.parametrize("header", [png_header, webp_header, jpeg_header, gif_frame, bmp_header])
def test_a_header_that_claims_gigapixels_costs_nothing(header: Callable[[int, int], bytes]) -> None:
    side = 16_000 if header is webp_header else 60_000
    began = time.process_time()
    with pytest.raises(PayloadTooLarge):
        read(header(side, side), max_pixels=50_000_000)
    assert time.process_time() - began < 1  # a decoder that had begun would still be allocating


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    data = write(scene(), "JPEG", progressive=True)
    assert data.count(b"\xff\xda") > 5
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    assert read(data[:start] + scan * 3 + data[-2:]).size == scene().size
    with pytest.raises(UndecodableImage):
        read(data[:start] + scan * 1000 + data[-2:])


@pytest.mark.parametrize(
    "data",
    [
        write(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)), "PNG"),
        write(Image.new("RGBA", (9, 9), (1, 2, 3, 4)), "PNG"),
        write(Image.new("CMYK", (9, 9), (9, 99, 30, 0)), "JPEG"),
        write(scene(2400, 1800), "PNG"),
        write(scene(2400, 1800), "JPEG"),
    ],
)
def test_catalogues_are_read_as_requests_are(data: bytes) -> None:
    """A certificate is measured on the pixels of the one, and holds for those of the other."""
    served, measured = read(data, max_pixels=10_000_000), decode_image(data, (80, 60)).image
    assert served.size == measured.size
    assert served.tobytes() == measured.tobytes()


def test_a_profile_that_cannot_be_read_is_warned_of() -> None:
    for profile, expected in ((b"no profile", (ListingWarning.PROFILE_UNREADABLE,)), (None, ())):
        decoded = decode(write(scene(), "PNG", icc_profile=profile), max_pixels=10_000, target=(80, 60))
        assert decoded.warnings == expected
        assert difference(decoded.image, scene()) == 0


async def test_the_warning_comes_with_the_prepared_listing() -> None:
    preparer = Preparer(ImageLimits(max_bytes=100_000, max_pixels=10_000), shared_workers())
    data = write(scene(), "PNG", icc_profile=b"no profile")
    sent, alone = ListingInput.of(id=None, title="Shirt", image=data), ListingInput.of(id=None, title="Shirt")
    unreadable = (ListingWarning.PROFILE_UNREADABLE,)
    room = Admission(
        max_listings=10, max_bytes=1_000_000, expected_seconds=lambda _: 0.0, estimate_age=lambda _: math.inf
    )
    for listing, fetched, expected in ((sent, None, unreadable), (alone, data, unreadable), (alone, None, ())):
        with room.admit(Deadline.of(None, cap_ms=10_000)) as ticket:
            prepared, _ = await preparer.prepare(FakePredictor(), listing, fetched, explain=False, ticket=ticket)
        assert isinstance(prepared, FakePrepared)
        assert prepared.warnings == expected
    preparer.close()


def test_what_lies_behind_a_jpeg_does_not_count() -> None:
    """Phones append a video; 0xff 0xda occurs in it by chance."""
    data = write(scene(), "JPEG", exif=b"Exif\0\0" + b"\xff\xda" * 100)
    assert read(data + b"\xff\xda" * 1000).size == scene().size


def test_a_jpeg_of_endless_segments_is_refused_soon() -> None:
    data = write(scene(), "JPEG")
    with pytest.raises(UndecodableImage, match="segments"):
        read(data[:2] + b"\xff\xfe\0\2" * 100_000 + data[2:])


def test_long_runs_of_fill_bytes_take_no_quadratic_time() -> None:
    data = write(scene(), "JPEG")
    began = time.process_time()
    with pytest.raises(UndecodableImage):
        read(data[:2] + (b"\xff" * 400_000 + b"\0") * 2)
    assert time.process_time() - began < 5


def test_heic_is_told_from_avif() -> None:
    avif = write(scene(), "AVIF")
    size = int.from_bytes(avif[:4])
    generic = avif[:8] + b"mif1" + avif[12:]
    assert b"avif" in generic[16:size]
    assert read(generic).size == scene().size
    with pytest.raises(UnsupportedMediaType):
        read(generic[:16] + generic[16:size].replace(b"avif", b"heic") + generic[size:])


def test_many_small_blocks_do_not_take_quadratic_time() -> None:
    gif = write(scene(), "GIF")
    comment = b"!\xfe" + b"\xff" + b"c" * 255 + b"\0"
    at = gif.index(b",")
    assert read(gif[:at] + comment * 20_000 + gif[at:]).size == scene().size
    png = write(scene(), "PNG")
    chunk = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    at = png.index(b"IDAT") - 4
    assert read(png[:at] + chunk * 50_000 + png[at:]).size == scene().size


# ── whatever comes ───────────────────────────────────────────────────────────────────────────────────────────────

SAMPLES = [write(scene(16, 12), file_format) for file_format in FORMATS] + [
    write(scene(16, 12), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    write(Image.new("RGBA", (9, 9), (1, 2, 3, 4)), "PNG"),
    write(Image.new("RGBA", (9, 9), (1, 2, 3, 4)), "WEBP"),
    write(Image.new("P", (9, 9), 3), "GIF", save_all=True, append_images=[Image.new("P", (9, 9), 5)]),
    write(Image.new("CMYK", (9, 9)), "JPEG"),
    write(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)), "PNG"),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file with bytes changed, removed, repeated or added."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "repeat", "insert"]))
        if kind == "change" and data:
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "repeat":
            data[at:at] = data[at : at + 20] * draw(st.integers(1, 5))
        else:
            data[at:at] = draw(st.binary(max_size=12))
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data: bytes) -> None:
    check_outcome(data)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x40\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif", b"BM", b""]
    ),
    st.binary(max_size=300),
)
def test_any_bytes_are_read_or_refused_and_nothing_else(head: bytes, tail: bytes) -> None:
    check_outcome(head + tail)


def check_outcome(data: bytes) -> None:
    """Assert that the bytes are an image, or refused by one of the errors that a caller may see."""
    TALLY["fuzz: images decoded or refused"] += 1
    with contextlib.suppress(UnsupportedMediaType, UndecodableImage, PayloadTooLarge):
        assert read(data, max_pixels=100_000).width > 0


def test_a_file_that_was_cut_off_is_told() -> None:
    whole = write(scene(), "JPEG")
    assert read(whole[:-2]).tobytes() == read(whole).tobytes()  # without its end marker alone
    with pytest.raises(UndecodableImage, match="damaged JPEG file: it ends too early"):
        read(whole[:-60])
