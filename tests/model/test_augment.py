"""Augmentation: inside its bounds, decided by its generator, and never a change of hue or a title without words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import ConfigError
from model.inputs.augment import (
    IMAGE_CORRUPTIONS,
    AugmentConfig,
    Pixels,
    change_number,
    change_order,
    mistype,
    random_box,
    rewrite_title,
    vary_photo,
    vary_pixels,
    vary_title,
)

PLAIN = AugmentConfig(flip=False, corrupted_images=0, blank_images=0, title_dropout=0, label_word_dropout=0)
LABELS = ("Men", "Apparel", "Tshirts", "Navy Blue")


@pytest.fixture
def pixels() -> Pixels:
    pixels = np.full((3, 20, 16), 255, dtype=np.uint8)
    pixels[:, 4:14, 4:12] = np.array([200, 30, 40])[:, None, None]
    return pixels


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers())
def test_crops_stay_inside_and_keep_their_share(width: int, height: int, seed: int) -> None:
    left, upper, right, lower = random_box(
        (0.0, 0.0, float(width), float(height)), AugmentConfig(crop=0.6), random.Random(seed)
    )
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= upper < lower <= height + 1e-6
    if min(width, height) > 10:
        assert (right - left) * (lower - upper) >= 0.5 * width * height


@pytest.mark.parametrize("corrupt", IMAGE_CORRUPTIONS)
def test_a_corruption_changes_a_copy_and_is_decided_by_the_generator(
    corrupt: Callable[[Pixels, random.Random], Pixels], pixels: Pixels
) -> None:
    before = pixels.copy()
    first, again, other = (corrupt(pixels, random.Random(seed)) for seed in (1, 1, 2))
    assert (pixels == before).all()
    assert first.shape == pixels.shape
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert (first == again).all()
    assert (first != pixels).any()
    assert (first != other).any()


def test_images_are_mirrored_and_corrupted_in_the_shares_asked_for(pixels: Pixels) -> None:
    assert (vary_pixels(pixels, PLAIN, random.Random(0)) == pixels).all()
    left_heavy = np.concatenate([pixels[:, :, :8], np.full_like(pixels[:, :, :8], 255)], axis=2)
    rng = random.Random(0)
    mirrored = sum(
        (vary_pixels(left_heavy, AugmentConfig(corrupted_images=0, blank_images=0), rng) != left_heavy).any()
        for _ in range(400)
    )
    assert mirrored / 400 == pytest.approx(0.5, abs=0.1)
    config = AugmentConfig(flip=False, corrupted_images=0.25, blank_images=0)
    corrupted = sum((vary_pixels(pixels, config, rng) != pixels).any() for _ in range(400))
    assert corrupted / 400 == pytest.approx(0.25, abs=0.08)


def test_blank_images_are_one_colour_and_as_many_as_asked_for(pixels: Pixels) -> None:
    config, rng = AugmentConfig(flip=False, corrupted_images=0, blank_images=0.25), random.Random(0)
    varied = [vary_pixels(pixels, config, rng) for _ in range(400)]
    blank = [image for image in varied if (image == image[:, :1, :1]).all()]
    assert len(blank) / 400 == pytest.approx(0.25, abs=0.07)
    assert all(image.shape == pixels.shape and image.flags.writeable for image in blank)
    assert 0.3 < np.mean([(image == 255).all() for image in blank]) < 0.7
    assert all((image == pixels).all() for image in varied if not any(image is each for each in blank))


@pytest.mark.parametrize("share", ["other_grounds", "squashed", "relit"])
def test_photos_are_shown_in_another_way_in_the_shares_asked_for(share: str) -> None:
    photo = Image.new("RGB", (60, 80), "white")
    photo.paste((150, 20, 90), (15, 20, 45, 60))
    rng = random.Random(0)
    unchanged = AugmentConfig(other_grounds=0, squashed=0, relit=0)
    config = replace(unchanged, **{share: 0.3})  # type: ignore[arg-type]
    varied = [vary_photo(photo, config, rng) for _ in range(300)]
    changed = sum((each.size, each.tobytes()) != (photo.size, photo.tobytes()) for each in varied)
    assert changed / 300 == pytest.approx(0.3, abs=0.08)
    assert {each.mode for each in varied} == {"RGB"}
    assert all(vary_photo(photo, unchanged, rng) is photo for _ in range(20))


def test_words_are_dropped_but_never_all() -> None:
    config = AugmentConfig(title_dropout=0.99, word_dropout=0.99, label_word_dropout=0)
    rng = random.Random(0)
    results = {vary_title("one two three", (), config, rng) for _ in range(200)}
    assert results >= {"one", "two", "three"}
    assert "" not in results
    assert vary_title("single", (), config, rng) == "single"
    assert vary_title("one two three", ("two",), PLAIN, rng) == "one two three"


def test_titles_are_rewritten_in_the_share_asked_for() -> None:
    title = "Turtle Check Men Navy Blue Shirts and Tie"
    config, rng = replace(PLAIN, rewritten_titles=0.5), random.Random(4)
    changed = [vary_title(title, (), config, rng) != title for _ in range(1_000)]
    # A few rewrites leave a title as it was: a letter exchanged for the same one, capitals where there are capitals.
    assert 0.4 < sum(changed) / len(changed) < 0.51
    assert vary_title(title, (), PLAIN, rng) == title


def test_a_rewritten_title_is_nearly_the_same() -> None:
    rng, title = random.Random(6), "Turtle Check Men Navy Blue Shirts and Tie"
    for _ in range(500):
        words = [word.strip(",.-") for word in rewrite_title(title, rng).replace("&", "and").lower().split()]
        kept = set(words) & set(title.lower().split())
        assert len(kept) >= 6
        assert len(words) == 8
    assert {mistype("Shirt", random.Random(seed)) for seed in range(200)} >= {"Shrit", "Shit", "Shiirt"}
    assert {change_number("Men Shirts", random.Random(seed)) for seed in range(9)} == {"Men Shirt"}
    assert {change_order("one two", random.Random(seed)) for seed in range(9)} == {"two one"}


@given(st.text(max_size=40), st.integers(0, 1_000))
def test_any_title_can_be_rewritten_and_none_becomes_empty(title: str, seed: int) -> None:
    rewritten = rewrite_title(title, random.Random(seed))
    assert bool(rewritten.strip()) == bool(title.strip())


def test_a_title_of_label_words_alone_is_kept() -> None:
    config = AugmentConfig(title_dropout=0, label_word_dropout=0.99)
    rng = random.Random(0)
    assert {vary_title("Men Navy", LABELS, config, rng) for _ in range(50)} == {"Men Navy"}
    assert {vary_title("Puma Men Navy", LABELS, config, rng) for _ in range(200)} == {"Puma", "Puma Men Navy"}


@pytest.mark.parametrize(
    "fields", [{"crop": 0.0}, {"corrupted_images": 1.5}, {"label_word_dropout": -0.1}, {"relit": 1.0}]
)
def test_impossible_configurations_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        AugmentConfig(**fields)  # type: ignore[arg-type]
