"""The same product as another photographer would show it: other grounds, other shapes, another light.

For training: a catalogue shows its products one way, and a service is sent photos of every kind. Every function draws
from the generator that it is given. Needs scipy, which serving does not have; imports nothing of torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[np.float32]

SHAPES = ((3, 4), (1, 1), (4, 3), (2, 3), (9, 16), (16, 9))
"""Widths and heights that shops ask for."""


def restage(image: Image.Image, rng: random.Random) -> Image.Image:
    """Put the product of an RGB image on another ground, on a canvas of another shape, somewhere.

    The image is pasted at its own size; its ground, the light pixels that its edges are connected with, is replaced.
    """
    cover, size, place = _cover(image, rng), *_canvas(image.size, rng)
    ground = rng.choices(GROUNDS, weights=(4, 3, 1, 3))[0](size, rng)
    product = np.asarray(image, dtype=np.float32)
    left, top = place
    window = ground[top : top + image.height, left : left + image.width]
    if rng.random() < 0.5:
        window[:] = cover * product + (1 - cover) * window
    else:  # as light falls on paper: what is white takes the ground's colour
        window[:] = cover * product + (1 - cover) * product * window / 255
    return Image.fromarray(ground.clip(0, 255).astype(np.uint8))


def _cover(image: Image.Image, rng: random.Random) -> Floats:
    """Return how much of each pixel is product, `[H, W, 1]`: not the light pixels that the edges are connected with."""
    threshold = rng.uniform(225, 250)
    darkest = np.asarray(image, dtype=np.float32).min(axis=2)
    light = darkest >= threshold
    labels, _ = ndimage.label(light)
    edges = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    ground = np.isin(labels, edges[edges > 0])
    soft = ndimage.gaussian_filter((~ground).astype(np.float32), rng.uniform(0.3, 0.8))
    return np.asarray(soft[..., None])


def _canvas(size: tuple[int, int], rng: random.Random) -> tuple[tuple[int, int], tuple[int, int]]:
    """Draw a canvas (width, height) around an image of `size`, and the image's place (left, top) on it."""
    width, height = size
    if rng.random() < 0.4:
        return size, (0, 0)
    across, down = rng.choice(SHAPES)
    scale = max(width / across, height / down) * rng.choice((1.0, 1.0, rng.uniform(1.0, 1.5)))
    canvas = max(width, round(across * scale)), max(height, round(down * scale))
    free = canvas[0] - width, canvas[1] - height
    if rng.random() < 0.6:
        return canvas, (free[0] // 2, free[1] // 2)
    return canvas, (rng.randint(0, free[0]), rng.randint(0, free[1]))


# --- grounds: size (width, height) -> floats [H, W, 3] from 0 to 255 ---------------------------------------


def grey(size: tuple[int, int], rng: random.Random) -> Floats:
    """A plain grey, more often light than dark."""
    level = 255 - 215 * rng.random() ** 2
    return _plain(size, (level, level, level))


def plain(size: tuple[int, int], rng: random.Random) -> Floats:
    """Any one colour."""
    return _plain(size, _colour(rng))


def gradient(size: tuple[int, int], rng: random.Random) -> Floats:
    """From one colour to another, in one direction: a studio's light that falls off."""
    width, height = size
    first, second = _colour(rng), _colour(rng)
    if rng.random() < 0.5:
        second = tuple(channel * rng.uniform(0.6, 1.0) for channel in first)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    tilt = rng.random()
    share = (tilt * x + (1 - tilt) * y)[..., None].astype(np.float32)
    return np.asarray((1 - share) * _floats(first) + share * _floats(second), dtype=np.float32)


def texture(size: tuple[int, int], rng: random.Random) -> Floats:
    """Clouds, grain, stripes or checks between two colours: a carpet, a table, a wall, a meadow."""
    width, height = size
    noise = np.random.default_rng(rng.getrandbits(32))
    kind = rng.randrange(4)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    if kind == 0:  # clouds, of one to a third of the image's size
        pattern = ndimage.gaussian_filter(noise.normal(size=(height, width)), rng.uniform(0.5, width / 10))
    elif kind == 1:  # grain that is longer one way: wood, cloth
        deviations = (rng.uniform(0.3, 1.5), rng.uniform(2.0, 12.0))
        pattern = ndimage.gaussian_filter(noise.normal(size=(height, width)), deviations[:: rng.choice((1, -1))])
    elif kind == 2:  # stripes
        period, tilt = rng.uniform(3, width / 2), rng.uniform(-1, 1)
        pattern = np.sin(2 * np.pi * (x + tilt * y) / period)
    else:  # checks, tiles
        period = rng.uniform(3, width / 2)
        pattern = np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period)).astype(float)
    pattern = pattern / max(1e-6, float(np.abs(pattern).max()))
    share = ((pattern + 1) / 2)[..., None].astype(np.float32)
    first = _floats(_colour(rng))
    second = _floats(_colour(rng)) if rng.random() < 0.5 else first + np.float32(rng.uniform(-90, 90))
    grain = noise.normal(scale=rng.uniform(0, 10), size=(height, width, 1)).astype(np.float32)
    return np.asarray((1 - share) * first + share * second + grain, dtype=np.float32)


GROUNDS: Sequence[Callable[[tuple[int, int], random.Random], Floats]] = (grey, plain, gradient, texture)


def _plain(size: tuple[int, int], colour: Sequence[float]) -> Floats:
    width, height = size
    return np.full((height, width, 3), _floats(colour), dtype=np.float32)


def _floats(colour: Sequence[float]) -> Floats:
    return np.array(colour, dtype=np.float32)


def _colour(rng: random.Random) -> tuple[float, ...]:
    """Draw a colour; every other one is a muted one, as furniture and walls are."""
    colour = tuple(rng.uniform(0, 255) for _ in range(3))
    if rng.random() < 0.5:
        return colour
    mean = sum(colour) / 3
    return tuple(mean + 0.4 * (channel - mean) for channel in colour)


# --- light and shape ---------------------------------------------------------------------------------------


def relight(image: Image.Image, rng: random.Random) -> Image.Image:
    """Change the light a little: its strength, its colour, and how contrasts are shown; what is white may turn grey."""
    gamma = rng.uniform(0.8, 1.25)
    tint = [rng.uniform(0.85, 1.0) for _ in range(3)]
    strength = rng.uniform(0.85, 1.0)
    if rng.random() < 0.5:
        tint = [1.0] * 3
    tables = [[round(255 * strength * share * (level / 255) ** gamma) for level in range(256)] for share in tint]
    return image.point([value for table in tables for value in table])


def squash(image: Image.Image, rng: random.Random) -> Image.Image:
    """Change an image's proportions, as a shop does that fits every photo into a square: its width, by up to 45 %."""
    factor = rng.uniform(0.7, 1.45)
    width = max(1, round(image.width * factor))
    return image.resize((width, image.height), Image.Resampling.BICUBIC)
