"""Images that no fashion catalogue has: noise, textures, drawings of other things, and photos taken apart.

`FITTING` and `JUDGING` share no kind. A maker takes the generator that it draws from, and a photo of the catalogue for
those that alter one. Needs scipy (`model.inputs.staging`), which serving does not have; imports no torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from model.inputs import staging

ImageMaker = Callable[[random.Random, Image.Image], Image.Image]

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

SIZES = ((180, 240), (240, 240), (240, 180), (300, 225))
"""Widths and heights that images are drawn in."""


def _size(rng: random.Random) -> tuple[int, int]:
    return rng.choice(SIZES)


def _colour(rng: random.Random, low: int = 0, high: int = 255) -> Colour:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _noise(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(64))


def _of_array(pixels: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _canvas(rng: random.Random) -> Image.Image:
    """White, as most product photos are; else light or of any colour."""
    ground = rng.choices(((255, 255, 255), _colour(rng, 200), _colour(rng)), weights=(6, 2, 2))[0]
    return Image.new("RGB", _size(rng), ground)


def _finished(image: Image.Image, rng: random.Random) -> Image.Image:
    """Soften and roughen a drawing, so that its sharp edges are not what gives it away."""
    soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    pixels = np.asarray(soft, dtype=np.float32)
    return _of_array(pixels + _noise(rng).normal(0, rng.uniform(0, 6), pixels.shape))


def _parts(box: Box, *places: Box) -> list[tuple[float, float, float, float]]:
    """Return boxes given as fractions of `box`."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return [(left + a * width, top + b * height, left + c * width, top + d * height) for a, b, c, d in places]


def _place(image: Image.Image, rng: random.Random) -> Box:
    """Draw where on a canvas a drawn thing stands: it fills most of it, as products do."""
    margin_x, margin_y = image.width * rng.uniform(0.04, 0.25), image.height * rng.uniform(0.04, 0.25)
    return margin_x, margin_y, image.width - margin_x, image.height - margin_y


# --- images of nothing -------------------------------------------------------------------------------------


def white_noise(rng: random.Random, _: Image.Image) -> Image.Image:
    """Independent pixels, in colour or grey."""
    width, height = _size(rng)
    pixels = _noise(rng).uniform(0, 255, (height, width, rng.choice((1, 3))))
    return _of_array(np.broadcast_to(pixels, (height, width, 3)))


def coarse_noise(rng: random.Random, _: Image.Image) -> Image.Image:
    """Random squares of a few pixels to a third of the image."""
    cells = rng.randint(3, 40)
    small = _of_array(_noise(rng).uniform(0, 255, (cells, cells, 3)))
    return small.resize(_size(rng), rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC)))


def speckle(rng: random.Random, _: Image.Image) -> Image.Image:
    """Salt and pepper on a plain ground."""
    width, height = _size(rng)
    chance = _noise(rng).random((height, width, 1))
    share = rng.uniform(0.05, 0.5)
    ground = np.full((height, width, 3), _colour(rng), dtype=np.float32)
    return _of_array(np.where(chance < share / 2, 0.0, np.where(chance > 1 - share / 2, 255.0, ground)))


def plain(rng: random.Random, _: Image.Image) -> Image.Image:
    """One colour."""
    return Image.new("RGB", _size(rng), _colour(rng))


def gradient(rng: random.Random, _: Image.Image) -> Image.Image:
    """From one colour to another."""
    return _of_array(staging.gradient(_size(rng), rng))


def texture(rng: random.Random, _: Image.Image) -> Image.Image:
    """Clouds, grain, stripes or checks, all over."""
    return _of_array(staging.texture(_size(rng), rng))


def rings(rng: random.Random, _: Image.Image) -> Image.Image:
    """Waves around a point, in two colours."""
    width, height = _size(rng)
    x, y = np.meshgrid(np.arange(width) - rng.uniform(0, width), np.arange(height) - rng.uniform(0, height))
    waves = (np.sin(np.hypot(x, y) * 2 * np.pi / rng.uniform(6, 80)) + 1) / 2
    return _of_array(waves[..., None] * np.array(_colour(rng)) + (1 - waves[..., None]) * np.array(_colour(rng)))


# --- drawings ----------------------------------------------------------------------------------------------


def scattered_shapes(rng: random.Random, _: Image.Image) -> Image.Image:
    """Ellipses, rectangles, polygons and lines anywhere."""
    image = _canvas(rng)
    draw = ImageDraw.Draw(image)
    for _number in range(rng.randint(1, 14)):
        x, y = sorted(rng.uniform(0, image.width) for _ in "ab"), sorted(rng.uniform(0, image.height) for _ in "ab")
        box, colour = (x[0], y[0], x[1] + 4, y[1] + 4), _colour(rng)
        kind = rng.randrange(4)
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour, outline=_colour(rng), width=rng.randint(1, 5))
        elif kind == 2:
            draw.polygon([(rng.uniform(0, image.width), rng.uniform(0, image.height)) for _ in range(5)], fill=colour)
        else:
            draw.line(box, fill=colour, width=rng.randint(1, 15))
    return _finished(image, rng)


def symmetric_object(rng: random.Random, _: Image.Image) -> Image.Image:
    """A made-up thing: shaded blocks, discs and bars, mirrored left to right, as most things are."""
    image = _canvas(rng)
    left, top, right, bottom = _place(image, rng)
    draw, middle = ImageDraw.Draw(image), image.width / 2
    base = _colour(rng)
    for _number in range(rng.randint(2, 8)):
        width, height = rng.uniform(0.05, 1) * (right - left) / 2, rng.uniform(0.04, 0.8) * (bottom - top)
        centre, upper = rng.choice((0.0, rng.uniform(0, (right - left) / 2))), rng.uniform(top, bottom - height)
        colour = _shade(base, rng.uniform(0.4, 1.6)) if rng.random() < 0.7 else _colour(rng)
        shape = rng.choice(("rectangle", "ellipse", "rounded_rectangle"))
        for side in (-1, 1):
            x = middle + side * centre
            box = (x - width / 2, upper, x + width / 2, upper + height)
            if shape == "rounded_rectangle":
                draw.rounded_rectangle(box, radius=min(width, height) / 3, fill=colour)
            else:
                getattr(draw, shape)(box, fill=colour, outline=_shade(colour, 0.7))
    return _finished(image, rng)


def solid(rng: random.Random, _: Image.Image) -> Image.Image:
    """A box or a cylinder seen from above, its sides shaded."""
    image = _canvas(rng)
    left, top, right, bottom = _place(image, rng)
    draw, colour = ImageDraw.Draw(image), _colour(rng, 40)
    depth = rng.uniform(0.1, 0.45) * (bottom - top)
    if rng.random() < 0.5:
        for step in range(int(right - left)):
            light = 0.5 + 0.6 * math.sin(math.pi * step / (right - left))
            draw.line((left + step, top + depth / 2, left + step, bottom - depth / 2), fill=_shade(colour, light))
        draw.ellipse((left, bottom - depth, right, bottom), fill=_shade(colour, 0.8))
        draw.ellipse((left, top, right, top + depth), fill=_shade(colour, 1.2), outline=_shade(colour, 0.6))
    else:
        edge = left + rng.uniform(0.3, 0.7) * (right - left)
        draw.polygon([(left, top + depth), (edge, top), (right, top + depth), (edge, top + 2 * depth)], fill=colour)
        draw.polygon(
            [(left, top + depth), (edge, top + 2 * depth), (edge, bottom), (left, bottom - depth)], _shade(colour, 0.8)
        )
        draw.polygon(
            [(right, top + depth), (edge, top + 2 * depth), (edge, bottom), (right, bottom - depth)],
            _shade(colour, 0.6),
        )
    return _finished(image, rng)


def tool(rng: random.Random, _: Image.Image) -> Image.Image:
    """A hammer, a screwdriver, a saw or a spanner, at an angle."""
    image = Image.new("RGB", (240, 240), "white")
    draw, handle, metal = ImageDraw.Draw(image), _colour(rng), _shade((200, 200, 210), rng.uniform(0.5, 1.1))
    kind = rng.randrange(4)
    draw.rounded_rectangle((105, 100, 135, 225), radius=12, fill=handle)
    if kind == 0:
        draw.rectangle((60, 60, 185, 105), fill=metal)
    elif kind == 1:
        draw.rectangle((114, 15, 126, 110), fill=metal)
    elif kind == 2:
        draw.polygon([(100, 105), (140, 105), (170, 10), (90, 10)], fill=metal)
    else:
        draw.ellipse((85, 30, 155, 105), fill=metal)
        draw.rectangle((108, 20, 132, 70), fill="white")
    return _finished(image.rotate(rng.uniform(0, 360), expand=True, fillcolor="white"), rng)


def written_page(rng: random.Random, _: Image.Image) -> Image.Image:
    """Lines of text on paper."""
    image = Image.new("RGB", _size(rng), _colour(rng, 225))
    draw, ink = ImageDraw.Draw(image), _colour(rng, 0, 90)
    step = rng.randint(10, 22)
    for y in range(step, image.height - step, step):
        words = " ".join("".join(rng.choices("abcdefghilmnorstuvw", k=rng.randint(2, 9))) for _ in range(9))
        draw.text((step, y), words[: int(rng.uniform(0.3, 1) * image.width / 6)], fill=ink)
    return _finished(image, rng)


def chart(rng: random.Random, _: Image.Image) -> Image.Image:
    """Columns or a pie."""
    image = Image.new("RGB", _size(rng), "white")
    draw, n = ImageDraw.Draw(image), rng.randint(3, 9)
    left, top, right, bottom = _place(image, rng)
    if rng.random() < 0.5:
        width = (right - left) / n
        for column in range(n):
            x, height = left + column * width, rng.uniform(0.1, 1) * (bottom - top)
            draw.rectangle((x, bottom - height, x + 0.7 * width, bottom), fill=_colour(rng))
        draw.line((left, top, left, bottom, right, bottom), fill="black")
    else:
        side, angle = min(right - left, bottom - top), 0.0
        for _slice in range(n):
            end = angle + rng.uniform(20, 360 / n * 1.5)
            draw.pieslice((left, top, left + side, top + side), angle, end, fill=_colour(rng))
            angle = end
    return _finished(image, rng)


def landscape(rng: random.Random, _: Image.Image) -> Image.Image:
    """Sky, hills and trees or houses."""
    width, height = size = _size(rng)
    sky = np.linspace(0, 1, height)[:, None, None] * np.array([120.0, 80, 20]) + np.array(_colour(rng, 80, 180))
    image = _of_array(np.broadcast_to(sky, (*size[::-1], 3)))
    draw = ImageDraw.Draw(image)
    for layer in range(3):
        phase, wave, level = rng.uniform(0, 6), rng.uniform(20, 90), height * (0.45 + 0.17 * layer)
        line = [(x, level + 18 * math.sin(x / wave + phase)) for x in range(0, width + 8, 8)]
        draw.polygon([*line, (width, height), (0, height)], fill=_shade((60, 130, 60), rng.uniform(0.4, 1.4)))
        for _tree in range(rng.randint(0, 5)):
            x, tall = rng.uniform(0, width), rng.uniform(15, 60)
            draw.rectangle((x - 2, level - tall / 3, x + 2, level + 8), fill=(90, 60, 40))
            draw.ellipse(
                (x - tall / 3, level - tall, x + tall / 3, level - tall / 4),
                fill=_shade((40, 110, 50), rng.uniform(0.5, 1.5)),
            )
    return _finished(image, rng)


def furniture(rng: random.Random, _: Image.Image) -> Image.Image:
    """A table, a chair, a sofa, a cupboard, a bed or a lamp, drawn from the front."""
    image = _canvas(rng)
    box = _place(image, rng)
    draw, wood = ImageDraw.Draw(image), _colour(rng, 30, 220)
    dark = _shade(wood, 0.7)

    def rectangles(colour: Colour, *places: Box) -> None:
        for part in _parts(box, *places):
            draw.rectangle(part, fill=colour, outline=_shade(colour, 0.8))

    kind = rng.randrange(6)
    if kind == 0:
        rectangles(dark, (0.05, 0.35, 0.12, 1), (0.88, 0.35, 0.95, 1), (0.25, 0.35, 0.3, 0.85), (0.7, 0.35, 0.75, 0.85))
        rectangles(wood, (0, 0.28, 1, 0.37))
    elif kind == 1:
        rectangles(dark, (0.15, 0.5, 0.22, 1), (0.78, 0.5, 0.85, 1), (0.15, 0, 0.22, 0.5), (0.78, 0, 0.85, 0.5))
        rectangles(wood, (0.15, 0.05, 0.85, 0.35), (0.1, 0.5, 0.9, 0.6))
    elif kind == 2:
        rectangles(wood, (0.05, 0.3, 0.95, 0.7))
        rectangles(dark, (0, 0.45, 0.15, 0.85), (0.85, 0.45, 1, 0.85), (0.1, 0.85, 0.14, 0.92), (0.86, 0.85, 0.9, 0.92))
        rectangles(_shade(wood, 1.15), (0.15, 0.55, 0.5, 0.75), (0.5, 0.55, 0.85, 0.75), (0.15, 0.75, 0.85, 0.85))
    elif kind == 3:
        rows, columns = rng.randint(1, 5), rng.randint(1, 3)
        rectangles(dark, (0, 0, 1, 1))
        cells = [
            (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)
        ]
        rectangles(wood, *((a + 0.02, b + 0.02, c - 0.02, d - 0.02) for a, b, c, d in cells))
    elif kind == 4:
        rectangles(dark, (0, 0.2, 0.06, 1), (0.94, 0.4, 1, 1))
        rectangles(_colour(rng, 180), (0.06, 0.5, 0.94, 0.7), (0.08, 0.42, 0.3, 0.52))
        rectangles(wood, (0.06, 0.7, 0.94, 0.85))
    else:
        rectangles(dark, (0.48, 0.3, 0.52, 0.95), (0.3, 0.95, 0.7, 1))
        (top,) = _parts(box, (0.2, 0, 0.8, 0.35))
        draw.polygon([(top[0] + 20, top[1]), (top[2] - 20, top[1]), (top[2], top[3]), (top[0], top[3])], fill=wood)
    return _finished(image, rng)


def food(rng: random.Random, _: Image.Image) -> Image.Image:
    """Fruit, a bottle, a packet, a tin or a plate."""
    image = _canvas(rng)
    box = _place(image, rng)
    draw, colour = ImageDraw.Draw(image), _colour(rng)
    kind = rng.randrange(4)
    if kind == 0:
        for _piece in range(rng.randint(1, 6)):
            x, y, radius = rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3]), rng.uniform(20, 60)
            for ring in range(10):
                light, inner = 0.7 + 0.06 * ring, radius * (1 - ring / 10)
                draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=_shade(colour, light))
            draw.line((x, y - radius, x + 5, y - radius - 12), fill=(90, 60, 30), width=4)
    elif kind == 1:
        body, neck, label, cap = _parts(
            box, (0.3, 0.35, 0.7, 1), (0.42, 0.08, 0.58, 0.4), (0.3, 0.5, 0.7, 0.8), (0.4, 0, 0.6, 0.09)
        )
        draw.rounded_rectangle(body, radius=15, fill=colour)
        draw.rectangle(neck, fill=colour)
        draw.rectangle(label, fill=_colour(rng, 150))
        draw.rectangle(cap, fill=_colour(rng))
        draw.text((label[0] + 4, label[1] + 8), "".join(rng.choices("AEIOLMNRST", k=7)), fill=_colour(rng, 0, 100))
    elif kind == 2:
        draw.rectangle(box, fill=colour)
        for part in _parts(box, (0.1, 0.08, 0.9, 0.3), (0.2, 0.4, 0.8, 0.85)):
            draw.rectangle(part, fill=_colour(rng))
            draw.text((part[0] + 5, part[1] + 6), "".join(rng.choices("AEIOLMNRST", k=9)), fill="white")
    else:
        draw.ellipse(box, fill=_colour(rng, 220), outline=(190, 190, 190), width=4)
        for _piece in range(rng.randint(3, 20)):
            x, y = rng.gauss(image.width / 2, image.width / 8), rng.gauss(image.height / 2, image.height / 8)
            draw.ellipse((x - 14, y - 9, x + 14, y + 9), fill=_shade(colour, rng.uniform(0.5, 1.5)))
    return _finished(image, rng)


def screenshot(rng: random.Random, _: Image.Image) -> Image.Image:
    """A window with a bar, a column and some boxes."""
    image = Image.new("RGB", (320, 220), _colour(rng, 210))
    draw, accent = ImageDraw.Draw(image), _colour(rng)
    draw.rectangle((0, 0, 320, 22), fill=accent)
    draw.rectangle((0, 22, rng.randint(40, 90), 220), fill=_shade(accent, 1.5))
    for _row in range(rng.randint(3, 9)):
        x, y = rng.uniform(95, 200), rng.uniform(30, 190)
        draw.rounded_rectangle(
            (x, y, x + rng.uniform(40, 110), y + rng.uniform(8, 40)), 4, fill="white", outline=accent
        )
        draw.text((x + 4, y + 2), "".join(rng.choices("abcdefgh ", k=8)), fill="black")
    return _finished(image, rng)


def city_map(rng: random.Random, _: Image.Image) -> Image.Image:
    """Streets between blocks."""
    image = Image.new("RGB", _size(rng), _colour(rng, 200))
    draw = ImageDraw.Draw(image)
    for _street in range(rng.randint(6, 20)):
        ends = [rng.uniform(-50, 300) for _ in range(4)]
        draw.line(ends, fill=rng.choice(((255, 255, 255), (250, 220, 120), (160, 200, 240))), width=rng.randint(2, 12))
    return _finished(image, rng)


# --- photos taken apart ------------------------------------------------------------------------------------


def shuffled_patches(rng: random.Random, photo: Image.Image) -> Image.Image:
    """The photo's pieces in another order."""
    rows, columns = rng.randint(3, 6), rng.randint(3, 5)
    width, height = photo.width // columns, photo.height // rows
    boxes = [(c * width, r * height, (c + 1) * width, (r + 1) * height) for r in range(rows) for c in range(columns)]
    shuffled = Image.new("RGB", (width * columns, height * rows))
    for box, source in zip(boxes, rng.sample(boxes, len(boxes)), strict=True):
        shuffled.paste(photo.crop(source), box[:2])
    return shuffled


def tiny_detail(rng: random.Random, photo: Image.Image) -> Image.Image:
    """A few pixels of the photo's middle, enlarged."""
    side = rng.uniform(0.06, 0.15)
    x, y = (0.5 - side / 2) * photo.width, (0.5 - side / 2) * photo.height
    return photo.resize(_size(rng), Image.Resampling.BICUBIC, (x, y, x + side * photo.width, y + side * photo.height))


def kaleidoscope(rng: random.Random, photo: Image.Image) -> Image.Image:
    """The photo laid over itself, mirrored, turned and negated."""
    other = ImageOps.invert(ImageOps.flip(photo).rotate(rng.choice((0, 90, 180)))).resize(photo.size)
    return ImageChops.difference(photo, other)


def mosaic(rng: random.Random, photo: Image.Image) -> Image.Image:
    """Many small copies of the photo, in false colours."""
    n = rng.randint(3, 6)
    small = photo.resize((48, 64)).point([(17 * level * n) % 256 for level in range(256)] * 3)
    tiled = Image.new("RGB", (48 * n, 64 * n))
    for place in range(n * n):
        tiled.paste(small, (48 * (place % n), 64 * (place // n)))
    return tiled


FITTING: Mapping[str, ImageMaker] = {
    "white noise": white_noise,
    "gradients": gradient,
    "textures": texture,
    "scattered shapes": scattered_shapes,
    "symmetric objects": symmetric_object,
    "solids": solid,
    "tools": tool,
    "written pages": written_page,
    "landscapes": landscape,
    "shuffled patches": shuffled_patches,
    "tiny details": tiny_detail,
}
"""Kinds of images that a measure of familiarity may be fitted on, by name."""

JUDGING: Mapping[str, ImageMaker] = {
    "furniture": furniture,
    "food": food,
    "coarse noise": coarse_noise,
    "speckle": speckle,
    "plain": plain,
    "rings": rings,
    "charts": chart,
    "screenshots": screenshot,
    "maps": city_map,
    "kaleidoscope": kaleidoscope,
    "mosaics": mosaic,
}
"""Kinds of images that it is judged on, by name."""
