"""Framing: which part of a photo the network sees, so that a product fills it however the photo was padded.

Shops pad the same photo to a square, put it on another plain ground, or leave wide margins. Uniform borders are trimmed
and the product is fitted, never squashed, into the model's input. The one definition for training, calibration and
serving. May import numpy and Pillow alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in the pixels of an image; it may extend beyond the edges."""

Colour = tuple[int, int, int]

EXAMINED = 160
"""Borders are sought in a copy whose longer side has at most this many pixels."""

TOLERANCE = 26
"""How far a pixel of a uniform border may be from its colour, of 255 in any channel: what JPEG's artefacts come to."""

OUTLIERS = 0.02
"""The share of the pixels of a border's row or column that may be further away: specks and dust."""

MARGIN = 0.03
"""What is left of the ground on each side, as a share of the longer side of what is left of the image."""

SMALLEST = 0.08
"""Trimming that leaves less than this share of a side is undone: an image of one colour has no product to find."""

ROUNDS = 3
"""Nested borders that are trimmed: a photo with a grey ground, padded with white, in a black frame."""


@dataclass(frozen=True, slots=True)
class Framing:
    """The part of an image that holds the product, and the colour of the ground around it."""

    box: Box
    ground: Colour


def find_product(image: Image.Image) -> Framing:
    """Find what the uniform borders of an RGB image leave, with a small margin; all of it where there are none."""
    scale = max(1.0, max(image.size) / EXAMINED)
    size = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    small = image if size == image.size else image.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    top, bottom, left, right = 0, size[1], 0, size[0]
    ground = _edge_colour(pixels)
    for _ in range(ROUNDS):
        found = _trim(pixels[top:bottom, left:right])
        if found is None:
            break
        ground = found[4]
        top, bottom, left, right = top + found[0], top + found[1], left + found[2], left + found[3]
    x, y = image.width / size[0], image.height / size[1]
    if (right - left, bottom - top) == size:
        return Framing((0.0, 0.0, float(image.width), float(image.height)), ground)
    margin = MARGIN * max((right - left) * x, (bottom - top) * y)
    return Framing(
        (
            max(0.0, left * x - margin),
            max(0.0, top * y - margin),
            min(float(image.width), right * x + margin),
            min(float(image.height), bottom * y + margin),
        ),
        ground,
    )


def _trim(pixels: NDArray[np.int16]) -> tuple[int, int, int, int, Colour] | None:
    """Trim one border of `pixels` `[H, W, 3]`: return top, bottom, left and right of what is left, and its colour.

    A uniform band along a side is a border where its colour is the commonest along the edges, or where the opposite
    side has one of the same colour (bars): else it may be part of a product that fills the width.
    None where there is no border, or hardly anything inside it.
    """
    height, width = pixels.shape[:2]
    common = _edge_colour(pixels)
    top, bottom = _bands(pixels, common)
    left, right = _bands(pixels.transpose(1, 0, 2), common)
    rows, columns = height - top.size - bottom.size, width - left.size - right.size
    if rows < SMALLEST * height or columns < SMALLEST * width or (rows, columns) == (height, width):
        return None
    widest = max((top, bottom, left, right), key=lambda band: band.size)
    return top.size, height - bottom.size, left.size, width - right.size, widest.colour


@dataclass(frozen=True, slots=True)
class _Band:
    """Rows along one side that have one colour; `size` 0: none."""

    size: int
    colour: Colour


def _bands(pixels: NDArray[np.int16], common: Colour) -> tuple[_Band, _Band]:
    """Return the borders before and behind what is in the middle of `pixels`, `[rows, columns, 3]`."""
    first, last = _band(pixels), _band(pixels[::-1])
    if first.size and last.size and _alike(first.colour, last.colour):
        return first, last
    first, last = (band if _alike(band.colour, common) else _Band(0, band.colour) for band in (first, last))
    return first, last


def _band(pixels: NDArray[np.int16]) -> _Band:
    """Return how many of the first rows have the colour of the first one, but for a few pixels."""
    middle = np.median(pixels[0], axis=0)
    other = (np.abs(pixels - middle.astype(np.int16)) > TOLERANCE).any(axis=2)
    uniform = other.mean(axis=1) <= OUTLIERS
    red, green, blue = middle.astype(int).tolist()
    return _Band(len(uniform) if uniform.all() else int(uniform.argmin()), (red, green, blue))


def _alike(one: Colour, other: Colour) -> bool:
    return all(abs(a - b) <= TOLERANCE for a, b in zip(one, other, strict=True))


def _edge_colour(pixels: NDArray[np.int16]) -> Colour:
    """Return the commonest colour along the edges of `pixels` `[H, W, 3]`: the median of each channel."""
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edges, axis=0).astype(int).tolist()
    return red, green, blue
