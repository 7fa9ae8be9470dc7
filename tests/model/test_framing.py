"""Framing: the product is found wherever it lies on a photo, and no image is too odd to be framed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from model.config import PreprocessConfig
from model.inputs.decode import decode_image
from model.inputs.framing import MARGIN, Box, find_product
from model.inputs.preprocess import ImageTransform

TRANSFORM = ImageTransform(PreprocessConfig(image_size=(80, 60), context_length=8, framing="product"))
WHOLE = ImageTransform(PreprocessConfig(image_size=(80, 60), context_length=8, framing="whole"))

COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400)) | st.sampled_from([(1, 1), (3000, 1), (1, 3000), (2, 2)])


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    """Noise, one colour, or rectangles on a colour; of any size."""
    size, seed = draw(SIZES), draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["noise", "plain", "shapes"]))
    if kind == "noise":
        values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(values)
    image = Image.new("RGB", size, draw(COLOURS))
    pen = ImageDraw.Draw(image)
    for _ in range(draw(st.integers(1, 4)) if kind == "shapes" else 0):
        left, top = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
        right, bottom = draw(st.integers(left, size[0] - 1)), draw(st.integers(top, size[1] - 1))
        pen.rectangle((left, top, right, bottom), draw(COLOURS))
    return image


def product(size: tuple[int, int] = (60, 80)) -> Image.Image:
    """Patches of many colours that fill the image: none of its edges looks like a border."""
    patches = np.random.default_rng(3).integers(0, 200, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)


def on_canvas(
    image: Image.Image, size: tuple[int, int], colour: tuple[int, int, int], at: tuple[int, int]
) -> Image.Image:
    canvas = Image.new("RGB", size, colour)
    canvas.paste(image, at)
    return canvas


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode_image(buffer.getvalue()).image


def difference(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference of what the network sees, of 255."""
    return float(np.abs(TRANSFORM(left).astype(int) - TRANSFORM(right)).mean())


def check_box(box: Box, expected: Box, *, within: float) -> None:
    """Assert that a box is the expected one, in pixels, with the margin."""
    margin = MARGIN * max(expected[2] - expected[0], expected[3] - expected[1])
    wide = (expected[0] - margin, expected[1] - margin, expected[2] + margin, expected[3] + margin)
    assert box == pytest.approx(wide, abs=within)


# ── any image ───────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(images())
def test_the_box_is_inside_the_image_and_never_empty(image: Image.Image) -> None:
    framing = find_product(image)
    left, upper, right, lower = framing.box
    assert 0 <= left < right <= image.width
    assert 0 <= upper < lower <= image.height
    assert all(0 <= channel <= 255 for channel in framing.ground)
    assert TRANSFORM(image, framing).shape == (3, 80, 60)


@settings(deadline=None)
@given(SIZES, COLOURS)
def test_an_image_of_one_colour_is_shown_whole(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    framing = find_product(Image.new("RGB", size, colour))
    assert framing.box == (0.0, 0.0, *map(float, size))
    assert framing.ground == colour


@settings(deadline=None, max_examples=50)
@given(images())
def test_images_are_not_changed(image: Image.Image) -> None:
    before = image.tobytes()
    find_product(image)
    assert image.tobytes() == before


# ── grounds ─────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(255, 255, 255), (225, 225, 225), (0, 0, 0), (139, 94, 60), (30, 60, 200)]),
    st.sampled_from([(150, 170), (300, 170), (150, 400)]),
    st.data(),
)
def test_a_product_on_any_plain_ground_is_found_wherever_it_lies(
    colour: tuple[int, int, int], size: tuple[int, int], data: st.DataObject
) -> None:
    left, top = data.draw(st.integers(10, 80)), data.draw(st.integers(10, 80))
    framing = find_product(on_canvas(product(), size, colour, (left, top)))
    check_box(framing.box, (left, top, left + 60, top + 80), within=2 * max(1.0, max(size) / 160))
    assert framing.ground == colour


@pytest.mark.parametrize("colour", [(255, 255, 255), (215, 215, 215), (0, 0, 0)])
@pytest.mark.parametrize("size", [(100, 100), (142, 100), (120, 160), (80, 200)])
def test_a_padded_photo_looks_like_the_photo(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    photo = on_canvas(product().filter(ImageFilter.GaussianBlur(3)), (70, 90), colour, (5, 5))
    padded = on_canvas(photo, size, colour, ((size[0] - 70) // 2, (size[1] - 90) // 2))
    framed = difference(as_jpeg(padded, 90), as_jpeg(photo, 90))
    assert framed < 8
    assert framed < 0.3 * np.abs(WHOLE(padded).astype(int) - WHOLE(photo)).mean()


def test_a_transparent_ground_is_trimmed_as_a_white_one_is() -> None:
    alone = product().convert("RGBA")
    canvas = Image.new("RGBA", (150, 150), (0, 0, 0, 0))
    canvas.paste(alone, (70, 30))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    white = on_canvas(product(), (150, 150), (255, 255, 255), (70, 30))
    assert difference(decode_image(buffer.getvalue()).image, white) == 0


@pytest.mark.parametrize("bars", [(255, 255, 255), (0, 0, 0), (40, 60, 160)])
def test_bars_beside_a_photo_with_a_ground_of_its_own_are_trimmed_with_it(bars: tuple[int, int, int]) -> None:
    photo = on_canvas(product((30, 40)), (60, 80), (200, 195, 185), (15, 20))
    framing = find_product(on_canvas(photo, (142, 80), bars, (41, 0)))
    check_box(framing.box, (56, 20, 86, 60), within=1)
    assert framing.ground == (200, 195, 185)


def test_a_frame_around_the_photo_is_trimmed() -> None:
    inner = on_canvas(product((60, 80)), (100, 100), (255, 255, 255), (20, 10))
    framed = on_canvas(inner, (108, 108), (0, 0, 0), (4, 4))
    check_box(find_product(framed).box, (24, 14, 84, 94), within=1.5)


def test_a_narrow_product_on_a_wide_canvas_is_found() -> None:
    bottle = on_canvas(Image.new("RGB", (8, 60), (90, 60, 20)), (142, 80), (255, 255, 255), (67, 10))
    check_box(find_product(bottle).box, (67, 10, 75, 70), within=1)


def test_a_speck_is_no_product() -> None:
    dusty = Image.new("RGB", (160, 160), "white")
    dusty.paste((60, 60, 60), (50, 70, 54, 74))
    assert find_product(dusty).box == (0.0, 0.0, 160.0, 160.0)


def test_dust_on_the_ground_does_not_hide_the_product() -> None:
    photo = on_canvas(product(), (160, 160), (255, 255, 255), (50, 40))
    for at in ((5, 5), (150, 20), (20, 150)):
        photo.paste((90, 90, 90), (*at, at[0] + 2, at[1] + 2))
    check_box(find_product(photo).box, (50, 40, 110, 120), within=1)


@pytest.mark.parametrize(("quality", "within"), [(95, 1.1), (60, 8.5), (40, 8.5)])
def test_compression_moves_an_edge_by_no_more_than_a_block_of_eight_pixels(quality: int, within: float) -> None:
    photo = on_canvas(product(), (120, 160), (225, 225, 225), (30, 40))
    clean, compressed = find_product(photo), find_product(as_jpeg(photo, quality))
    assert compressed.box == pytest.approx(clean.box, abs=within)


def test_a_soft_shadow_belongs_to_the_ground_where_it_is_faint_and_to_the_product_where_it_is_not() -> None:
    plain = on_canvas(product(), (160, 160), (255, 255, 255), (50, 30))
    boxes = []
    for strength in (20, 120):
        shadow = Image.new("L", (160, 160), 0)
        ImageDraw.Draw(shadow).ellipse((45, 104, 115, 122), strength)
        dark = Image.composite(Image.new("RGB", plain.size), plain, shadow.filter(ImageFilter.GaussianBlur(2)))
        dark.paste(product(), (50, 30))
        boxes.append(find_product(dark).box)
    assert boxes[0] == pytest.approx(find_product(plain).box, abs=1)
    assert boxes[1][3] > boxes[0][3] + 5
    assert boxes[1][3] <= 125 + MARGIN * 90


def test_a_product_that_fills_the_width_is_not_a_border() -> None:
    """A dark belt from edge to edge on white: only what is above and below it goes."""
    belt = Image.new("RGB", (120, 120), "white")
    belt.paste((60, 40, 30), (0, 40, 120, 80))
    check_box(find_product(belt).box, (3.6, 40, 116.4, 80), within=1)


@pytest.mark.parametrize("colour", [(255, 255, 255), (120, 130, 110)])
def test_what_was_framed_is_left_as_it_is(colour: tuple[int, int, int]) -> None:
    """But for the margin, which is a share of what is framed."""
    photo = on_canvas(product(), (150, 160), colour, (40, 50))
    left, upper, right, lower = find_product(photo).box
    again = photo.crop((round(left), round(upper), round(right), round(lower)))
    assert find_product(again).box == pytest.approx((0, 0, *again.size), abs=1)
    assert find_product(again).ground == colour


def test_size_does_not_matter() -> None:
    photo = on_canvas(product(), (150, 160), (225, 225, 225), (40, 50))
    expected = find_product(photo).box
    for factor in (2, 5, 7.3):
        size = round(150 * factor), round(160 * factor)
        found = find_product(photo.resize(size, Image.Resampling.BICUBIC)).box
        assert [edge / factor for edge in found] == pytest.approx(expected, abs=2)
