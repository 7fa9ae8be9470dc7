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

Pixels = NDArray[np.uint8]

EXAMINED = 160
"""Borders are sought in a copy whose longer side has at most this many pixels."""

TOLERANCE = 26
"""How far a pixel of a uniform border may be from its colour, of 255 in any channel: what JPEG's artefacts come to."""

OUTLIERS = 0.02
"""The share of the pixels of a border's row or column that may be further away: specks and dust."""

MARGIN = 0.03
"""What is left of the ground on each side, as a share of the longer side of what is left of the image."""

SMALLEST = 0.08
"""Trimming that leaves less than this share of the longer side, both ways, is undone: a speck is no product."""

REDUCING_GAP = 2.0
"""A large image is first reduced by averaging whole blocks, to this many times the size that is examined at least."""

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
    small = image if size == image.size else image.resize(size, Image.Resampling.BOX, reducing_gap=REDUCING_GAP)
    pixels = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
    top, bottom, left, right = 0, size[1], 0, size[0]
    ground = common = _edge_colour(pixels)
    for _ in range(ROUNDS):
        found = _trim(pixels[:, top:bottom, left:right], common)
        if found is None:
            break
        ground = found[4]
        top, bottom, left, right = top + found[0], top + found[1], left + found[2], left + found[3]
        common = _edge_colour(pixels[:, top:bottom, left:right])
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


def _trim(pixels: Pixels, common: Colour) -> tuple[int, int, int, int, Colour] | None:
    """Trim one border of `pixels` `[3, H, W]`: return top, bottom, left and right of what is left, and its colour.

    A uniform band along a side is a border where its colour is `common`, the commonest along the edges, or where the
    opposite side has one of the same colour (bars): else it may be part of a product that fills the width.
    None where there is no border, or hardly anything inside it.
    """
    height, width = pixels.shape[1:]
    top, bottom = _bands(pixels, common)
    left, right = _bands(pixels.transpose(0, 2, 1), common)
    rows, columns = height - top.size - bottom.size, width - left.size - right.size
    nothing = min(rows, columns) < 1 or max(rows, columns) < SMALLEST * max(height, width)
    if nothing or (rows, columns) == (height, width):
        return None
    widest = max((top, bottom, left, right), key=lambda band: band.size)
    return top.size, height - bottom.size, left.size, width - right.size, widest.colour


@dataclass(frozen=True, slots=True)
class _Band:
    """Rows along one side that have one colour; `size` 0: none."""

    size: int
    colour: Colour


def _bands(pixels: Pixels, common: Colour) -> tuple[_Band, _Band]:
    """Return the borders before and behind what is in the middle of `pixels`, `[3, rows, columns]`."""
    first, last = _band(pixels), _band(pixels[:, ::-1])
    if first.size and last.size and _alike(first.colour, last.colour):
        return first, last
    first, last = (band if _alike(band.colour, common) else _Band(0, band.colour) for band in (first, last))
    return first, last


def _band(pixels: Pixels) -> _Band:
    """Return how many of the first rows have the colour of the first one, but for a few pixels."""
    colour = _median(pixels[:, 0])
    if not _uniform(pixels[:, :1], colour).all():
        return _Band(0, colour)
    uniform = _uniform(pixels, colour)
    return _Band(len(uniform) if uniform.all() else int(uniform.argmin()), colour)


def _uniform(pixels: Pixels, colour: Colour) -> NDArray[np.bool_]:
    """Say of each row of `pixels` `[3, rows, columns]` whether it has one colour, but for a few pixels: `[rows]`."""
    lowest = np.array([max(0, channel - TOLERANCE) for channel in colour], dtype=np.uint8)
    highest = np.array([min(255, channel + TOLERANCE) for channel in colour], dtype=np.uint8)
    # Unsigned: what is below the lowest wraps around to above the range.
    other = (pixels - lowest[:, None, None] > (highest - lowest)[:, None, None]).any(axis=0)
    return np.asarray(other.sum(axis=1) / pixels.shape[2] <= OUTLIERS)


def _alike(one: Colour, other: Colour) -> bool:
    return all(abs(a - b) <= TOLERANCE for a, b in zip(one, other, strict=True))


def _edge_colour(pixels: Pixels) -> Colour:
    """Return the commonest colour along the edges of `pixels` `[3, H, W]`: the median of each channel."""
    return _median(np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1))


def _median(values: Pixels) -> Colour:
    """Return the median of each channel of `values` `[3, n]`, rounded down."""
    ordered, count = np.sort(values, axis=1), values.shape[1]
    red, green, blue = ((ordered[:, (count - 1) // 2].astype(int) + ordered[:, count // 2]) // 2).tolist()
    return red, green, blue
