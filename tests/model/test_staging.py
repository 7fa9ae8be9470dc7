"""Other grounds, shapes and lights: the product stays, everything around it changes, and the generator decides how."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.inputs import staging

SHIRT = (150, 20, 90)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A dark product in the middle of white, with a white hole that no edge is connected with."""
    image = Image.new("RGB", (60, 80), "white")
    image.paste(SHIRT, (15, 20, 45, 60))
    image.paste((255, 255, 255), (25, 35, 35, 45))
    return image


def restaged(photo: Image.Image, number: int) -> list[Image.Image]:
    return [staging.restage(photo, random.Random(seed)) for seed in range(number)]


@pytest.mark.parametrize("change", [staging.restage, staging.relight, staging.squash])
def test_the_generator_decides_and_the_image_is_left_alone(
    change: Callable[[Image.Image, random.Random], Image.Image], photo: Image.Image
) -> None:
    before = photo.tobytes()
    first, again = change(photo, random.Random(1)), change(photo, random.Random(1))
    assert first.mode == "RGB"
    assert (first.size, first.tobytes()) == (again.size, again.tobytes())
    other = change(photo, random.Random(2))
    assert (first.size, first.tobytes()) != (other.size, other.tobytes())
    assert photo.tobytes() == before


def test_canvases_hold_the_photo_and_have_the_shapes_that_shops_ask_for(photo: Image.Image) -> None:
    sizes = [each.size for each in restaged(photo, 200)]
    assert all(width >= 60 and height >= 80 for width, height in sizes)
    assert 0.3 < sum(size == (60, 80) for size in sizes) / len(sizes) < 0.7  # its own shape is one of them
    shapes = [across / down for across, down in staging.SHAPES]
    for width, height in sizes:
        assert min(abs(width / height / shape - 1) for shape in shapes) < 0.03
    assert max(width for width, _ in sizes) <= 1.5 * 80 * 16 / 9 + 1


def test_the_product_stays_and_its_ground_goes(photo: Image.Image) -> None:
    changed = 0
    for image in restaged(photo, 60):
        pixels = np.asarray(image).astype(int)
        same = (np.abs(pixels - np.array(SHIRT)) <= 3).all(axis=2)
        assert same.sum() >= 0.8 * 1100  # of 30 × 40 pixels without the hole; edges are soft
        changed += bool(np.abs(pixels[0, 0] - 255).max() > 20)
    assert changed > 30


def test_light_parts_inside_the_product_are_no_ground(photo: Image.Image) -> None:
    kept = 0
    for image in restaged(photo, 60):
        pixels = np.asarray(image).astype(int)
        white = pixels.min(axis=2) >= 250
        shirt = (np.abs(pixels - np.array(SHIRT)) <= 3).all(axis=2)
        rows, columns = np.nonzero(shirt)
        inside = white[int(rows.min()) : int(rows.max()), int(columns.min()) : int(columns.max())]
        kept += bool(inside.sum() >= 50)
    assert kept == 60


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(staging.GROUNDS), st.integers(1, 200), st.integers(1, 200), st.integers())
def test_grounds_have_the_size_asked_for(
    ground: Callable[[tuple[int, int], random.Random], staging.Floats], width: int, height: int, seed: int
) -> None:
    values = ground((width, height), random.Random(seed))
    assert values.shape == (height, width, 3)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_plain_grounds_have_one_colour_and_textures_more() -> None:
    for seed in range(20):
        for plain in (staging.grey, staging.plain):
            assert np.ptp(plain((40, 30), random.Random(seed)), axis=(0, 1)).max() == 0
        assert staging.texture((40, 30), random.Random(seed)).std() > 0


def test_squashing_changes_the_width_alone(photo: Image.Image) -> None:
    sizes = [staging.squash(photo, random.Random(seed)).size for seed in range(100)]
    assert {height for _, height in sizes} == {80}
    widths = [width for width, _ in sizes]
    assert 42 <= min(widths) < 50
    assert 75 < max(widths) <= 87


def test_another_light_keeps_the_order_of_tones() -> None:
    ramp = Image.linear_gradient("L").convert("RGB")
    for seed in range(30):
        relit = np.asarray(staging.relight(ramp, random.Random(seed))).astype(int)
        assert (np.diff(relit[:, 0, :], axis=0) >= 0).all()
        assert relit.max() <= 255
        assert relit[0].max() == 0
        assert relit[-1].min() >= 0.85 * 0.85 * 255 - 1
