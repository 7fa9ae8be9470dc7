"""Images to model input: the one definition, for training, evaluation and serving alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.config import PreprocessConfig
from model.inputs.framing import Box, Framing, find_product


class ImageTransform:
    """RGB image -> uint8 `[3, H, W]`; `normalise` makes the network's floats of a batch, on its device."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config

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
        if self.config.resize == "squash":
            resized = image.resize((width, height), Image.Resampling.BICUBIC, framing.box)
        elif self.config.resize == "shortest":
            resized = image.resize((width, height), Image.Resampling.BICUBIC, self.seen(framing.box))
        else:
            scale = min(width / (right - left), height / (lower - upper))
            size = (max(1, round((right - left) * scale)), max(1, round((lower - upper) * scale)))
            inner = image.resize(size, Image.Resampling.BICUBIC, framing.box)
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
        choose = max if self.config.resize == "shortest" else min
        scale = choose(width / (right - left), height / (lower - upper))
        margin_x, margin_y = (right - left - width / scale) / 2, (lower - upper - height / scale) / 2
        return left + margin_x, upper + margin_y, right - margin_x, lower - margin_y

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 `[B, 3, H, W]` -> floats of `dtype`, each channel with CLIP's mean and deviation, channels last."""
        mean = torch.tensor(self.config.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.config.std, device=pixels.device).view(3, 1, 1)
        normalised = (pixels.float() / 255 - mean) / std
        return normalised.to(dtype, memory_format=torch.channels_last)
