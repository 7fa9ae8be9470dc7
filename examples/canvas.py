"""A canvas that paints shapes as if they were lit and photographed: relief, folds, textures, seams and soft shadows.

Coordinates are pixels of the finished image, of `SIZE`; everything is painted `SCALE` times as large and reduced at the
end. Arrays are `[H, W]` for masks and reliefs and `[H, W, 3]` for colours, in 0 to 1. Nothing is random between runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

SIZE, SCALE = (240, 320), 4
LIGHT = (0.45, 0.8)
"""How strongly slopes that face left and up are lit: a lamp above, on the left."""
SMOOTH_STEPS = 12

Point = tuple[float, float]
Field = NDArray[np.float64]
_WIDTH, _HEIGHT = SIZE[0] * SCALE, SIZE[1] * SCALE

ROWS, COLUMNS = np.mgrid[0:_HEIGHT, 0:_WIDTH] / SCALE
"""The place of every point of the canvas, for textures and gradients."""


def mirrored(points: Sequence[Point]) -> list[Point]:
    """Reflect points about the middle of the image."""
    return [(SIZE[0] - x, y) for x, y in points]


def both_sides(points: Sequence[Point]) -> list[Point]:
    """Complete the left half of an outline, given from top to bottom, with its reflection."""
    return [*points, *reversed(mirrored(points))]


def smooth(points: Sequence[Point], *, closed: bool = True) -> list[Point]:
    """Return a curve through the points (Catmull-Rom)."""
    corners = np.asarray(points, dtype=float)
    if closed:
        corners = np.vstack([corners[-1], corners, corners[:2]])
    else:
        corners = np.vstack([corners[0], corners, corners[-1]])
    t = np.linspace(0, 1, SMOOTH_STEPS, endpoint=False)[:, None]
    curve = []
    for a, b, c, d in zip(corners, corners[1:], corners[2:], corners[3:], strict=False):
        curve.append(b + ((c - a) + ((2 * a - 5 * b + 4 * c - d) + (3 * b - a - 3 * c + d) * t) * t) * t / 2)
    if not closed:
        curve.append(corners[-1:])
    return [(float(x), float(y)) for x, y in np.vstack(curve)]


def polygon(points: Sequence[Point]) -> Field:
    """Return the mask of an outline with corners; `smooth` it before for one without."""
    image = Image.new("L", (_WIDTH, _HEIGHT))
    ImageDraw.Draw(image).polygon([(x * SCALE, y * SCALE) for x, y in points], fill=255)
    return np.asarray(image) / 255.0


def ellipse(centre: Point, across: float, down: float) -> Field:
    """Return the mask of an ellipse with these radii."""
    inside: Field = np.hypot((COLUMNS - centre[0]) / across, (ROWS - centre[1]) / down) <= 1
    return inside.astype(float)


def line(points: Sequence[Point], width: float, *, dashes: float = 0.0) -> Field:
    """Return the mask of a line with round ends along the points; `dashes`: the length of stitches and gaps."""
    image = Image.new("L", (_WIDTH, _HEIGHT))
    pen, radius, walked = ImageDraw.Draw(image), width * SCALE / 2, 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        length = float(np.hypot(x1 - x0, y1 - y0))
        steps = max(1, int(length * SCALE))
        for step in range(steps + 1):
            x, y = (x0 + (x1 - x0) * step / steps) * SCALE, (y0 + (y1 - y0) * step / steps) * SCALE
            if not dashes or (walked + length * step / steps) % (2 * dashes) < dashes:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        walked += length
    return np.asarray(image) / 255.0


def blur(mask: Field, radius: float) -> Field:
    """Blur a mask: three box filters, which come close to a Gaussian of this standard deviation."""
    half = max(1, round(radius * SCALE))
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    blurred = np.zeros_like(mask)
    if not rows.size:
        return blurred
    reach = 3 * half + 1  # beyond it the mask stays 0
    place = tuple(slice(max(0, found[0] - reach), found[-1] + reach + 1) for found in (rows, columns))
    part = mask[place]
    for axis in (0, 1, 0, 1, 0, 1):
        padding = [(half + 1, half) if each == axis else (0, 0) for each in (0, 1)]
        sums = np.moveaxis(np.cumsum(np.pad(part, padding, mode="edge"), axis=axis), axis, 0)
        width = 2 * half + 1
        part = np.moveaxis((sums[width:] - sums[:-width]) / width, 0, axis)
    blurred[place] = part
    return blurred


def noise(across: float, down: float, seed: int) -> Field:
    """Return smooth noise around 0, whose features have about this width and height: creases, grain, mottling."""
    shape = (max(2, round(SIZE[1] / down)), max(2, round(SIZE[0] / across)))
    coarse = Image.fromarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    return np.asarray(coarse.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)).astype(np.float64)


def lit(height: Field) -> Field:
    """Return how much brighter the slopes of a height (in pixels) are than a level surface."""
    down, across = np.gradient(height * SCALE)
    light: Field = np.add(LIGHT[0] * across, LIGHT[1] * down)
    return light


def rounded(mask: Field, radius: float) -> Field:
    """Return the light on a shape whose edges fall away over `radius` pixels."""
    inside = blur(mask, radius)
    return lit(inside * radius * 0.5) + 0.7 * np.minimum(inside - 1, 0)


class Canvas:
    """A white ground that shapes are painted on, one over the other."""

    def __init__(self) -> None:
        self._pixels = np.ones((_HEIGHT, _WIDTH, 3))

    def paint(self, mask: Field, colour: str, light: Field | float = 0.0) -> None:
        """Paint a shape in a colour, made brighter and darker by `light` (0 leaves the colour as it is)."""
        paint = np.array(ImageColor.getrgb(colour)[:3]) / 255 * np.maximum(0, 1 + np.asarray(light))[..., None]
        self._pixels += mask[..., None] * (np.minimum(paint, 1) - self._pixels)

    def body(
        self, mask: Field, colour: str, radius: float = 6, light: Field | float = 0.0, *, casts: float = 0.35
    ) -> None:
        """Paint a solid shape with rounded edges, which casts a soft shadow on what is already painted beside it."""
        around = blur(mask, 2.5)
        painted = 1 - self._pixels.min(axis=2) > 0.06  # the white ground is too far behind to be in shadow
        self.paint(around * casts * painted, "#000000")
        self.paint(mask, colour, rounded(mask, radius) + light)

    def glow(self, mask: Field, within: Field, colour: str, radius: float, strength: float) -> None:
        """Lay a blurred light or shade over a shape."""
        self.paint(np.clip(blur(mask, radius) * strength, 0, 1) * within, colour)

    def seam(self, points: Sequence[Point], dark: str, thread: str | None = None, width: float = 0.9) -> None:
        """Draw a seam: a dark groove, and beside it stitches where there is a thread."""
        self.paint(blur(line(points, width), 0.3) * 0.8, dark)
        if thread:
            self.paint(line([(x, y + 2.2) for x, y in points], 0.7, dashes=2), thread)

    def floor_shadow(self, centre: Point, across: float, down: float, strength: float = 0.35) -> None:
        """Darken the ground under a product, before it is painted."""
        self.paint(blur(ellipse(centre, across, down), down * 0.7) * strength, "#30343c")

    def finish(self, turned: float = 0.0) -> Image.Image:
        """Return the image in `SIZE`, turned by some degrees clockwise, with a camera's faint grain."""
        image = Image.fromarray(np.uint8(np.clip(self._pixels, 0, 1) * 255))
        image = image.rotate(-turned, Image.Resampling.BICUBIC, fillcolor="white")
        small = np.asarray(image.resize(SIZE, Image.Resampling.LANCZOS), dtype=float)
        grain = np.random.default_rng(0).normal(scale=1.6, size=small.shape[:2])[..., None]
        return Image.fromarray(np.uint8(np.clip(np.where(small < 250, small + grain, small), 0, 255)))
