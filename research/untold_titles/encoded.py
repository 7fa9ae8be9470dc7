"""Images of both stages, encoded once for all runs: a few augmented variants of each, which the epochs take in turn.

The images are the same for every seed of a run; batches, weights, dropout and the augmentation of titles are not.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from model.inputs.dataset import ListingDataset
from model.network.towers import Backbone
from research.study.encoded import EncodedImages
from research.untold_titles.networks import GivenStages, StagedBackbone


class StagedImages(EncodedImages):
    """A locked tower's two stages, `[n, F]` float16, one file for each part and variant."""

    def __init__(
        self, folder: Path, backbone: StagedBackbone, device: torch.device, console: Console, *, variants: int
    ) -> None:
        super().__init__(folder, backbone, device, console)
        self.shape = (backbone.image.layout.size,)
        self.variants = variants

    def of(self, dataset: ListingDataset, epoch: int) -> NDArray[np.float16]:
        """Return what the tower made of a data set's images: one of the variants, drawn with seed 0."""
        shared = copy.copy(dataset)
        shared.seed = 0
        return super().of(shared, epoch % self.variants)

    def given(self, backbone: Backbone) -> Backbone:
        """Return the towers of `backbone` for images that these encode."""
        assert isinstance(backbone, StagedBackbone)
        return GivenStages(backbone.image, backbone.text)
