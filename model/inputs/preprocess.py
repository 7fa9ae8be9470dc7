"""Images to model input: the one definition, for training, evaluation and serving alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.config import PreprocessConfig

Box = tuple[float, float, float, float]


class ImageTransform:
    """RGB image -> uint8 `[3, H, W]`; `normalise` makes the network's floats of a batch, on its device."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config

    def __call__(self, image: Image.Image, box: Box | None = None) -> NDArray[np.uint8]:
        """Resize `image`, or its part inside `box` (left, upper, right, lower in pixels), to the input size."""
        height, width = self.config.image_size
        left, upper, right, lower = box or (0.0, 0.0, *map(float, image.size))
        box_width, box_height = right - left, lower - upper
        if self.config.resize == "squash":
            resized = image.resize((width, height), Image.Resampling.BICUBIC, (left, upper, right, lower))
        elif self.config.resize == "shortest":
            margin_x, margin_y, *_ = self.frame((box_width, box_height))
            centre = (left + margin_x, upper + margin_y, right - margin_x, lower - margin_y)
            resized = image.resize((width, height), Image.Resampling.BICUBIC, centre)
        else:
            scale = min(width / box_width, height / box_height)
            size = (max(1, round(box_width * scale)), max(1, round(box_height * scale)))
            inner = image.resize(size, Image.Resampling.BICUBIC, (left, upper, right, lower))
            resized = Image.new("RGB", (width, height), (self.config.fill,) * 3)
            resized.paste(inner, ((width - size[0]) // 2, (height - size[1]) // 2))
        return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))

    def frame(self, size: tuple[float, float]) -> Box:
        """Return the part of an image of `size` (width, height) that the network sees, in the image's pixels.

        Where the image is padded, it extends beyond the edges.
        """
        height, width = self.config.image_size
        if self.config.resize == "squash":
            return 0.0, 0.0, *size
        choose = max if self.config.resize == "shortest" else min
        scale = choose(width / size[0], height / size[1])
        margin_x, margin_y = (size[0] - width / scale) / 2, (size[1] - height / scale) / 2
        return margin_x, margin_y, size[0] - margin_x, size[1] - margin_y

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 `[B, 3, H, W]` -> floats of `dtype`, each channel with CLIP's mean and deviation, channels last."""
        mean = torch.tensor(self.config.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.config.std, device=pixels.device).view(3, 1, 1)
        normalised = (pixels.float() / 255 - mean) / std
        return normalised.to(dtype, memory_format=torch.channels_last)
