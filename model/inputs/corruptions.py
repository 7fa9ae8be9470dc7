"""Corruptions of images and titles, each at a severity that the caller chooses.

Training draws the severity at random (`model/inputs/augment.py`); the study measures networks at fixed ones
(`research/study/corruptions.py`). May import numpy and Pillow.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Colour = tuple[int, int, int]

# --- RGB images --------------------------------------------------------------------------------------------


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Return what JPEG at `quality`, from 1 to 95, leaves of an image."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    with Image.open(stream) as compressed:
        return compressed.convert("RGB")


def blur(image: Image.Image, deviation: float) -> Image.Image:
    """Blur by a Gaussian of `deviation` pixels."""
    return image.filter(ImageFilter.GaussianBlur(deviation))


def add_noise(pixels: NDArray[np.uint8], deviation: float, seed: int) -> NDArray[np.uint8]:
    """Add white noise of `deviation`, on the scale of 0 to 255, to pixels of any shape."""
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    noisy: NDArray[np.uint8] = (pixels + noise).clip(0, 255).astype(np.uint8)
    return noisy


def cover(image: Image.Image, corner: tuple[int, int], size: tuple[int, int], colour: Colour) -> Image.Image:
    """Paint a rectangle of one colour over an image: `corner` is its (left, top), `size` its (width, height)."""
    covered = image.copy()
    covered.paste(Image.new("RGB", size, colour), corner)
    return covered


# --- titles ------------------------------------------------------------------------------------------------


def without_label_words(title: str, labels: Iterable[str]) -> str:
    """Return `title` without the words that name one of `labels`, in whatever case, number or hyphenation.

    `Puma Men T-shirt Navy` of the labels Men, Tshirts and Navy Blue becomes `Puma`; it may become empty.
    """
    named = {stem(word) for label in labels for word in label.split()} - {""}
    return " ".join(word for word in title.split() if stem(word) not in named)


def stem(word: str) -> str:
    """Reduce a word to what its spellings share: its letters and digits, in lower case, without a plural s."""
    bare = re.sub(r"[^a-z0-9]", "", word.lower())
    return bare[:-1] if len(bare) > 3 and bare.endswith("s") and not bare.endswith("ss") else bare
