"""The same product photo as other shops would send it: other shapes, grounds, colour spaces and file formats.

Grounds and cut-outs are defined here on their own, apart from those that training uses (`model/inputs/staging.py`), so
that what is measured is not what was trained on. Photos are given as RGB images on a white ground.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageFilter

from benchmarks.profiles import ADOBE_RGB, DISPLAY_P3, PROPHOTO_RGB

Colour = tuple[int, int, int]

Format = Callable[[Image.Image, random.Random], bytes]
"""A photo to an image file; what is random is drawn from the generator."""

WHITE, LIGHT_GREY, BROWN = (255, 255, 255), (225, 225, 225), (139, 94, 60)

GROUND_TOLERANCE = 40
"""How far, summed over the channels, a pixel may be from the corner's colour and still be ground."""


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# --- shapes ------------------------------------------------------------------------------------------------


def padded(image: Image.Image, size: tuple[int, int], colour: Colour = WHITE) -> Image.Image:
    """Return a canvas of `size` (width, height) with the image in the middle."""
    canvas = Image.new("RGB", size, colour)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def square(image: Image.Image, _rng: random.Random) -> bytes:
    """A white square, as marketplaces ask for."""
    side = max(image.size)
    return encoded(padded(image, (side, side)), "JPEG", quality=90)


def landscape(image: Image.Image, _rng: random.Random) -> bytes:
    """A white canvas of 16 : 9."""
    height = image.height
    return encoded(padded(image, (max(image.width, round(height * 16 / 9)), height)), "JPEG", quality=90)


def large(image: Image.Image, _rng: random.Random) -> bytes:
    """The photo scaled to 1200 × 1600."""
    return encoded(image.resize((1200, 1600), Image.Resampling.LANCZOS), "JPEG", quality=90)


def squashed(image: Image.Image, _rng: random.Random) -> bytes:
    """The photo pulled to a square."""
    side = max(image.size)
    return encoded(image.resize((side, side), Image.Resampling.BICUBIC), "JPEG", quality=90)


# --- grounds -----------------------------------------------------------------------------------------------


def cut_out(image: Image.Image) -> Image.Image:
    """Return how much of each pixel is product, mode L: all but the ground that the corners are connected with."""
    marked = padded(image, (image.width + 2, image.height + 2))
    product = marked.copy()
    ImageDraw.floodfill(product, (0, 0), (255, 0, 255), thresh=GROUND_TOLERANCE)
    changed = ImageChops.difference(product, marked).convert("L").point(lambda value: 0 if value else 255)
    return changed.crop((1, 1, image.width + 1, image.height + 1)).filter(ImageFilter.GaussianBlur(0.5))


def transparent(image: Image.Image) -> Image.Image:
    """Return the product alone, RGBA."""
    alone = image.convert("RGBA")
    alone.putalpha(cut_out(image))
    return alone


def on(image: Image.Image, ground: Image.Image) -> bytes:
    """Put the product on a ground of the photo's size."""
    return encoded(Image.composite(image, ground, cut_out(image)), "JPEG", quality=90)


def planks(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A wooden floor: boards side by side, each with its own brown and its grain."""
    ground = Image.new("RGB", size)
    draw, width = ImageDraw.Draw(ground), max(4, size[0] // 5)
    for left in range(0, size[0], width):
        base = rng.randint(90, 170)
        draw.rectangle((left, 0, left + width - 2, size[1]), (base, round(base * 0.7), round(base * 0.45)))
        for _ in range(4):
            x, shade = left + rng.randrange(width), base - rng.randint(10, 35)
            colour = (shade, round(shade * 0.7), round(shade * 0.45))
            draw.line([(x + 1.5 * math.sin(y / 9), y) for y in range(0, size[1], 3)], colour)
    return ground


def bricks(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A wall of red bricks with light joints."""
    ground = Image.new("RGB", size, (190, 180, 170))
    draw, wide, high = ImageDraw.Draw(ground), max(6, size[0] // 4), max(3, size[1] // 12)
    for row, top in enumerate(range(0, size[1], high)):
        for left in range(-(row % 2) * wide // 2, size[0], wide):
            red = rng.randint(130, 180)
            draw.rectangle((left, top, left + wide - 2, top + high - 2), (red, red // 2, red // 3))
    return ground


def pebbles(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Grey and beige stones of many sizes."""
    ground = Image.new("RGB", size, (80, 75, 70))
    draw = ImageDraw.Draw(ground)
    for _ in range(size[0] * size[1] // 12):
        x, y, radius = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(1.5, max(size) / 14)
        level = rng.randint(110, 220)
        draw.ellipse((x - radius, y - radius * 0.8, x + radius, y + radius * 0.8), (level, level - 8, level - 20))
    return ground


def marble(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A light stone with darker clouds and veins: random values at several scales, each smoothly enlarged."""
    clouds = Image.new("L", size, 215)
    for cells in (3, 6, 12):
        values = Image.frombytes("L", (cells, cells), bytes(rng.randrange(256) for _ in range(cells * cells)))
        clouds = Image.blend(clouds, values.resize(size, Image.Resampling.BICUBIC), 0.2)
    return Image.merge("RGB", (clouds, clouds, clouds.point(lambda value: value * 0.95)))


def cloth(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A woven table cloth: threads of two colours over and under each other."""
    first, second = (tuple(rng.randint(40, 220) for _ in range(3)) for _ in range(2))
    ground = Image.new("RGB", size, first)
    draw = ImageDraw.Draw(ground)
    for x in range(0, size[0], 6):
        draw.line((x, 0, x, size[1]), second, 2)
    threads = Image.new("RGB", size, first)
    draw = ImageDraw.Draw(threads)
    for y in range(0, size[1], 6):
        draw.line((0, y, size[0], y), second, 2)
    return Image.blend(ground, threads, 0.5)


TEXTURES = (planks, bricks, pebbles, marble, cloth)


def textured(image: Image.Image, rng: random.Random) -> bytes:
    """One of several textured grounds."""
    return on(image, rng.choice(TEXTURES)(image.size, rng))


# --- colour spaces -----------------------------------------------------------------------------------------


def in_space(profile: bytes) -> Format:
    """Return the photo with its colours in another space, and the profile that says so."""
    spaces = (ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC

    def convert(image: Image.Image, _rng: random.Random) -> bytes:
        found = ImageCms.profileToProfile(image, spaces[1], spaces[0], renderingIntent=intent)
        assert found is not None
        return encoded(found, "PNG", icc_profile=profile)

    return convert


FORMATS: Mapping[str, Format] = {
    "padded to a white square": square,
    "on a landscape canvas": landscape,
    "1200 × 1600": large,
    "squashed to a square": squashed,
    "on light grey": lambda image, _rng: on(image, Image.new("RGB", image.size, LIGHT_GREY)),
    "on light grey, padded with white": lambda image, _rng: encoded(
        padded(
            Image.composite(image, Image.new("RGB", image.size, LIGHT_GREY), cut_out(image)),
            (round(1.5 * image.height), round(1.5 * image.height)),
        ),
        "JPEG",
        quality=90,
    ),
    "on plain brown": lambda image, _rng: on(image, Image.new("RGB", image.size, BROWN)),
    "on a textured ground": textured,
    "transparent PNG": lambda image, _rng: encoded(transparent(image), "PNG"),
    "transparent WebP": lambda image, _rng: encoded(transparent(image), "WEBP", quality=90),
    "Display P3": in_space(DISPLAY_P3),
    "Adobe RGB": in_space(ADOBE_RGB),
    "ProPhoto RGB": in_space(PROPHOTO_RGB),
    "PNG": lambda image, _rng: encoded(image, "PNG"),
    "WebP, quality 60": lambda image, _rng: encoded(image, "WEBP", quality=60),
    "AVIF, quality 60": lambda image, _rng: encoded(image, "AVIF", quality=60),
    "JPEG, quality 60": lambda image, _rng: encoded(image, "JPEG", quality=60),
}
"""The formats by what they are called in tables."""
