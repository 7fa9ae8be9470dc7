"""Images encoded once for all runs: their image tower is the same, and locked.

A run's input from an image depends on the tower, the epoch and the listing alone, never on the run. So each epoch's
augmented images are encoded once and kept on disk, and a run computes no convolution; its weights are the same except
for rounding to half precision.

Shapes: n listings, N image patches, d width of the tower, B listings of a batch.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from model.catalogue.listings import Listing
from model.device import training_precision
from model.inputs.augment import AugmentConfig
from model.inputs.dataset import ListingDataset, load_batches
from model.inputs.normalise import TensorTransform
from model.network.cma_clip import CMAClip
from model.network.towers import Backbone, TokenSequence
from model.training.train import FineTuning
from research.study.networks import BuildNetwork

BATCH = 256


class EncodedImages:
    """A locked image tower's outputs, `[n, 1+N, d]` float16, one file for each part, augmentation and epoch.

    `folder` is for this tower only.
    """

    def __init__(self, folder: Path, backbone: Backbone, device: torch.device, console: Console) -> None:
        self.folder, self.device, self.console = folder, device, console
        self.backbone = backbone.to(device).to(memory_format=torch.channels_last).eval()
        rows, columns = backbone.image.grid
        self.shape: tuple[int, ...] = (1 + rows * columns, backbone.image.width)

    def of(self, dataset: ListingDataset, epoch: int) -> NDArray[np.float16]:
        """Return the tokens of a data set's images in one epoch, encoding them unless that has been done."""
        path = self.folder / f"{dataset.listings[0].part}-{_variation(dataset, epoch)}.npy"
        if not path.is_file():
            self._encode(dataset, epoch, path)
        tokens: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return tokens

    def given(self, backbone: Backbone) -> Backbone:
        """Return the towers of `backbone` for images that these encode."""
        return GivenTokens(backbone.image, backbone.text)

    def _encode(self, dataset: ListingDataset, epoch: int, path: Path) -> None:
        self.console.print(f"encoding images: {path}", highlight=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        dataset.set_epoch(epoch)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")  # two processes may share the work
        tokens = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(len(dataset), *self.shape))
        for number, batch in enumerate(load_batches(dataset, batch_size=BATCH, workers=1)):
            with torch.inference_mode(), training_precision(self.device):
                pixels = dataset.transform.normalise(batch.to(self.device).pixels)
                encoded = self.backbone.encode_image(pixels).embeddings
            tokens[number * BATCH :][: len(encoded)] = encoded.float().cpu().numpy()
        tokens.flush()
        temporary.replace(path)


def _variation(dataset: ListingDataset, epoch: int) -> str:
    """Return a hash of everything that an epoch's images depend on: the listings, in order, and their augmentation."""
    fields: list[object] = [dataset.catalogue.config.images, [listing.image for listing in dataset.listings]]
    if dataset.augment is not None:
        augment = dataset.augment[epoch]
        fields += [augment.crop, augment.stretch, augment.flip, augment.corrupted_images, augment.blank_images]
        fields += [dataset.seed, epoch]
    return hashlib.sha256(repr(fields).encode()).hexdigest()[:12]


class EncodedListings(ListingDataset):
    """The listings of `plain` with encoded images: `pixels` is the locked tower's output, `[1+N, d]` float16."""

    def __init__(self, images: EncodedImages, plain: ListingDataset) -> None:
        preprocess = plain.transform.config
        super().__init__(
            plain.catalogue, plain.listings, plain.tasks, preprocess, augment=plain.augment, seed=plain.seed
        )
        self.transform = _AsGiven(preprocess)
        self.images, self.plain = images, plain
        self.rows = {listing.image: row for row, listing in enumerate(plain.listings)}
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Switch to an epoch's augmented images."""
        super().set_epoch(epoch)
        self.tokens = self.images.of(self.plain, epoch)

    def load_image(self, name: str, rng: random.Random) -> NDArray[np.float16]:
        """Return what the locked tower made of the image in this epoch."""
        return np.asarray(self.tokens[self.rows[name]])

    def no_image(self) -> NDArray[np.float16]:
        """Return what takes the place of an absent image: zeros."""
        return np.zeros(self.images.shape, dtype=np.float16)


class _AsGiven(TensorTransform):
    """The transform of images that are tokens already."""

    def normalise(self, pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return pixels


class GivenTokens(Backbone):
    """The same towers, under the same names, for images that are encoded already."""

    def encode_image(self, images: Tensor) -> TokenSequence:
        """Wrap tokens `[B, 1+N, d]`, pooled at the first."""
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return TokenSequence.pooled_first(images.to(dtype))


class EncodedFineTuning(FineTuning):
    """The fine-tuning of a network that `build` makes, on images that are encoded already."""

    def __init__(self, build: BuildNetwork, images: EncodedImages, **options: Any) -> None:
        super().__init__(**options)
        self.build, self.images = build, images

    def build_network(self) -> CMAClip:
        """Build the network for encoded images, filled from `initial`."""
        network = self.build(self.model, self.tasks, self.initial)
        network.backbone = self.images.given(network.backbone)
        return cast(CMAClip, network)  # fine-tuning uses no more of it than all networks of the study have

    def dataset(self, listings: Sequence[Listing], augment: Sequence[AugmentConfig] | None = None) -> EncodedListings:
        """Return the data set of `listings`, whose images are encoded."""
        return EncodedListings(self.images, super().dataset(listings, augment))
