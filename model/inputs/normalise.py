"""Pixels to the floats that the network computes with."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import PreprocessConfig
from model.inputs.preprocess import ImageTransform


class TensorTransform(ImageTransform):
    """RGB image -> uint8 `[3, H, W]`; `normalise` makes the network's floats of a batch, on its device."""

    config: PreprocessConfig

    def __init__(self, config: PreprocessConfig) -> None:
        super().__init__(config)

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 `[B, 3, H, W]` -> floats of `dtype`, each channel with its mean and deviation, channels last."""
        mean = torch.tensor(self.config.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.config.std, device=pixels.device).view(3, 1, 1)
        normalised = (pixels.float() / 255 - mean) / std
        return normalised.to(dtype, memory_format=torch.channels_last)
