"""Changes that no person would notice: each changes what it should, little, and the same way each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.inputs.unnoticeable import IMAGE_CHANGES, TITLE_CHANGES, LabelWords

WORDS = LabelWords.of(["Navy Blue", "Shirts", "Watches", "Men", "Dress", "Sports Shoes"])


def photo(width: int = 60, height: int = 80) -> Image.Image:
    """A striped product with soft edges on white."""
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    shade = 255 * (1 - (0.7 + 0.1 * np.sin(20 * x)) * np.exp(-4 * (x**2 + y**2)))
    return Image.fromarray(np.stack([shade, 0.9 * shade + 20, shade], axis=2).clip(0, 255).astype(np.uint8), "RGB")


@pytest.mark.parametrize("name", IMAGE_CHANGES)
def test_an_image_changes_a_little_and_always_the_same_way(name: str) -> None:
    original, change = photo(), IMAGE_CHANGES[name]
    changed = change(original)
    assert changed.mode == "RGB"
    assert changed.tobytes() == change(original).tobytes()
    assert original.tobytes() == photo().tobytes(), "the image itself is left alone"
    assert changed.tobytes() != original.tobytes()
    as_large = np.asarray(changed.resize(original.size), dtype=np.float64)
    assert np.abs(as_large - np.asarray(original)).mean() < 6  # of 255


def test_images_of_a_pixel_are_changed_too() -> None:
    for change in IMAGE_CHANGES.values():
        assert min(change(Image.new("RGB", (1, 1), (9, 99, 200))).size) >= 1


@pytest.mark.parametrize(
    ("name", "title", "expected"),
    [
        ("letter case", "Men Navy Blue Shirt", "men navy blue shirt"),
        ("letter case", "men navy shirt", "MEN NAVY SHIRT"),
        ("white space", "Men Shirt", " Men  Shirt "),
        ("punctuation", "Puma Men Shirt", "Puma, Men Shirt."),
        ("punctuation", "Puma", "Puma."),
        ("word order", "Puma Men Striped Navy Shirt", "Puma Shirt Striped Navy Men"),
        ("word order", "Puma Striped Shirt", "Puma Striped Shirt"),
        ("singular or plural", "Puma Shirt Navy Blue", "Puma Shirts Navy Blue"),
        ("singular or plural", "Puma Shirts Navy", "Puma Shirt Navy"),
        ("singular or plural", "Puma Dress", "Puma Dress"),
        ("singular or plural", "Puma Navy Blue", "Puma Navy Blue"),
        ("& or and", "Black & White Shirt", "Black and White Shirt"),
        ("& or and", "Black and White Shirt", "Black & White Shirt"),
        ("& or and", "Sandals", "Sandals"),
        ("one typo", "Navy Blue Tee", "Navy Blue Tee"),
    ],
)
def test_a_title_is_changed_where_the_change_applies(name: str, title: str, expected: str) -> None:
    assert TITLE_CHANGES[name](title, WORDS) == expected


@given(st.lists(st.text("abcdefghijkl", min_size=1, max_size=9), min_size=1).map(" ".join))
def test_a_typo_exchanges_two_letters_inside_one_word(title: str) -> None:
    changed = TITLE_CHANGES["one typo"](title, WORDS)
    assert changed == TITLE_CHANGES["one typo"](title, WORDS)
    other = [place for place, (a, b) in enumerate(zip(title, changed, strict=True)) if a != b]
    assert other == [] or (len(other) == 2 and other[1] == other[0] + 1)
    assert all(a[0] == b[0] and a[-1] == b[-1] for a, b in zip(title.split(), changed.split(), strict=True))
