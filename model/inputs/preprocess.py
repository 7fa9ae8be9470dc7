"""Images to model input: the one definition, for training, evaluation and serving alike.

Imports numpy and Pillow alone: the workers that decode images (`model.inputs.worker`) run it, and start in no time.
`model.inputs.normalise` makes floats of what comes out, with torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.inputs.framing import Box, Framing, find_product

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

MOST_CROPPED = 8
"""How many times as long as the input an image may become when it is resized and then cropped, as open_clip does it. Of
a longer one only the part that is kept is resized, which may differ by rounding: no image takes memory without bound.
"""


class Resizing(Protocol):
    """How an image is fitted into the model's input: what `model.config.PreprocessConfig` says of pixels."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        ...

    @property
    def resize(self) -> Literal["longest", "shortest", "squash"]: ...
    @property
    def fill(self) -> int: ...
    @property
    def interpolation(self) -> Literal["bicubic", "bilinear"]: ...
    @property
    def framing(self) -> Literal["product", "whole"]: ...


@dataclass(frozen=True, slots=True)
class ModelImage:
    """An image as the network takes it: uint8 `[3, H, W]`, and what of the image that shows.

    box: left, upper, right, lower, in pixels of the upright image, whose `size` is (width, height); see
    `ImageTransform.seen`.
    """

    pixels: NDArray[np.uint8]
    box: Box
    size: tuple[int, int]


class ImageTransform:
    """RGB image -> uint8 `[3, H, W]`."""

    def __init__(self, config: Resizing) -> None:
        self.config = config

    def show(self, image: Image.Image) -> ModelImage:
        """Find the part of an RGB image that is to be shown to the network, and resize it."""
        framing = self.find(image)
        return ModelImage(self(image, framing), self.seen(framing.box), image.size)

    def find(self, image: Image.Image) -> Framing:
        """Return the part of an image that is to be shown to the network, and the colour to pad it with."""
        if self.config.framing == "product":
            return find_product(image)
        return Framing((0.0, 0.0, float(image.width), float(image.height)), (self.config.fill,) * 3)

    def __call__(self, image: Image.Image, framing: Framing | None = None) -> NDArray[np.uint8]:
        """Resize the part of `image` that `framing` says, by default what `find` finds, to the input size."""
        height, width = self.config.image_size
        framing = framing or self.find(image)
        left, upper, right, lower = framing.box
        resampling = RESAMPLING[self.config.interpolation]
        if self.config.resize == "squash":
            resized = image.resize((width, height), resampling, framing.box)
        elif self.config.resize == "shortest":
            (across, down), (x, y) = _filling(framing.box, height, width)
            if max(across, down) <= MOST_CROPPED * max(height, width):
                whole = image.resize((across, down), resampling, framing.box)
                resized = whole.crop((x, y, x + width, y + height))
            else:
                resized = image.resize((width, height), resampling, self.seen(framing.box))
        else:
            scale = min(width / (right - left), height / (lower - upper))
            size = (max(1, round((right - left) * scale)), max(1, round((lower - upper) * scale)))
            inner = image.resize(size, resampling, framing.box)
            resized = Image.new("RGB", (width, height), framing.ground)
            resized.paste(inner, ((width - size[0]) // 2, (height - size[1]) // 2))
        return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))

    def seen(self, box: Box) -> Box:
        """Return what the network sees of an image where `box` is shown to it, in the image's pixels.

        Where the box is padded, it extends beyond it.
        """
        height, width = self.config.image_size
        left, upper, right, lower = box
        if self.config.resize == "squash":
            return box
        if self.config.resize == "shortest":
            (across, down), (x, y) = _filling(box, height, width)
            per_x, per_y = (right - left) / across, (lower - upper) / down
            return left + x * per_x, upper + y * per_y, left + (x + width) * per_x, upper + (y + height) * per_y
        scale = min(width / (right - left), height / (lower - upper))
        margin_x, margin_y = (right - left - width / scale) / 2, (lower - upper - height / scale) / 2
        return left + margin_x, upper + margin_y, right - margin_x, lower - margin_y


def _filling(box: Box, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size (width, height) that `box` is resized to so that it fills `height` x `width`, and where the
    centre of that starts, which is kept (x, y).

    To the pixel as open_clip has it: a length is rounded down where the input is a square.
    """
    left, upper, right, lower = box
    across, down = right - left, lower - upper
    if height == width:
        resized = (int(width * across / min(across, down)), int(height * down / min(across, down)))
    else:
        shrink = min(across / width, down / height)
        resized = (round(across / shrink), round(down / shrink))
    return resized, (round((resized[0] - width) / 2), round((resized[1] - height) / 2))
