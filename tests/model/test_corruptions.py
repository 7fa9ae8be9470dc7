"""Corruptions follow their severity and leave their input as it was; training draws what it always drew."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model.inputs import augment
from model.inputs.corruptions import add_noise, blur, compress, cover, stem, without_label_words

LABELS = ("Men", "Apparel", "Tshirts", "Navy Blue")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 20, 16), dtype=np.uint8)
IMAGE = Image.fromarray(np.ascontiguousarray(PIXELS.transpose(1, 2, 0)))


def distance(image: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(IMAGE, float)).mean())


@pytest.mark.parametrize(("corrupt", "severities"), [(compress, (95, 30, 5)), (blur, (0.3, 1, 3))])
def test_more_severe_corruptions_change_more(
    corrupt: Callable[[Image.Image, int], Image.Image], severities: tuple[int, ...]
) -> None:
    before = IMAGE.tobytes()
    distances = [distance(corrupt(IMAGE, severity)) for severity in severities]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert IMAGE.tobytes() == before
    assert all(
        (corrupt(IMAGE, severity).size, corrupt(IMAGE, severity).mode) == ((16, 20), "RGB") for severity in severities
    )


def test_noise_has_the_deviation_asked_for_in_any_shape() -> None:
    grey = np.full((50, 60, 3), 128, dtype=np.uint8)
    noisy = add_noise(grey, 20, seed=1)
    assert noisy.dtype == np.uint8
    assert noisy.astype(float).std() == pytest.approx(20, rel=0.05)
    assert noisy.mean() == pytest.approx(127.5, abs=1)
    assert (noisy.ravel() == add_noise(grey.ravel(), 20, seed=1)).all()
    assert (noisy != add_noise(grey, 20, seed=2)).any()


def test_a_rectangle_is_covered_and_nothing_else() -> None:
    before = IMAGE.tobytes()
    covered = np.asarray(cover(IMAGE, (3, 5), (4, 7), (1, 2, 3)))
    assert (covered[5:12, 3:7] == (1, 2, 3)).all()
    outside = np.ones((20, 16), dtype=bool)
    outside[5:12, 3:7] = False
    assert (covered[outside] == np.asarray(IMAGE)[outside]).all()
    assert IMAGE.tobytes() == before


def test_the_words_that_name_a_label_are_left_out_in_every_spelling() -> None:
    assert without_label_words("Puma Men's T-Shirt navy Fitted", LABELS) == "Puma Fitted"
    assert without_label_words("Puma Mens Tshirt NAVY blue", LABELS) == "Puma"
    assert without_label_words("Mentor Bluetooth", LABELS) == "Mentor Bluetooth"
    assert without_label_words("Men", LABELS) == ""


@pytest.mark.parametrize(
    ("word", "stemmed"), [("T-Shirts", "tshirt"), ("Dress", "dress"), ("Watches", "watche"), ("bra", "bra"), ("!", "")]
)
def test_stems(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed


# --- what training draws, as it was when the shipped checkpoint was trained --------------------------------


@pytest.mark.parametrize(
    ("corrupt", "expected"),
    [
        (augment.add_noise, (2006705757, 3399707127, 3125952608)),
        (augment.occlude, (2576995183, 2619185126, 2740632039)),
        (augment.blank, (451822758, 3880279553, 451822758)),
    ],
)
def test_training_draws_the_same_pixels(
    corrupt: Callable[[NDArray[np.uint8], random.Random], NDArray[np.uint8]], expected: tuple[int, ...]
) -> None:
    assert tuple(zlib.crc32(corrupt(PIXELS, random.Random(seed)).tobytes()) for seed in (1, 2, 3)) == expected


def test_training_draws_the_same_severities() -> None:
    """Compared with Pillow's own result, which other versions of it may round otherwise."""
    for seed, quality, deviation in ((1, 13, 0.7687284882248024), (2, 8, 2.4120685437784988)):
        compressed = augment.compress(PIXELS, random.Random(seed)).transpose(1, 2, 0)
        assert (compressed == np.asarray(compress(IMAGE, quality))).all()
        blurred = augment.blur(PIXELS, random.Random(seed)).transpose(1, 2, 0)
        assert (blurred == np.asarray(IMAGE.filter(ImageFilter.GaussianBlur(deviation)))).all()


def test_training_draws_the_same_titles() -> None:
    config, rng = augment.AugmentConfig(title_dropout=0.5, word_dropout=0.2, label_word_dropout=0.3), random.Random(5)
    whole = "Puma Men's T-Shirt navy Fitted"
    titles = [augment.vary_title(whole, LABELS, config, rng) for _ in range(8)]
    assert titles == [whole, whole, whole, "Puma Fitted", "Puma Men's T-Shirt navy", *["Puma Fitted"] * 3]
